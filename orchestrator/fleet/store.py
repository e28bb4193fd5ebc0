"""The fleet's database: SQLite in a file without a server, or PostgreSQL by URL; opened, migrated, one transaction at a time."""

import contextlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from orchestrator.fleet.errors import StoreError

log = logging.getLogger(__name__)
MIGRATIONS = Path(__file__).parent / "migrations"
_BUSY_MS = 15_000
_LOCK_MIGRATE = 0x6874_0001  # advisory locks on PostgreSQL
_LOCK_AUDIT = 0x6874_0002

Durability = Literal["power-loss", "process-kill"]


def now_ms() -> int:
    """Milliseconds since 1970 UTC, of this host."""
    return time.time_ns() // 1_000_000


def default_url(folder: Path) -> str:
    """The SQLite file of a fleet that lives in `folder`."""
    return f"sqlite:///{folder.resolve() / 'fleet.sqlite'}"


class Store:
    """One database. Every process opens its own; on SQLite writers take turns.

    Args:
        url: sqlite:///FILE or postgresql://user@host/name.
        durability: What a commit survives. Telemetry is written with "process-kill", everything else with "power-loss".
        migrate: Bring the tables to this version first.

    Raises:
        StoreError: No such database, or it is of another version.
    """

    def __init__(self, url: str, *, durability: Durability = "power-loss", migrate: bool = True) -> None:
        self.url = url
        self.engine = _make_engine(url, durability)
        try:
            if migrate:
                migrate_store(self.engine)
            else:
                with self.engine.connect() as connection:
                    connection.execute(text("SELECT 1"))
        except DBAPIError as error:
            raise StoreError(f"Wanted the database {hide_secret(url)}, found: {error.orig}.") from error

    @property
    def is_sqlite(self) -> bool:
        """Whether writers have to take turns and row locks do not exist."""
        return self.engine.dialect.name == "sqlite"

    @contextlib.contextmanager
    def write(self) -> Iterator[Session]:
        """One transaction: committed at the end of the block, undone when it raises."""
        with Session(self.engine, expire_on_commit=False) as session, session.begin():
            yield session

    @contextlib.contextmanager
    def read(self) -> Iterator[Session]:
        """A view of one moment; nothing is written."""
        with Session(self.engine.execution_options(headtail_read=True), expire_on_commit=False) as session:
            yield session

    def close(self) -> None:
        """Close the connections."""
        self.engine.dispose()


def hide_secret(url: str) -> str:
    """The URL without its password."""
    before, at, after = url.rpartition("@")
    if not at:
        return url
    parts = urlsplit(before + "@host")
    return f"{parts.scheme}://{parts.username or ''}:...@{after}" if parts.password else url


def lock_audit(session: Session) -> None:
    """Make appends to the audit log take turns, until the end of the transaction; SQLite's writers do anyway."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK_AUDIT})


def migrate_store(engine: Engine) -> None:
    """Bring the tables to this version; several processes may do it at once.

    Raises:
        StoreError: The database is of a newer headtail.
    """
    from alembic import command
    from alembic.config import Config
    from alembic.util.exc import CommandError

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK_MIGRATE})
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise StoreError(
                f"Wanted tables of this version in {hide_secret(str(engine.url))}, found: {error}. "
                "Was it written by a newer headtail?"
            ) from error


def _make_engine(url: str, durability: Durability) -> Engine:
    if url.startswith("postgresql"):
        options = "" if durability == "power-loss" else "-c synchronous_commit=off"
        bare = url.replace("postgresql://", "postgresql+psycopg://", 1)
        return create_engine(bare, pool_size=4, max_overflow=4, pool_pre_ping=True, connect_args={"options": options})
    if not url.startswith("sqlite:///"):
        raise StoreError(f"Wanted sqlite:///FILE or postgresql://.., found {hide_secret(url)!r}.")
    Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, connect_args={"timeout": _BUSY_MS / 1000, "isolation_level": None})
    event.listen(engine, "connect", lambda connection, _record: _set_pragmas(connection, durability))
    event.listen(engine, "begin", _begin)
    return engine


def _set_pragmas(connection: Any, durability: Durability) -> None:  # noqa: ANN401 - a DBAPI connection
    cursor = connection.cursor()
    for pragma in (
        f"busy_timeout={_BUSY_MS}",
        "journal_mode=WAL",
        f"synchronous={'FULL' if durability == 'power-loss' else 'NORMAL'}",
        "foreign_keys=ON",
        "wal_autocheckpoint=4000",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin(connection: Connection) -> None:
    """Writers say at once that they write: a transaction that only finds out later could fail for no fault of its own."""
    reading = connection.get_execution_options().get("headtail_read", False)
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")
