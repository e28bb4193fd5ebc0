"""Which rounds of a measurement in turn saw the machine at one speed. Pure.

Virtual machines, and boards that throttle, run slower for minutes, and not alike for every kernel. Several networks that take
turns in short rounds see the same speeds; figures of rounds at one speed can be compared with each other.
"""

import statistics
from collections.abc import Sequence

SPEED_WINDOW = 1.06  # rounds within it count as one speed
_HALVES = 6  # subjects; with fewer a change inside a round is not looked for


def steady_rounds(times: Sequence[Sequence[float]]) -> list[int]:
    """The largest set of rounds whose speeds lie within `SPEED_WINDOW`; the faster one of two that are as large.

    A round's speed is the median over the subjects of time over the subject's own median. A round whose first and second half
    differ by more than the window is in no set: the speed changed meanwhile.

    Args:
        times: For each round the time of every subject, > 0, in the order in which they were measured.

    Returns:
        Indices in order; all rounds where every one of them changed its speed.
    """
    usual = [statistics.median(each) for each in zip(*times, strict=True)]
    ratios = [[one / middle for one, middle in zip(row, usual, strict=True)] for row in times]
    speeds = {index: statistics.median(row) for index, row in enumerate(ratios) if not _changed(row)}
    best: list[int] = []
    for fastest in sorted(speeds.values()):
        members = [index for index, speed in speeds.items() if fastest <= speed <= fastest * SPEED_WINDOW]
        best = max(best, members, key=len)  # the first of the largest: the fastest
    return best or list(range(len(times)))


def _changed(ratios: Sequence[float]) -> bool:
    if len(ratios) < _HALVES:
        return False
    half = len(ratios) // 2
    first, second = statistics.median(ratios[:half]), statistics.median(ratios[half:])
    return max(first, second) > SPEED_WINDOW * min(first, second)
