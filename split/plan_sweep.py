"""The same candidates over many links: where one plan breaks even with another, and the table that a device looks up."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from device_profiles.link import Link
from device_profiles.plan_table import MAX_CHOICES, PlanTable, check_plan_table
from split.plan import Goal, Plan, PlanError, Power, make_plan, prune
from split.plan_heads import Candidate

GRID_RATES = tuple(125e3 * 10 ** (step / 8) / 10 for step in range(25))  # 0.1 to 100 Mbit/s, 24 steps
GRID_RTTS_MS = (5.0, 20.0, 80.0)


@dataclass(frozen=True)
class Stretch:
    """Over these rates up (bytes per second) one candidate is best; null where none keeps the constraints."""

    from_rate: float
    to_rate: float
    best: Candidate | None


def break_even(
    candidates: Sequence[Candidate], link: Link, goal: Goal, *, power: Power | None = None,
    rates: tuple[float, float] = (GRID_RATES[0], GRID_RATES[-1]),
) -> tuple[Stretch, ...]:  # fmt: skip
    """Split a range of link rates where the best candidate changes, to 0.5 % of the rate.

    Args:
        candidates: As for `make_plan`.
        link: Everything but the rate.
        goal: As for `make_plan`.
        power: As for `make_plan`.
        rates: Lowest and highest rate up, bytes per second.
    """
    few = prune(candidates, goal)
    grid = [rates[0] * (rates[1] / rates[0]) ** (step / 96) for step in range(97)]
    found = [_best(few, link.at_rate(rate), goal, power) for rate in grid]
    stretches: list[Stretch] = []
    start = grid[0]
    for left, right, before, after in zip(grid, grid[1:], found, found[1:], strict=False):
        if before is not after:
            low, high = left, right
            while high / low > 1.005:
                middle = math.sqrt(low * high)
                low, high = (middle, high) if _best(few, link.at_rate(middle), goal, power) is before else (low, middle)
            stretches.append(Stretch(start, high, before))
            start = high
    return (*stretches, Stretch(start, grid[-1], found[-1]))


def make_table(
    candidates: Sequence[Candidate], link: Link, goal: Goal, *, names: tuple[str, str, str], power: Power | None = None,
    rates: Sequence[float] = GRID_RATES, rtts_ms: Sequence[float] = GRID_RTTS_MS,
) -> PlanTable:  # fmt: skip
    """The plan for each point of a grid of rate x round trip, with the local model as the first choice if there is one.

    A point where nothing keeps the deadline gets the candidate with the least p95.

    Args:
        candidates: As for `make_plan`.
        link: Jitter, costs and ratio of the rates.
        goal: As for `make_plan`.
        names: Model, board id of the device, host.
        power: As for `make_plan`.
        rates: Up, bytes per second, ascending.
        rtts_ms: Ascending.

    Raises:
        PlanError: Nothing keeps the other constraints anywhere, or too many different choices.
    """
    few = prune(candidates, goal)
    if not few:
        make_plan(candidates, link, goal, power)  # says which constraints
    relaxed = Goal("p95", None, goal.min_accuracy, goal.flash_bytes, goal.ram_bytes, goal.weights_in_ram)
    allowed = [one for one in few if one.choice.kind == "local" and _best([one], link, relaxed, power) is not None]
    chosen: list[Candidate] = allowed[:1]
    cells = []
    for rate in rates:
        row = []
        for rtt in rtts_ms:
            there = link.at_rate(rate, rtt)
            best = _best(few, there, goal, power) or make_plan(few, there, relaxed, power).chosen.candidate
            if best not in chosen:
                chosen.append(best)
            row.append(chosen.index(best))
        cells.append(tuple(row))
    if len(chosen) > MAX_CHOICES:
        raise PlanError(f"Wanted at most {MAX_CHOICES} different plans, found {len(chosen)}. Use a coarser grid.")
    return check_plan_table(
        PlanTable(
            model=names[0],
            device=names[1],
            host=names[2],
            rates_bytes_per_s=tuple(float(rate) for rate in rates),
            rtts_ms=tuple(float(rtt) for rtt in rtts_ms),
            choices=tuple(one.choice for one in chosen),
            cells=tuple(cells),
            link=link,
            deadline_ms=goal.deadline_ms,
            min_accuracy=goal.min_accuracy,
            objective=goal.objective,
        )
    )


def _best(candidates: Sequence[Candidate], link: Link, goal: Goal, power: Power | None) -> Candidate | None:
    plan = _plan_or_none(candidates, link, goal, power)
    return None if plan is None else plan.chosen.candidate


def _plan_or_none(candidates: Sequence[Candidate], link: Link, goal: Goal, power: Power | None) -> Plan | None:
    if goal.objective == "energy" and power is None:
        return make_plan(candidates, link, goal, power)  # says what is missing
    try:
        return make_plan(candidates, link, goal, power)
    except PlanError:
        return None
