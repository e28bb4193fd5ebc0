"""Which plan to use now: a plan table looked up under the measured link, without flapping and within the deadline.

Pure: the agent calls `Adapter.finished` for each transfer, `Adapter.end_window` once per window, and `Adapter.route`
before each request; it loads the head of `Adapter.current` when that changes.
"""

from dataclasses import dataclass, field
from typing import Literal

from device_profiles.link import Link
from device_profiles.plan_table import Choice, PlanTable
from edge_runtime.link_estimate import LinkEstimate, Transfer

Route = Literal["plan", "local"]


@dataclass(frozen=True)
class Rules:
    """When to change the plan. Changing means loading another head and tail, so it must pay and last."""

    min_gain: float = 0.15  # share of the p50 that a new plan must save
    windows: int = 2  # in a row in which the same other plan must look better
    rest: int = 5  # windows after a change in which only a missed deadline causes another
    guard_ms: float = 2.0  # before the deadline, for waking up and handing over


@dataclass(frozen=True)
class Change:
    """The plan was changed; `why` is one sentence."""

    plan: Choice
    why: str


@dataclass
class Adapter:
    """The current plan of a device, by a table and what transfers show.

    Args:
        table: Checked by `parse_plan_table`.
        rules: See `Rules`.
        estimate: Null: begins with the table's link.
    """

    table: PlanTable
    rules: Rules = Rules()
    estimate: LinkEstimate | None = None
    number: int = field(init=False)  # of the current choice
    _proposed: int = field(init=False, default=-1)
    _streak: int = field(init=False, default=0)
    _rest: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        if self.estimate is None:
            self.estimate = LinkEstimate(self.table.link)
        self.number = self._lookup()

    @property
    def current(self) -> Choice:
        """The plan in use; its `plan_id` goes with every response."""
        return self.table.choices[self.number]

    @property
    def link(self) -> Link:
        """The link as it is estimated now."""
        return self._estimate.link

    def finished(self, *, up_bytes: int, down_bytes: int, link_ms: float, answered: bool = True) -> None:
        """A request of the current plan (or a probe) crossed the link, or was given up after `link_ms` (not `answered`).

        Raises:
            TransferError: Impossible sizes or times.
        """
        self._estimate.add(Transfer(up_bytes, down_bytes, link_ms, answered))

    def saw_round_trip(self, rtt_ms: float) -> None:
        """A round trip that the connection itself shows.

        Raises:
            TransferError: Not a positive time.
        """
        self._estimate.saw_round_trip(rtt_ms)

    def end_window(self) -> Change | None:
        """Close a window; the change of plan, if there is one now.

        A plan is changed when the table's plan for the link saves `min_gain` of the latency, or keeps a deadline that
        the current plan misses, in `windows` windows in a row. A table that is not for the least latency need not save
        any: its plan is taken when it is the same one in `windows` windows in a row and keeps the deadline. A window
        without transfers changes nothing: while all runs locally, the caller sends a probe now and then to see the link again.
        """
        self._rest = max(self._rest - 1, 0)
        if not self._estimate.end_window():
            return None
        proposal = self._lookup()
        why = self._reason(proposal)
        if proposal != self._proposed or why is None:
            self._proposed, self._streak = proposal, 0
        if why is None:
            return None
        self._streak += 1
        if self._streak < self.rules.windows:
            return None
        self.number, self._streak, self._rest = proposal, 0, self.rules.rest
        return Change(self.current, why)

    def route(self, *, remaining_ms: float | None = None) -> Route:
        """Whether a request may follow the plan, or must run locally to keep its deadline.

        Args:
            remaining_ms: Until the deadline; null: the table's deadline. Without any, or without a local plan: "plan".
        """
        left = self.table.deadline_ms if remaining_ms is None else remaining_ms
        if left is None or self.table.local is None or self.current.kind == "local":
            return "plan"
        return "plan" if self.current.latency_p95_ms(self.link) + self.rules.guard_ms <= left else "local"

    def start_fallback_at_ms(self, *, remaining_ms: float) -> float | None:
        """After how many ms without an answer the local model must start; null without one, <= 0: start it now."""
        local = self.table.local
        if local is None:
            return None
        return remaining_ms - self.table.choices[local].device_p95_ms - self.rules.guard_ms

    @property
    def _estimate(self) -> LinkEstimate:
        if self.estimate is None:
            raise AssertionError("set in __post_init__")
        return self.estimate

    def _lookup(self) -> int:
        return self.table.lookup(self.link.up_bytes_per_s, self.link.rtt_ms)

    def _reason(self, proposal: int) -> str | None:
        if proposal == self.number:
            return None
        link, deadline = self.link, self.table.deadline_ms
        new, old = self.table.choices[proposal], self.current
        missed = deadline is not None and old.latency_p95_ms(link) > deadline
        if missed and new.latency_p95_ms(link) <= (deadline or 0.0):
            return f"{old.name} would miss {deadline:g} ms over {link}; {new.name} keeps it"
        tail = self.table.objective == "p95"
        before, after = (one.latency_p95_ms(link) if tail else one.latency_ms(link) for one in (old, new))
        late = deadline is not None and new.latency_p95_ms(link) > deadline
        if self.table.objective not in ("latency", "p95") and not (missed and late):
            return None if self._rest or late else f"{new.name} is better for {self.table.objective} over {link}"
        if self._rest or after > before * (1 - self.rules.min_gain):
            return None
        return f"{new.name} takes {after:.1f} ms over {link} instead of {before:.1f} ms"
