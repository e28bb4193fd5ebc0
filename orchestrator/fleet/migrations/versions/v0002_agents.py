"""Versions of the agent itself, and which one a device ran before a rollout."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the columns."""
    with op.batch_alter_table("versions") as versions:
        versions.add_column(sa.Column("agent", sa.String(), nullable=True))
        versions.create_foreign_key("fk_versions_agent", "artefacts", ["agent"], ["id"])
    with op.batch_alter_table("targets") as targets:
        targets.add_column(sa.Column("before_agent", sa.Text(), nullable=True))


def downgrade() -> None:
    """Take them away again."""
    with op.batch_alter_table("targets") as targets:
        targets.drop_column("before_agent")
    with op.batch_alter_table("versions") as versions:
        versions.drop_constraint("fk_versions_agent", type_="foreignkey")
        versions.drop_column("agent")
