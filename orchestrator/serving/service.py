"""Tails in worker processes: started, watched, started again when they die, replaced without losing a request.

The broker spreads requests over the workers (a shared subscription). New artefacts come up in new workers beside the
old ones, which then take nothing new, answer what they have, and end: both revisions of a pair are alive meanwhile.
"""

import contextlib
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from orchestrator.serving.served import ServeError
from orchestrator.serving.worker import WorkerOrder, WorkerReport

log = logging.getLogger(__name__)
_FIRST_PAUSE_S = 0.2
_MAX_PAUSE_S = 30.0
_STEADY_S = 30.0  # a worker that lived so long starts again without a pause
_POLL_S = 0.1


@dataclass
class _Child:
    """A worker process and what it said."""

    order: WorkerOrder
    process: subprocess.Popen[bytes]
    started: float
    reported: threading.Event = field(default_factory=threading.Event)
    report: WorkerReport | None = None


class TailService:
    """Keeps a number of tail workers alive.

    Args:
        order: What each worker serves; its name gets a number behind it.
        processes: How many.
        start_timeout_s: For a worker to open its models and subscribe.
    """

    def __init__(self, order: WorkerOrder, processes: int, *, start_timeout_s: float = 60.0) -> None:
        if processes < 1:
            raise ServeError(f"Wanted at least one worker process, found {processes}.")
        self._order = order
        self._processes = processes
        self._timeout_s = start_timeout_s
        self._generation = 0
        self._children: list[_Child] = []
        self._lock = threading.Lock()  # guards the children; `replace` holds it while it starts them
        self._stop = threading.Event()
        self._pause_s = [_FIRST_PAUSE_S] * processes
        self._keeper = threading.Thread(target=self._keep, name="tail-service", daemon=True)
        self.restarts = 0

    def start(self) -> "TailService":
        """Start the workers and wait until they serve.

        Raises:
            ServeError: A worker does not; its reason is named, and none is left.
        """
        with self._lock:
            self._children = self._start_all(self._order)
        self._keeper.start()
        return self

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [child.process.pid for child in self._children]

    @property
    def serving(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Names and keys of the models that the workers serve."""
        report = self._children[0].report if self._children else None
        return report.serving if report is not None else ()

    def replace(self, artefacts: Sequence[Path | str]) -> None:
        """Serve other artefacts: new workers first, then the old ones answer what they have and end.

        Raises:
            ServeError: The new workers do not serve; the old ones go on.
        """
        order = msgspec.structs.replace(self._order, artefacts=tuple(str(path) for path in artefacts))
        with self._lock:
            old, self._children = self._children, self._start_all(order)
            self._order = order
            self._pause_s = [_FIRST_PAUSE_S] * self._processes
        _end(old, order.drain_s)

    def close(self) -> None:
        """Have the workers answer what they have, and end them."""
        self._stop.set()
        if self._keeper.is_alive():
            self._keeper.join()
        with self._lock:
            _end(self._children, self._order.drain_s)
            self._children = []

    def __enter__(self) -> "TailService":
        """Start."""
        return self.start()

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def _start_all(self, order: WorkerOrder) -> list[_Child]:
        self._generation += 1
        children = [self._spawn(order, index) for index in range(self._processes)]
        deadline = time.monotonic() + self._timeout_s
        try:
            for child in children:
                child.reported.wait(max(0.0, deadline - time.monotonic()))
                if child.report is None or child.report.error is not None:
                    found = "nothing" if child.report is None else child.report.error
                    raise ServeError(f"Wanted the worker {child.order.name} to serve, found {found}")
        except BaseException:
            for child in children:
                child.process.kill()
                child.process.wait()
            raise
        return children

    def _spawn(self, order: WorkerOrder, index: int) -> _Child:
        order = msgspec.structs.replace(order, name=f"{order.name}-{self._generation}-{index}")
        root = str(Path(__file__).parent.parent.parent)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
        process = subprocess.Popen(
            [sys.executable, "-m", "orchestrator.serving.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,  # Ctrl-C ends the service, which then drains its workers
        )
        child = _Child(order, process, time.monotonic())
        threading.Thread(target=_read_reports, args=(child,), daemon=True).start()
        assert process.stdin is not None
        with contextlib.suppress(OSError):  # it died; the reports say so
            process.stdin.write(msgspec.json.encode(order) + b"\n")
            process.stdin.flush()
        return child

    def _keep(self) -> None:
        """Start workers again that died, each after a pause that doubles while it keeps dying."""
        while not self._stop.wait(_POLL_S):
            with self._lock:
                for index, child in enumerate(self._children):
                    status = child.process.poll()
                    if status is None:
                        continue
                    lived_s = time.monotonic() - child.started
                    if lived_s > _STEADY_S:
                        self._pause_s[index] = _FIRST_PAUSE_S
                    if lived_s < self._pause_s[index]:
                        continue
                    log.warning(
                        "the tail worker %s ended with status %s; it is started again", child.order.name, status
                    )
                    self.restarts += 1
                    self._pause_s[index] = min(2 * self._pause_s[index], _MAX_PAUSE_S)
                    self._children[index] = self._spawn(self._order, index)


def _read_reports(child: _Child) -> None:
    output = child.process.stdout
    assert output is not None
    with output:
        for line in output:
            with contextlib.suppress(msgspec.MsgspecError):  # something printed by a library
                child.report = msgspec.json.decode(line, type=WorkerReport)
                child.reported.set()
    child.reported.set()


def _end(children: Sequence[_Child], drain_s: float) -> None:
    """Close the workers' input, so that they drain, and kill those that do not end."""
    for child in children:
        if child.process.stdin is not None:
            with contextlib.suppress(OSError):
                child.process.stdin.close()
    deadline = time.monotonic() + drain_s + 5
    for child in children:
        try:
            child.process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            log.warning("the tail worker %s does not end; it is killed", child.order.name)
            child.process.kill()
            child.process.wait()
