"""Probation on a device: watches what was activated, commits it or sends it back, and tells the host."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator

from device_profiles.errors import EdgeError
from edge_runtime.messages import DeployState, DeployStatus
from edge_runtime.offload import TailError
from edge_runtime.pipeline import LabelError
from edge_runtime.probation import ProbationOptions, Watch
from edge_runtime.session import EngineError
from edge_runtime.slots import Probation, SlotStore

log = logging.getLogger(__name__)
_AT_FAULT = (EngineError, TailError, LabelError)  # a lost link or a broken picture is not the model's fault


class ProbationError(EdgeError):
    """What was activated did not prove itself."""


class Trial:
    """What is on probation in a store. `answered`, `failed` and `verdict` are called from the agent's main loop.

    Args:
        store: Holds the probation.
        options: Where the deployment said nothing.
        boot: Of the agent.
        report: Sends a status to the host.
        clock: Seconds, never going back.
    """

    def __init__(
        self,
        store: SlotStore,
        options: ProbationOptions,
        *,
        boot: str,
        report: Callable[[DeployStatus], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._options, self._boot, self._report, self._clock = store, options, boot, report, clock
        self._lock = threading.Lock()
        self._watch: Watch | None = None
        self._uncommitted = ""  # why, as it was said
        self.begin()

    def begin(self) -> None:
        """Something was activated, or the agent starts: watch from now on."""
        pending = self._store.probation
        with self._lock:
            self._watch = None if pending is None else Watch(self._asked(pending), self._clock())

    @contextlib.contextmanager
    def suspended(self) -> Iterator[None]:
        """While something is being activated nothing is judged; afterwards what is on probation then."""
        with self._lock:
            self._watch = None
        try:
            yield
        finally:
            self.begin()

    def survived_starts(self) -> bool:
        """Count this start; False when what is on probation has ended the agent too often, or nobody can know."""
        try:
            return self._store.count_start()
        except OSError as error:
            log.error("Wanted to count this start, found: %s. Make room on the disk.", error)
            return False

    def note(self, error: EdgeError | None) -> None:
        """How a frame ended."""
        with self._lock:
            if self._watch is None:
                return
            if error is None:
                self._watch.answered()
            elif isinstance(error, _AT_FAULT):
                self._watch.failed(f"{type(error).__name__}: {error}")

    def judge(self) -> ProbationError | None:
        """Commit what has proven itself; an error when it has to go."""
        pending = None
        with self._lock:
            watch = self._watch
            verdict = "running" if watch is None else watch.verdict(self._clock())
            if verdict != "running":
                self._watch = None
            if verdict == "passed":
                pending = self._commit(watch)
        if pending is not None:
            self.tell(pending, "committed")
        if watch is not None and verdict == "failed":
            return ProbationError(f"Wanted answers while on probation, found: {watch.why}")
        return None

    def _commit(self, watch: Watch | None) -> Probation | None:
        """What was on probation; null, and on probation still, where that cannot be written now."""
        try:
            return self._store.commit()
        except OSError as error:
            if self._uncommitted != str(error):
                self._uncommitted = str(error)
                log.error("Wanted to commit what has proven itself, found: %s. It is tried again.", error)
            self._watch = watch
            return None

    def roll_back(self, why: Exception, told: Probation | None = None) -> None:
        """Let what was committed before run again, and tell the host; the caller builds it.

        Args:
            why: For the host.
            told: What the host wants to be left, when nothing is on probation.
        """
        pending = self._store.probation or told
        log.error("going back to what ran before: %s", why)
        try:
            self._store.roll_back()
            self._store.problem = f"{type(why).__name__}: {why}"[:500]
        except OSError as error:
            log.error("Wanted to keep that it goes back, found: %s. It does so until the next start.", error)
            self._store.fall_back(self._store.previous, why)
        with self._lock:
            self._watch = None
        if pending is not None:
            self.tell(pending, "rolled-back", why)

    def tell(self, pending: Probation, state: DeployState, why: Exception | None = None) -> None:
        """Say what became of it."""
        name = None if why is None else type(why).__name__
        error = None if why is None else f"{name}: {why}"[:500]
        self._report(
            DeployStatus(
                boot=self._boot,
                transfer=pending.transfer,
                artefact=pending.artefact,
                state=state,
                code=name,
                error=error,
            )
        )

    def _asked(self, pending: Probation) -> ProbationOptions:
        options = self._options
        if pending.seconds is None and pending.frames is None:
            return options
        seconds = options.seconds if pending.seconds is None else pending.seconds
        return ProbationOptions(seconds, pending.frames, options.failures)
