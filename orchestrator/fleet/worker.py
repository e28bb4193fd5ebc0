"""A worker on a host: claims jobs that are for no device, and does each in the transaction that ends it.

What a job writes is committed with its end or not at all: a worker that is killed, or whose lease went to another one,
leaves nothing behind.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from device_profiles.errors import EdgeError
from orchestrator.fleet import jobs
from orchestrator.fleet.jobs import Lease
from orchestrator.fleet.program import Program, run_program
from orchestrator.fleet.registry import add_snapshot
from orchestrator.fleet.store import Store, now_ms

log = logging.getLogger(__name__)
_IDLE_S = 0.1
Handler = Callable[[Session, Lease], dict[str, Any]]


class _LeaseLostError(Exception):
    """Undoes the transaction of a job that belongs to another attempt by now."""


def echo(_session: Session, lease: Lease) -> dict[str, Any]:
    """Give the arguments back."""
    return lease.arguments


def figures(session: Session, lease: Lease) -> dict[str, Any]:
    """Keep figures for the charts: numbers by name, under the scope that `scope` names or the job's id."""
    numbers = {key: value for key, value in lease.arguments.items() if isinstance(value, int | float)}
    add_snapshot(session, str(lease.arguments.get("scope", f"job:{lease.id}")), numbers, now_ms=now_ms())
    return {"kept": len(numbers)}


HANDLERS: Mapping[str, Handler] = {"echo": echo, "figures": figures}


class Worker:
    """Works until stopped; any number may run on one database.

    Args:
        store: The truth.
        owner: Its name in leases.
        handlers: What it can do, by kind of job.
        batch: How many jobs it leases at once.
    """

    def __init__(
        self, store: Store, *, owner: str, handlers: Mapping[str, Handler] | None = None, batch: int = 10
    ) -> None:
        self._store, self._owner, self._batch = store, owner, batch
        self._handlers = HANDLERS if handlers is None else handlers
        self._stop = threading.Event()

    def run(self) -> None:
        """Until `stop`."""
        while not self._stop.is_set():
            try:
                if not self.work_once():
                    self._stop.wait(_IDLE_S)
            except DBAPIError as error:
                log.warning("the database is not to be had, trying again: %s", error.orig)
                self._stop.wait(1.0)

    def stop(self) -> None:
        """End `run` after the job at hand."""
        self._stop.set()

    def work_once(self) -> int:
        """Lease jobs and do them; returns how many were leased."""
        with self._store.write() as session:
            leases = jobs.claim(session, self._owner, now_ms=now_ms(), limit=self._batch, kinds=sorted(self._handlers))
        for lease in leases:
            self._do(lease)
        return len(leases)

    def _do(self, lease: Lease) -> None:
        try:
            with self._store.write() as session:
                result = self._handlers[lease.kind](session, lease)
                if not jobs.finish(session, lease.id, lease.attempt, now_ms=now_ms(), result=result):
                    raise _LeaseLostError
        except _LeaseLostError:
            log.info("job %s belongs to another attempt by now", lease.id)
        except EdgeError as error:
            log.warning("job %s failed: %s", lease.id, error)
            with self._store.write() as session:
                jobs.finish(session, lease.id, lease.attempt, now_ms=now_ms(), error=f"{type(error).__name__}: {error}")


def _start(program: Program) -> None:
    worker = Worker(Store(program.store), owner=program.owner)
    program.on_stop(worker.stop)
    program.say_ready("worker")
    worker.run()


if __name__ == "__main__":
    run_program(_start)
