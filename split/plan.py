"""Which of {all local, cut here, bottleneck there, send the picture} is best under a link, limits and an objective.

Values in, values out. A plan is chosen among priced candidates that keep every constraint; what was left out is
reported with its reason, and an accuracy or size that is not known never counts as good enough.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np

from device_profiles.errors import EdgeError
from device_profiles.link import Link
from device_profiles.plan_table import Choice, Objective
from split.plan_heads import Candidate

_NOT_WORTH = 0.02  # a split that gains less than this share is not worth a second artefact


class PlanError(EdgeError):
    """Nothing can be planned: no candidate keeps the constraints, or a figure is out of range."""


@dataclass(frozen=True)
class Power:
    """Of the device, watts. `origin` says where from: measured, stated or datasheet."""

    idle_w: float
    active_w: float
    tx_w: float | None = None  # while sending; null: as while computing, an upper bound
    origin: str = "stated"

    def __post_init__(self) -> None:
        values = [self.idle_w, self.active_w, *([] if self.tx_w is None else [self.tx_w])]
        if not all(math.isfinite(value) and value >= 0 for value in values):
            raise PlanError(f"Wanted finite powers >= 0 W, found {values}.")


@dataclass(frozen=True)
class Goal:
    """What is wanted. Null limits are not asked for; sizes in bytes."""

    objective: Objective = "latency"
    deadline_ms: float | None = None  # on the p95
    min_accuracy: float | None = None
    flash_bytes: int | None = None  # for weights, on a microcontroller
    ram_bytes: int | None = None  # for activations, and for weights too where they are loaded into it
    weights_in_ram: bool = True

    def __post_init__(self) -> None:
        if self.objective not in get_args(Objective):
            raise PlanError(f"Wanted an objective of {', '.join(get_args(Objective))}, found {self.objective!r}.")
        if self.deadline_ms is not None and not 0 < self.deadline_ms < math.inf:
            raise PlanError(f"Wanted a deadline above 0 ms, found {self.deadline_ms}.")
        if self.min_accuracy is not None and not 0 <= self.min_accuracy <= 1:
            raise PlanError(f"Wanted a least accuracy of 0 to 1, found {self.min_accuracy}.")


@dataclass(frozen=True)
class Priced:
    """A candidate over one link."""

    candidate: Candidate
    p50_ms: float
    p95_ms: float
    energy_mj: float | None  # of the device; null where a power is not known
    uplink_bytes: float  # mean: an early exit sends nothing for its share


@dataclass(frozen=True)
class Plan:
    """The answer. `front` is ordered by p50; `left_out` counts candidates by the reason they were not considered."""

    chosen: Priced
    front: tuple[Priced, ...]
    reason: str
    left_out: dict[str, int]
    remarks: tuple[str, ...] = ()

    @property
    def splits(self) -> bool:
        """Whether the network is cut between device and host."""
        return self.chosen.candidate.choice.kind == "split"


def price(candidate: Candidate, link: Link, power: Power | None = None) -> Priced:
    """Latency, device energy and bytes of one request.

    E = P_active t_device + P_tx t_up + P_idle t_wait, in mJ; t_up is how long sending keeps the radio busy, t_wait the
    rest of the round trip.
    """
    choice = candidate.choice
    p50 = choice.latency_ms(link)
    share = 0.0 if choice.kind == "local" else choice.remote_share
    energy = None
    if power is not None:
        sending = share * link.occupied_ms(choice.up_bytes)
        waiting = max(p50 - choice.device_ms - sending, 0.0)
        tx_w = power.active_w if power.tx_w is None else power.tx_w
        energy = power.active_w * choice.device_ms + tx_w * sending + power.idle_w * waiting
    return Priced(candidate, p50, choice.latency_p95_ms(link), energy, share * choice.up_bytes)


def make_plan(candidates: Sequence[Candidate], link: Link, goal: Goal, power: Power | None = None) -> Plan:
    """Choose one candidate and give the Pareto front of those that keep the constraints.

    Raises:
        PlanError: No candidate is left, with the reasons; or energy is the objective and the powers are not known.
    """
    if goal.objective == "energy" and power is None:
        raise PlanError(
            "Wanted idle and active power for the least energy, found none. State them: --power idle=..,active=..."
        )
    left_out: Counter[str] = Counter()
    kept: list[Priced] = []
    for candidate in candidates:
        priced = price(candidate, link, power)
        why = broken_rule(priced, goal)
        if why is None:
            kept.append(priced)
        else:
            left_out[why] += 1
    if not kept:
        reasons = ", ".join(f"{count} {why}" for why, count in left_out.most_common()) or "none were given"
        raise PlanError(
            f"Wanted a plan that keeps every constraint over {link}, found none among {len(candidates)} candidates: "
            f"{reasons}. Relax the deadline or floor, state accuracies (--accuracy, --variants), or take a larger board."
        )
    chosen = min(kept, key=lambda priced: _key(priced, goal.objective))
    if goal.objective == "accuracy" and chosen.candidate.accuracy is None:
        raise PlanError(
            f"Wanted a plan of known accuracy that keeps every constraint over {link}, found none. State it: --accuracy, --variants."
        )
    local = next((one for one in kept if one.candidate.choice.kind == "local"), None)
    if local is not None and _about_equal(local, chosen, goal.objective):
        chosen = local
    return Plan(chosen, pareto_front(kept), say_why(chosen, kept, link, goal), dict(left_out), _remarks(goal, power))


def broken_rule(priced: Priced, goal: Goal) -> str | None:
    """The first constraint that a candidate breaks, in words; null when it keeps all."""
    why = broken_anywhere(priced.candidate, goal)
    if why is None and goal.deadline_ms is not None and priced.p95_ms > goal.deadline_ms:
        return "miss the deadline"
    return why


def broken_anywhere(candidate: Candidate, goal: Goal) -> str | None:
    """As `broken_rule`, for what does not depend on the link."""
    if candidate.unsupported:
        return "need operators that the device does not support"
    if goal.flash_bytes is not None:
        if candidate.weight_bytes is None:
            return "have weights of unknown size"
        if candidate.weight_bytes > goal.flash_bytes:
            return "do not fit the flash"
    if goal.ram_bytes is not None and goal.weights_in_ram and candidate.rss_bytes is not None:
        if candidate.rss_bytes > goal.ram_bytes:
            return "do not fit the memory"
    elif goal.ram_bytes is not None:
        if candidate.peak_bytes is None or (goal.weights_in_ram and candidate.weight_bytes is None):
            return "need memory of unknown size"
        weights = candidate.weight_bytes if goal.weights_in_ram else 0
        if candidate.peak_bytes + (weights or 0) > goal.ram_bytes:
            return "do not fit the memory"
    if goal.min_accuracy is not None:
        if candidate.accuracy is None:
            return "have no known accuracy"
        if candidate.accuracy < goal.min_accuracy:
            return "are below the accuracy floor"
    return None


def pareto_front(priced: Sequence[Priced]) -> tuple[Priced, ...]:
    """Those that no other beats or equals in p50, p95, energy, uplink bytes and accuracy at once; of equals, the first."""
    ordered = sorted(
        priced, key=lambda one: (one.p50_ms, one.p95_ms, one.uplink_bytes, one.energy_mj or 0.0, _loss(one))
    )
    kept: list[Priced] = []
    rows = np.empty((0, 5))
    for one in ordered:
        row = np.array([one.p50_ms, one.p95_ms, one.energy_mj or 0.0, one.uplink_bytes, _loss(one)])
        if not len(rows) or not (rows <= row).all(axis=1).any():
            kept.append(one)
            rows = np.vstack([rows, row])
    return tuple(kept)


def prune(candidates: Sequence[Candidate], goal: Goal) -> list[Candidate]:
    """Leave out candidates that break a constraint over every link, or that another beats or equals over every link."""
    candidates = [one for one in candidates if broken_anywhere(one, goal) is None]
    kept: dict[str, list[Candidate]] = {}
    rows: dict[str, np.ndarray] = {}
    for candidate in sorted(candidates, key=lambda one: tuple(_link_free(one))):
        kind, row = candidate.choice.kind, np.array(_link_free(candidate))
        known = rows.get(kind, np.empty((0, len(row))))
        if not len(known) or not (known <= row).all(axis=1).any():
            kept.setdefault(kind, []).append(candidate)
            rows[kind] = np.vstack([known, row])
    return [candidate for group in kept.values() for candidate in group]


def say_why(chosen: Priced, kept: Sequence[Priced], link: Link, goal: Goal) -> str:
    """One sentence: what to do, and against what it was weighed."""
    name = chosen.candidate.choice.name
    splits = [one for one in kept if one.candidate.choice.kind == "split"]
    others = [one for one in kept if one.candidate.choice.kind != "split"]
    key = lambda one: _key(one, goal.objective)  # noqa: E731
    if chosen.candidate.choice.kind == "split":
        if not others:
            return f"Split: {name} takes {_figures(chosen, goal)}, and nothing but a split keeps the constraints over {link}."
        rival = min(others, key=key)
        return f"Split: {name} takes {_figures(chosen, goal)} over {link}, {rival.candidate.choice.name} {_figures(rival, goal)}."
    if not splits:
        return f"Do not split: {name} takes {_figures(chosen, goal)}, and no split keeps the constraints over {link}."
    rival = min(splits, key=key)
    away = rival.candidate.choice.away_ms(link)
    return (
        f"Do not split: {name} takes {_figures(chosen, goal)} over {link}, the best split "
        f"({rival.candidate.choice.name}) {_figures(rival, goal)}, {format_ms(away)} of it on the link."
    )


def local_choice(device_ms: float, device_p95_ms: float) -> Choice:
    """The whole model on the device.

    Raises:
        PlanError: Times that are not positive and finite.
    """
    _check_times(device_ms, device_p95_ms)
    return Choice(name="the whole model on the device", kind="local", device_ms=device_ms, device_p95_ms=device_p95_ms)


def _check_times(*times: float) -> None:
    if not all(math.isfinite(time) and time > 0 for time in times):
        raise PlanError(f"Wanted positive finite times, found {times} ms.")


def _key(priced: Priced, objective: Objective) -> tuple[float, ...]:
    energy = priced.energy_mj or 0.0
    main = {
        "latency": priced.p50_ms, "p95": priced.p95_ms, "energy": energy, "uplink": priced.uplink_bytes, "accuracy": _loss(priced),
    }[objective]  # fmt: skip
    return (main, priced.p50_ms, priced.uplink_bytes, priced.p95_ms)


def _loss(priced: Priced) -> float:
    """Minus the accuracy; one that is not known is the least."""
    accuracy = priced.candidate.accuracy
    return 0.0 if accuracy is None else -accuracy


def _about_equal(local: Priced, chosen: Priced, objective: Objective) -> bool:
    if objective == "accuracy":
        return _loss(local) == _loss(chosen) and _about_equal(local, chosen, "latency")
    mine, best = _key(local, objective)[0], _key(chosen, objective)[0]
    return mine * (1 - _NOT_WORTH) <= best


def _link_free(candidate: Candidate) -> list[float]:
    choice = candidate.choice
    away = choice.remote_share if choice.kind != "local" else 0.0
    return [
        choice.device_ms,
        choice.device_p95_ms,
        choice.host_ms,
        choice.host_p95_ms,
        choice.up_bytes,
        choice.down_bytes,
        away,
        -1.0 if candidate.accuracy is None else -candidate.accuracy - 1.0,
        len(candidate.unsupported),
    ]


def _figures(priced: Priced, goal: Goal) -> str:
    if goal.objective == "energy" and priced.energy_mj is not None:
        return f"{priced.energy_mj:.3g} mJ ({format_ms(priced.p50_ms)})"
    if goal.objective == "accuracy" and priced.candidate.accuracy is not None:
        return f"{format_ms(priced.p50_ms)} and is right in {100 * priced.candidate.accuracy:.1f} %"
    if goal.objective == "uplink":
        return f"{priced.uplink_bytes:.0f} B ({format_ms(priced.p50_ms)})"
    return f"{format_ms(priced.p95_ms)} (p95)" if goal.objective == "p95" else format_ms(priced.p50_ms)


def format_ms(ms: float) -> str:
    """Three digits below 10 ms, else one behind the point."""
    return f"{ms:.1f} ms" if ms >= 10 else f"{ms:.3g} ms"


def _remarks(goal: Goal, power: Power | None) -> tuple[str, ...]:
    remarks = []
    if goal.ram_bytes is None:
        remarks.append("Memory of the device is not known or not given: not checked.")
    if power is None:
        remarks.append("Power of the device is not known: energy is not compared.")
    else:
        remarks.append(f"Energy from {power.origin} powers.")
    return tuple(remarks)
