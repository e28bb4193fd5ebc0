"""How sure a mean over pictures is: bootstrap intervals, alone and as a difference of two ways on the same pictures."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

ROUNDS = 2000
_SHARES = (2.5, 97.5)  # percentiles: 95 % intervals


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval."""

    value: float
    low: float
    high: float


def bootstrap_mean(values: npt.ArrayLike, *, rounds: int = ROUNDS, seed: int = 0) -> Estimate:
    """The mean of one value for each picture, and the interval of means when pictures are drawn again.

    Args:
        values: Shape (pictures,).
        rounds: Of drawing as many pictures as there are, with replacement.
        seed: Of the draws.

    Source: Efron and Tibshirani 1993, chapter 13 (percentile interval).
    """
    array = np.asarray(values, np.float64)
    generator = np.random.default_rng(seed)
    means = [array[generator.integers(0, len(array), len(array))].mean() for _ in range(rounds)]
    low, high = np.percentile(means, _SHARES)
    return Estimate(float(array.mean()), float(low), float(high))


def paired_difference(first: npt.ArrayLike, second: npt.ArrayLike, *, rounds: int = ROUNDS, seed: int = 0) -> Estimate:
    """Mean of `first` minus `second`, picture by picture: what both have in common does not widen the interval.

    Args:
        first: One value for each picture, for example 1 where the answer is right.
        second: The same pictures in the same order.
        rounds: As in `bootstrap_mean`.
        seed: As in `bootstrap_mean`.
    """
    difference = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    return bootstrap_mean(difference, rounds=rounds, seed=seed)
