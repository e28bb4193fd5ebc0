"""When a new artefact has proven itself: values in, a verdict out; no clock, no thread."""

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["running", "passed", "failed"]


@dataclass(frozen=True)
class ProbationOptions:
    """Passed after so many answered frames or so many seconds, whichever is first; failed after failures in a row."""

    seconds: float = 30.0
    frames: int | None = 20
    failures: int = 3


class Watch:
    """One artefact on probation.

    Args:
        options: See `ProbationOptions`.
        now: Seconds of a monotonic clock.
    """

    def __init__(self, options: ProbationOptions, now: float) -> None:
        self._options, self._began = options, now
        self._answered = self._in_a_row = 0
        self._last = ""

    def answered(self) -> None:
        """A frame ended with an answer."""
        self._answered += 1
        self._in_a_row = 0

    def failed(self, why: str) -> None:
        """The model could not answer a frame. Links and pictures at fault do not count: call nothing for them."""
        self._in_a_row += 1
        self._last = why

    def verdict(self, now: float) -> Verdict:
        """What is known by now."""
        options = self._options
        if self._in_a_row >= options.failures:
            return "failed"
        if options.frames is not None and self._answered >= options.frames:
            return "passed"
        if now - self._began >= options.seconds and self._in_a_row == 0:
            return "passed"
        return "running"

    @property
    def why(self) -> str:
        """The last failure."""
        return self._last
