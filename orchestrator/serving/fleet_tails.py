"""The tails of a fleet's versions, for whoever serves them: which they are now, and telling the registry what is served."""

import logging
import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path

from device_profiles.errors import EdgeError
from edge_runtime.artefact import open_artefact
from orchestrator.fleet.fleet_file import find_store
from orchestrator.fleet.served_tails import announce_tails, one_tail_a_key, wanted_tails, withdraw_tails
from orchestrator.fleet.store import Store, now_ms

log = logging.getLogger(__name__)
_ANNOUNCE_EVERY_S = 3.0


class FleetTails:
    """Follows one registry.

    Args:
        registry: URL of its database, or the folder of `headtail fleet up`.

    Raises:
        StoreError: No fleet there.
    """

    def __init__(self, registry: str) -> None:
        url = registry if "://" in registry else find_store(Path(registry))
        self._store = Store(url, migrate=False)
        self._owner = f"{socket.gethostname()}.{os.getpid()}"
        self._keys: dict[str, tuple[str, ...]] = {}  # of every tail that was opened
        self._wanted: dict[str, Path] = {}
        self._told: tuple[str, ...] | None = None
        self._told_at = 0.0

    def wanted(self) -> list[Path]:
        """The .zip files to serve now; one that cannot be opened is left out, with a line in the log."""
        with self._store.read() as session:
            self._wanted = wanted_tails(session)
        for tail in self._wanted.keys() - self._keys.keys():
            self._keys[tail] = _keys_of(self._wanted[tail])
        usable = {tail: self._keys[tail] for tail in self._wanted if self._keys[tail]}
        return [self._wanted[tail] for tail in one_tail_a_key(usable)]

    def announce(self, serving: Sequence[tuple[str, Sequence[str]]]) -> None:
        """Say which of the wanted tails are answered for: at once when that changed, else every few seconds."""
        keys = {key for _, served in serving for key in served}
        told = tuple(sorted(tail for tail in self._wanted if self._keys[tail] and keys.issuperset(self._keys[tail])))
        if told != self._told or time.monotonic() - self._told_at >= _ANNOUNCE_EVERY_S:
            announce_tails(self._store, self._owner, told, now_ms=now_ms())
            self._told, self._told_at = told, time.monotonic()

    def close(self) -> None:
        """Say that nothing is served any more."""
        withdraw_tails(self._store, self._owner)
        self._store.close()


def _keys_of(path: Path) -> tuple[str, ...]:
    """The keys that a tail answers to; none when it cannot be opened."""
    try:
        cut = open_artefact(path).manifest.cut
    except EdgeError as error:
        log.error("a tail of the registry is not served: %s", error)
        return ()
    return tuple(cut.accepts) if cut is not None else ()
