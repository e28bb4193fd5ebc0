"""The state of offloaded requests: which are open, which deadline they have, whether the tail is worth asking.

Values in, values out; no clock, no thread, no socket. Times are seconds of a monotonic clock that the caller reads.
"""

from collections.abc import Callable
from dataclasses import dataclass

from device_profiles.errors import EdgeError
from edge_runtime.wire import Reply


class OffloadError(EdgeError):
    """A request has no answer."""


class DeadlineError(OffloadError):
    """No answer came before the deadline, and there is no local fallback that would have."""


class TailError(OffloadError):
    """The tail answered with an error."""


class TailUnavailableError(OffloadError):
    """The tail is not asked at the moment: no connection, or too many requests in a row went without an answer."""


@dataclass(slots=True)
class Ticket:
    """One open request. `on_end` is called once: when an answer arrives in time, or the connection is lost."""

    request_id: bytes
    deadline: float
    on_end: Callable[[], object]
    reply: Reply | None = None
    body: memoryview | None = None
    answered_at: float = 0.0  # seconds, as the deadline


@dataclass(slots=True)
class Counters:
    """How requests ended, since the start; exits count as local. `remote + local + failed` is the number of requests that have ended."""

    remote: int = 0
    local: int = 0
    failed: int = 0
    late: int = 0  # answers to requests that had already ended

    def plus(self, other: "Counters") -> "Counters":
        """The sums."""
        return Counters(
            self.remote + other.remote, self.local + other.local, self.failed + other.failed, self.late + other.late
        )


class Pending:
    """Open requests by id. Whoever takes a request out ends it: an answer or the waiting caller, never both."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open: dict[bytes, Ticket] = {}
        self.late = 0

    def __len__(self) -> int:
        """How many are open."""
        return len(self._open)

    def add(self, ticket: Ticket) -> bool:
        """Open a request; False when as many as allowed are open already."""
        if len(self._open) >= self._limit:
            return False
        self._open[ticket.request_id] = ticket
        return True

    def answer(self, reply: Reply, body: memoryview, now: float = 0.0) -> bool:
        """End a request by its reply that came `now`; False, and counted, when it has ended already or never was."""
        ticket = self._open.pop(reply.request_id, None)
        if ticket is None:
            self.late += 1
            return False
        ticket.reply, ticket.body, ticket.answered_at = reply, body, now
        ticket.on_end()
        return True

    def give_up_all(self) -> int:
        """End every open request without an answer, as the connection is gone; how many there were."""
        tickets = list(self._open.values())
        self._open.clear()
        for ticket in tickets:
            ticket.on_end()
        return len(tickets)

    def give_up(self, request_id: bytes) -> bool:
        """End a request without an answer; False when its answer came first."""
        return self._open.pop(request_id, None) is not None


class Breaker:
    """Stops asking a tail that does not answer; asks again, one request at a time, after a pause that doubles."""

    def __init__(self, *, failures: int = 3, pause_s: float = 0.5, max_pause_s: float = 8.0) -> None:
        self._threshold = failures
        self._first_pause_s = pause_s
        self._max_pause_s = max_pause_s
        self._pause_s = pause_s
        self._failures = 0
        self._closed_again_at = 0.0
        self._probing = False

    @property
    def is_open(self) -> bool:
        """Whether requests are held back."""
        return self._failures >= self._threshold

    def allow(self, now: float) -> bool:
        """Whether to ask the tail now; True while open means: this request is the probe."""
        if not self.is_open:
            return True
        if self._probing or now < self._closed_again_at:
            return False
        self._probing = True
        return True

    def succeeded(self) -> None:
        """The tail answered."""
        self._failures, self._probing, self._pause_s = 0, False, self._first_pause_s

    def failed(self, now: float) -> None:
        """No answer in time, or no way to ask."""
        if self._probing:
            self._pause_s = min(2 * self._pause_s, self._max_pause_s)
        self._probing = False
        self._failures = min(self._failures + 1, self._threshold)
        if self.is_open:
            self._closed_again_at = now + self._pause_s

    def reset(self) -> None:
        """Ask again at once: what is asked has changed."""
        self.succeeded()

    def released(self) -> None:
        """The probe ended without telling anything of the tail."""
        self._probing = False


class Estimate:
    """Smoothed duration with a margin: mean plus four mean deviations, as TCP does it (RFC 6298, section 2)."""

    def __init__(self, first_s: float) -> None:
        self.mean_s = first_s
        self._deviation = first_s / 8
        self._least = first_s

    def add(self, seconds: float) -> None:
        """One more measurement."""
        self._deviation += (abs(seconds - self.mean_s) - self._deviation) / 4
        self.mean_s += (seconds - self.mean_s) / 8
        self._least = min(self._least, seconds)

    def relax(self) -> None:
        """Forget outliers, when the estimate itself is why nothing is measured any more."""
        self.mean_s += (self._least - self.mean_s) / 8
        self._deviation *= 7 / 8

    @property
    def upper_s(self) -> float:
        """What it will hardly exceed."""
        return self.mean_s + 4 * self._deviation


def remote_wait_s(now: float, deadline: float, fallback_s: float | None, *, margin_s: float) -> float:
    """How long to wait for the tail so that a local fallback still ends in time; <= 0 means: do not ask.

    Args:
        now: Seconds.
        deadline: Seconds, same clock.
        fallback_s: What the fallback will hardly exceed; None without a fallback that can end in time.
        margin_s: For waking up and handing over.
    """
    if fallback_s is None:
        return deadline - now
    return deadline - now - fallback_s - margin_s
