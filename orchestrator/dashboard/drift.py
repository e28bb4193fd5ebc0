"""Does a model still see what it saw at first? Compares how sure it is now with how sure it was. Values in, values out."""

import math
from collections import deque
from collections.abc import Sequence

BINS = 10
REFERENCE_COUNT = 500  # answers that make up the reference
RECENT_COUNT = 500
LEAST_COUNT = 200  # below, chance alone moves the index too far
WATCH, ALERT = 0.1, 0.25  # the usual reading of the index (Siddiqi 2006, Credit Risk Scorecards)


def stability_index(reference: Sequence[int], recent: Sequence[int]) -> float:
    """Population stability index of two histograms: sum of (p - q) ln(p / q), half a count added to every bin.

    Args:
        reference: Counts of each bin at first.
        recent: Counts of the same bins now.
    """
    p_all, q_all = sum(recent) + 0.5 * len(recent), sum(reference) + 0.5 * len(reference)
    total = 0.0
    for before, now in zip(reference, recent, strict=True):
        p, q = (now + 0.5) / p_all, (before + 0.5) / q_all
        total += (p - q) * math.log(p / q)
    return total


class Confidence:
    """How sure a model was, in its first answers and in its newest ones."""

    def __init__(self) -> None:
        self.reference = [0] * BINS
        self.recent = [0] * BINS
        self._window: deque[int] = deque()

    def add(self, score: float) -> None:
        """One answer's highest probability; scores that are none are left out."""
        if not 0.0 <= score <= 1.0:
            return
        index = min(BINS - 1, int(score * BINS))
        if sum(self.reference) < REFERENCE_COUNT:
            self.reference[index] += 1
            return
        self._window.append(index)
        self.recent[index] += 1
        if len(self._window) > RECENT_COUNT:
            self.recent[self._window.popleft()] -= 1

    @property
    def index(self) -> float | None:
        """The stability index; null while there are too few answers."""
        if len(self._window) < LEAST_COUNT:
            return None
        return stability_index(self.reference, self.recent)

    @property
    def shown(self) -> Sequence[int]:
        """The newest histogram that there is."""
        return self.recent if self._window else self.reference
