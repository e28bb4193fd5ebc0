"""Figures out of times: percentiles, and how much the machine did besides. Pure."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from device_profiles.measurement import Percentiles

REPEATS = 5  # parts of a run whose medians are compared


def percentiles(values: Sequence[float]) -> Percentiles:
    """Percentiles by nearest rank, mean and coefficient of variation.

    Args:
        values: Single runs, > 0, in one unit; at least one.
    """
    ordered = sorted(values)

    def rank(share: float) -> float:
        return ordered[max(0, math.ceil(share * len(ordered)) - 1)]

    mean = statistics.fmean(ordered)
    return Percentiles(
        p50=rank(0.5),
        p90=rank(0.9),
        p95=rank(0.95),
        p99=rank(0.99),
        runs=len(ordered),
        mean=mean,
        cov=statistics.pstdev(ordered) / mean,
    )


def repeat_cov(values: Sequence[float], parts: int = REPEATS) -> float | None:
    """Coefficient of variation of the medians of consecutive parts; null with fewer than five values a part."""
    size = len(values) // parts
    if size < 5:
        return None
    medians = [statistics.median(values[index * size : (index + 1) * size]) for index in range(parts)]
    return statistics.pstdev(medians) / statistics.fmean(medians)


@dataclass(frozen=True)
class CpuTimes:
    """Clock ticks of all cores together: since the machine started, or of a stretch of time."""

    busy: int
    idle: int
    steal: int


@dataclass(frozen=True)
class Usage:
    """Shares of all cores' time during a run."""

    steal: float
    other: float  # of processes other than ours


def usage(ticks: CpuTimes, *, own_s: float, ticks_per_s: int) -> Usage | None:
    """What the processors did meanwhile.

    Args:
        ticks: That passed, of all cores.
        own_s: CPU seconds of our own process meanwhile.
        ticks_per_s: Clock ticks a second.

    Returns:
        Null where no tick passed.
    """
    total = ticks.busy + ticks.steal + ticks.idle
    if total <= 0:
        return None
    other = max(0.0, ticks.busy - own_s * ticks_per_s)
    return Usage(steal=max(0.0, ticks.steal / total), other=min(1.0, other / total))
