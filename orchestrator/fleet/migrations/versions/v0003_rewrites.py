"""When a desired state may be written again above what its device knows."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the column."""
    with op.batch_alter_table("desired") as desired:
        desired.add_column(sa.Column("rewrite_ms", sa.BigInteger(), nullable=False, server_default="0"))


def downgrade() -> None:
    """Take it away again."""
    with op.batch_alter_table("desired") as desired:
        desired.drop_column("rewrite_ms")
