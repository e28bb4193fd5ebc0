"""One orchestrator at a time moves rollouts on and takes leases back: an advisory lock on PostgreSQL, a row on SQLite."""

import contextlib

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from orchestrator.fleet.store import Store
from orchestrator.fleet.tables import Leader

_LOCK = 0x6874_0003
_LEASE_MS = 5000


class Leadership:
    """Whether this process leads. What a leader does is safe to do twice: the lock saves work, it does not guard truth."""

    def __init__(self, store: Store, owner: str) -> None:
        self._store, self._owner = store, owner
        self._connection: Connection | None = None  # holds the lock as long as it lives

    def hold(self, *, now_ms: int) -> bool:
        """Become, or stay, the leader if nobody else is."""
        return self._hold_row(now_ms) if self._store.is_sqlite else self._hold_lock()

    def close(self) -> None:
        """Let another one lead."""
        if self._connection is not None:
            with contextlib.suppress(DBAPIError):
                self._connection.invalidate()  # not back into the pool: the lock ends with the connection
                self._connection.close()
            self._connection = None

    def _hold_lock(self) -> bool:
        if self._connection is not None:
            try:
                self._connection.execute(text("SELECT 1"))
                return True
            except DBAPIError:
                self.close()
        connection = self._store.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        if connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": _LOCK}).scalar():
            self._connection = connection
            return True
        connection.close()
        return False

    def _hold_row(self, now_ms: int) -> bool:
        with self._store.read() as session:
            row = session.get(Leader, 1)
            if row is not None and row.owner != self._owner and row.until_ms > now_ms:
                return False
            if row is not None and row.owner == self._owner and row.until_ms > now_ms + _LEASE_MS // 2:
                return True
        with self._store.write() as session:
            row = session.get(Leader, 1)
            if row is None:
                session.add(Leader(id=1, owner=self._owner, until_ms=now_ms + _LEASE_MS))
            elif row.owner == self._owner or row.until_ms <= now_ms:
                row.owner, row.until_ms = self._owner, now_ms + _LEASE_MS
            else:
                return False
        return True
