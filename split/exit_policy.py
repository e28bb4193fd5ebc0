"""When a picture's answer leaves early: a calibrated confidence against a threshold, both chosen on validation pictures."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from device_profiles.errors import EdgeError
from split.quality import accuracy, calibration_error

F64 = npt.NDArray[np.float64]
Logits = npt.NDArray[np.floating]
Labels = npt.NDArray[np.integer]

_COLDEST, _HOTTEST = 0.05, 20.0
_SEARCH_STEPS = 60
_DRAWS = 500
_DRAWS_AT_ONCE = 50  # bounds the memory
_NEWTON_STEPS = 8
_LEAST_DOUBT = 1e-6
_ROUNDING = 1e-9  # of sums of expected answers


class ExitError(EdgeError):
    """No policy can be chosen from what was given."""


@dataclass(frozen=True)
class ExitPolicy:
    """A picture leaves when the largest of softmax(logits / temperature) is at least the threshold.

    Attributes:
        temperature: > 0; makes confidences mean what they say.
        threshold: In [0, 1]; above 1 nothing leaves.
    """

    temperature: float
    threshold: float


@dataclass(frozen=True)
class ExitReport:
    """What a policy does to a set of pictures.

    Attributes:
        share: Of the pictures that leave early and send nothing, in [0, 1].
        accuracy: Of the exit and the tail together.
        tail_accuracy: Of the tail alone.
        calibration_error: Of the exit on all pictures, after its temperature.
        uncalibrated_error: The same at temperature 1.
    """

    share: float
    accuracy: float
    tail_accuracy: float
    calibration_error: float
    uncalibrated_error: float


def fit_temperature(logits: Logits, labels: Labels) -> float:
    """The temperature with the least cross entropy, in [0.05, 20].

    Args:
        logits: Of validation pictures, (n, classes).
        labels: (n,).

    Raises:
        ExitError: No pictures.

    Source: Guo et al. 2017 (arXiv:1706.04599), section 4.2. The cross entropy is convex in 1 / temperature, so a search
    by golden sections finds the minimum.
    """
    _check(logits, labels)
    low, high = 1 / _HOTTEST, 1 / _COLDEST
    golden = (math.sqrt(5) - 1) / 2
    left, right = high - golden * (high - low), low + golden * (high - low)
    at_left, at_right = _cross_entropy(logits * left, labels), _cross_entropy(logits * right, labels)
    for _ in range(_SEARCH_STEPS):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - golden * (high - low)
            at_left = _cross_entropy(logits * left, labels)
        else:
            low, left, at_left = left, right, at_right
            right = low + golden * (high - low)
            at_right = _cross_entropy(logits * right, labels)
    return 2 / (low + high)


def confidence(logits: Logits, temperature: float) -> F64:
    """Largest probability of each picture, (n,), from logits (n, classes)."""
    values = logits.astype(np.float64) / temperature
    largest: F64 = 1 / np.exp(values - values.max(1, keepdims=True)).sum(1)
    return largest


def choose_policy(
    exit_logits: Logits, tail_logits: Logits, labels: Labels, *, max_loss: float = 0.005, sureness: float = 0.9
) -> ExitPolicy:
    """Temperature and threshold with which most pictures leave at an accuracy loss of at most `max_loss`.

    The threshold that just holds on a few hundred pictures is the luckiest one, and loses more on others. So it has to hold, as
    has every higher one, when the pictures are drawn again as well. What is lost in a draw is not counted, as an error or two
    decide there, but expected: two logistic curves over the confidence say how often exit and tail are right.

    Args:
        exit_logits: Of the exit, validation pictures, (n, classes).
        tail_logits: Of the tail for the same pictures.
        labels: (n,).
        max_loss: Of accuracy against the tail alone, as a share.
        sureness: In how many of the draws, as a share, in [0, 1); 0 for these pictures alone.

    Returns:
        The policy; its threshold is above 1 where no picture may leave.

    Raises:
        ExitError: No pictures, or logits that do not belong together.

    Source: bootstrap, Efron and Tibshirani 1993, chapter 13; a logistic curve over the logit of a confidence, Platt 1999.
    """
    _check(exit_logits, labels)
    _check(tail_logits, labels)
    temperature = fit_temperature(exit_logits, labels)
    sure = confidence(exit_logits, temperature)
    order = np.argsort(-sure, kind="stable")
    sure = sure[order]
    ends = np.append(sure[1:] < sure[:-1], [True])  # equal confidences leave together
    early, late = ((one.argmax(1) == labels)[order].astype(np.float64) for one in (exit_logits, tail_logits))
    most = _leaving(early - late, ends, max_loss)
    if sureness:
        count = len(labels)
        drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), _DRAWS)  # how often each picture
        evidence = _log_odds(sure)
        gains = [
            some * (_expected(evidence, early, some) - _expected(evidence, late, some))
            for some in np.array_split(drawn, _DRAWS // _DRAWS_AT_ONCE)
        ]
        leaving = np.sort([_leaving(row, ends, max_loss) for some in gains for row in some])
        most = min(most, leaving[int((1 - sureness) * (_DRAWS - 1))])
    return ExitPolicy(temperature, float(sure[most - 1]) if most else 2.0)


def _log_odds(sure: F64) -> F64:
    """Confidences, (n,), to (n, 2): 1, and the logarithm of their odds."""
    kept = sure.clip(_LEAST_DOUBT, 1 - _LEAST_DOUBT)
    return np.stack([np.ones_like(kept), np.log(kept / (1 - kept))], 1)


def _expected(evidence: F64, right: F64, times: npt.NDArray[np.int64]) -> F64:
    """Probability of a right answer, (draws, n): logistic regression on pictures that occur so many `times` in each draw.

    A normal prior of deviation 1 around the confidence itself keeps it finite where all answers are right.
    """
    prior = np.array([0.0, 1.0])
    weights = np.tile(prior, (len(times), 1))  # (draws, 2)
    products = (evidence[:, :, None] * evidence[:, None, :]).reshape(-1, 4)
    for _ in range(_NEWTON_STEPS):
        chance = 1 / (1 + np.exp(-weights @ evidence.T))  # (draws, n)
        slope = (times * (right - chance)) @ evidence - (weights - prior)
        bend = ((times * chance * (1 - chance)) @ products).reshape(-1, 2, 2) + np.eye(2)
        step = np.linalg.solve(bend, slope[:, :, None])[:, :, 0]
        weights = weights + step / np.abs(step).max(1, keepdims=True).clip(min=1)
    found: F64 = 1 / (1 + np.exp(-weights @ evidence.T))
    return found


def _leaving(gain: F64, ends: npt.NDArray[np.bool_], max_loss: float) -> int:
    """How many of the surest may leave before the loss is ever larger than allowed; between `ends` none can stop."""
    total = np.cumsum(gain)  # change of right answers when the surest 1, 2, ... pictures leave
    wrong = np.flatnonzero((total < -max_loss * len(gain) - _ROUNDING) & ends)
    before = np.flatnonzero(ends[: wrong[0]] if len(wrong) else ends)
    return int(before[-1]) + 1 if len(before) else 0


def measure_policy(policy: ExitPolicy, exit_logits: Logits, tail_logits: Logits, labels: Labels) -> ExitReport:
    """What a policy does to pictures that it was not chosen on; shapes as in `choose_policy`."""
    _check(exit_logits, labels)
    _check(tail_logits, labels)
    leaves = confidence(exit_logits, policy.temperature) >= policy.threshold
    both = np.where(leaves[:, None], exit_logits, tail_logits)
    return ExitReport(
        float(leaves.mean()),
        accuracy(both, labels),
        accuracy(tail_logits, labels),
        calibration_error(exit_logits / policy.temperature, labels),
        calibration_error(exit_logits, labels),
    )


def _cross_entropy(logits: Logits, labels: Labels) -> float:
    values = logits.astype(np.float64)
    values = values - values.max(1, keepdims=True)
    chosen = values[np.arange(len(labels)), labels]
    return float((np.log(np.exp(values).sum(1)) - chosen).mean())


def _check(logits: Logits, labels: Labels) -> None:
    if logits.ndim != 2 or len(logits) != len(labels) or not len(labels):
        raise ExitError(f"Wanted logits (n, classes) for n > 0 labels, found {logits.shape} for {labels.shape}.")
