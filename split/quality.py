"""Accuracy, calibration, and the comparison of rate-accuracy curves."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from device_profiles.errors import EdgeError

F64 = npt.NDArray[np.float64]

MIN_OVERLAP = 0.5


class CurveError(EdgeError):
    """Rate-accuracy curves that cannot be compared."""


@dataclass(frozen=True)
class BDRate:
    """Average difference of bytes at equal accuracy.

    Attributes:
        percent: Bytes of the tested curve against the reference, minus 100 %; negative is better.
        low: Start of the accuracies that both curves reach.
        high: Their end.
        overlap: The smaller of the two shares of a curve's own accuracy range that lies in between, in (0, 1].
    """

    percent: float
    low: float
    high: float
    overlap: float


def bd_rate(
    reference: tuple[npt.ArrayLike, npt.ArrayLike],
    tested: tuple[npt.ArrayLike, npt.ArrayLike],
    *,
    min_overlap: float = MIN_OVERLAP,
) -> BDRate:
    """Bjontegaard's rate difference over the accuracies that both curves reach.

    Each curve is the logarithm of its bytes over accuracy, interpolated by monotone cubic pieces, integrated exactly.
    Points that another point of the same curve beats in both bytes and accuracy are left out first.

    Args:
        reference: Bytes (> 0) and accuracies of at least two points.
        tested: The same.
        min_overlap: Share of either curve that both must reach.

    Raises:
        CurveError: Fewer than two usable points, or the ranges overlap by less than that.

    Source: Bjontegaard, VCEG-M33 (2001); with piecewise cubic interpolation as in VCEG-AI11 (2008).
    """
    curves = [_curve(*reference), _curve(*tested)]
    low, high = max(one[0][0] for one in curves), min(one[0][-1] for one in curves)
    overlap = min((high - low) / (one[0][-1] - one[0][0]) for one in curves)
    if overlap < min_overlap:
        ranges = [f"{one[0][0]:g} to {one[0][-1]:g}" for one in curves]
        raise CurveError(
            f"Wanted accuracies that overlap by {min_overlap:.0%} of either curve, found {ranges[0]} and {ranges[1]}. "
            "Measure more rates."
        )
    areas = [_integral(*one, low, high) for one in curves]
    percent = 100 * (np.exp((areas[1] - areas[0]) / (high - low)) - 1)
    return BDRate(float(percent), float(low), float(high), float(overlap))


def monotone_slopes(x: F64, y: F64) -> F64:
    """Slopes at the points of a monotone piecewise cubic interpolant (PCHIP).

    Args:
        x: Rising, at least two.
        y: Values there.

    Source: Fritsch and Butland 1984, with the three-point formula at the ends (as in SciPy's PchipInterpolator).
    """
    h, d = np.diff(x), np.diff(y) / np.diff(x)
    if len(d) == 1:
        return np.repeat(d, 2)
    slopes = np.zeros_like(y)
    w1, w2 = 2 * h[1:] + h[:-1], h[1:] + 2 * h[:-1]
    same = d[:-1] * d[1:] > 0
    slopes[1:-1][same] = ((w1 + w2)[same]) / (w1[same] / d[:-1][same] + w2[same] / d[1:][same])
    slopes[0] = _end_slope(h[0], h[1], d[0], d[1])
    slopes[-1] = _end_slope(h[-1], h[-2], d[-1], d[-2])
    return slopes


def accuracy(logits: npt.NDArray[np.floating], labels: npt.NDArray[np.integer]) -> float:
    """Share of pictures whose largest logit is the label's, in [0, 1]; logits (n, classes), labels (n,)."""
    return float(np.mean(logits.argmax(1) == labels))


def calibration_error(logits: npt.NDArray[np.floating], labels: npt.NDArray[np.integer], *, bins: int = 15) -> float:
    """Expected calibration error: mean distance between confidence and accuracy over bins of confidence, in [0, 1].

    Args:
        logits: (n, classes).
        labels: (n,).
        bins: Of equal width.

    Source: Guo et al. 2017 (arXiv:1706.04599), eq. 3.
    """
    values = logits.astype(np.float64)
    exponent = np.exp(values - values.max(1, keepdims=True))
    confidence = exponent.max(1) / exponent.sum(1)
    right = (values.argmax(1) == labels).astype(np.float64)
    place = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    gaps = np.bincount(place, right - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))


def _curve(rates: npt.ArrayLike, accuracies: npt.ArrayLike) -> tuple[F64, F64]:
    """Accuracies, strictly rising, and the logarithms of their bytes, strictly rising."""
    rate, quality = np.asarray(rates, np.float64), np.asarray(accuracies, np.float64)
    if rate.shape != quality.shape or rate.ndim != 1 or not (rate > 0).all() or not np.isfinite(quality).all():
        raise CurveError(f"Wanted as many bytes above 0 as accuracies, found {rate.tolist()} and {quality.tolist()}.")
    order = np.lexsort((-quality, rate))
    rate, quality = rate[order], quality[order]
    best = (
        np.concatenate([[True], quality[1:] > np.maximum.accumulate(quality)[:-1]]) if len(rate) else np.array([], bool)
    )
    if best.sum() < 2:
        raise CurveError(
            f"Wanted at least 2 points that no other one beats, found {int(best.sum())} of {len(rate)}. Measure more rates."
        )
    return quality[best], np.log(rate[best])


def _end_slope(h0: float, h1: float, d0: float, d1: float) -> float:
    slope = ((2 * h0 + h1) * d0 - h0 * d1) / (h0 + h1)
    if np.sign(slope) != np.sign(d0):
        return 0.0
    if np.sign(d0) != np.sign(d1) and abs(slope) > 3 * abs(d0):
        return float(3 * d0)
    return float(slope)


def _integral(x: F64, y: F64, low: float, high: float) -> float:
    """Of the interpolant of (x, y), from low to high."""
    slopes = monotone_slopes(x, y)
    area = 0.0
    for index, h in enumerate(np.diff(x)):
        start, stop = (np.clip((one - x[index]) / h, 0, 1) for one in (low, high))
        d = (y[index + 1] - y[index]) / h
        c2 = 3 * d - 2 * slopes[index] - slopes[index + 1]
        c3 = slopes[index] + slopes[index + 1] - 2 * d
        part = [
            one * (y[index] + h * one * (slopes[index] / 2 + one * (c2 / 3 + one * c3 / 4))) for one in (start, stop)
        ]
        area += h * (part[1] - part[0])
    return float(area)
