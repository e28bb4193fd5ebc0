"""One kernel class on one board: t = max(macs / P, bytes / B) + c, fitted by the least mean error of the logarithm.

P, B and c are effective constants, not physical ones (Williams et al. 2009 for the form). A kernel whose loads do not hide behind
its arithmetic takes the sum instead of the larger; which form a class has is decided on networks that were left out. The logarithm weighs a short
kernel's relative error as a long one's; its absolute value keeps single disturbed samples from moving the fit.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from device_profiles.errors import EdgeError

MIN_SAMPLES = 6
_STEPS, _PASSES = 15, 4
_FOLDS = 4  # of networks, when a class's form is chosen


class PredictError(EdgeError):
    """A prediction cannot be made: impossible samples, too few of them, or nothing is known of the board."""


@dataclass(frozen=True)
class Sample:
    """One measured kernel. `group` is the network it ran in: what is left out together in cross-validation."""

    kind: str
    macs: int
    bytes: int
    ms: float
    group: str

    def __post_init__(self) -> None:
        if not (math.isfinite(self.ms) and self.ms > 0) or self.macs < 0 or self.bytes <= 0:
            raise PredictError(
                f"Wanted a positive finite time, MACs >= 0 and bytes > 0, found {self.ms} ms, {self.macs} MACs and "
                f"{self.bytes} B of a {self.kind} kernel in {self.group!r}. Measure it again."
            )


class Roofline(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Constants of one class. A null peak is no bound: a class without multiply-accumulates, or nothing known.

    `overlapped` false: arithmetic and memory take their times one after the other.
    """

    macs_per_ms: float | None
    bytes_per_ms: float | None
    overhead_ms: float
    overlapped: bool = True

    def ms(self, macs: int, size: int) -> float:
        """Predicted time of a kernel; `size` is the bytes that it reads and writes."""
        compute = 0.0 if self.macs_per_ms is None else macs / self.macs_per_ms
        memory = 0.0 if self.bytes_per_ms is None else size / self.bytes_per_ms
        return (max(compute, memory) if self.overlapped else compute + memory) + self.overhead_ms

    def bound(self, macs: int, size: int) -> str:
        """What limits such a kernel: "compute" or "memory"."""
        compute = 0.0 if self.macs_per_ms is None else macs / self.macs_per_ms
        return "compute" if self.bytes_per_ms is None or compute >= size / self.bytes_per_ms else "memory"


def choose_overlap(samples: Sequence[Sample]) -> bool:
    """Whether a class is better predicted with overlap, by the mean error of the logarithm on networks that were left out."""
    groups = sorted({sample.group for sample in samples})
    errors = {True: 0.0, False: 0.0}
    for fold in range(_FOLDS):
        left_out = set(groups[fold::_FOLDS])
        kept = [sample for sample in samples if sample.group not in left_out]
        if len(kept) < MIN_SAMPLES:
            continue
        for overlapped in errors:
            fitted = fit_roofline(kept, overlapped=overlapped)
            errors[overlapped] += math.fsum(
                abs(math.log(fitted.ms(one.macs, one.bytes) / one.ms)) for one in samples if one.group in left_out
            )
    return errors[True] <= errors[False]


def fit_roofline(samples: Sequence[Sample], *, overlapped: bool = True) -> Roofline:
    """Fit P, B and c by a grid in the logarithm that is refined around its best point.

    Args:
        samples: Of one class.
        overlapped: The form, as `choose_overlap` finds it.

    Raises:
        PredictError: Fewer than `MIN_SAMPLES` samples.
    """
    if len(samples) < MIN_SAMPLES:
        kind = samples[0].kind if samples else "this"
        raise PredictError(f"Wanted at least {MIN_SAMPLES} samples of a class, found {len(samples)} of {kind}.")
    macs = np.array([sample.macs for sample in samples], float)  # (n,)
    size = np.array([sample.bytes for sample in samples], float)
    ms = np.array([sample.ms for sample in samples])
    computes = bool((macs > 0).any())
    axes = [
        _log_axis(macs[macs > 0] / ms[macs > 0], 8.0) if computes else np.array([np.inf]),
        _log_axis(size / ms, 8.0),
        np.concatenate([[0.0], np.geomspace(ms.min() / 50, ms.min() * 2, _STEPS - 1)]),
    ]
    for step in range(_PASSES):
        chosen = _best(axes, macs, size, np.log(ms), overlapped=overlapped)
        if step < _PASSES - 1:
            axes = [_refine(axis, index) for axis, index in zip(axes, chosen, strict=True)]
    peak, rate, overhead = (float(axis[index]) for axis, index in zip(axes, chosen, strict=True))
    return Roofline(
        macs_per_ms=peak if computes else None, bytes_per_ms=rate, overhead_ms=overhead, overlapped=overlapped
    )


def _log_axis(rates: np.ndarray, room: float) -> np.ndarray:
    return np.geomspace(float(np.median(rates)) / room, float(rates.max()) * room, 2 * _STEPS)


def _refine(axis: np.ndarray, index: int) -> np.ndarray:
    """A finer axis around one of its points, which stays in it."""
    low, high = axis[max(index - 1, 0)], axis[min(index + 1, len(axis) - 1)]
    if low == high:
        return axis[index : index + 1]
    finer = np.geomspace(low, high, _STEPS) if low > 0 else np.linspace(low, high, _STEPS)
    return np.unique(np.append(finer, axis[index]))


def _best(
    axes: list[np.ndarray], macs: np.ndarray, size: np.ndarray, log_ms: np.ndarray, *, overlapped: bool
) -> tuple[int, int, int]:
    peaks, rates, overheads = axes
    compute, memory = macs / peaks[:, None], size / rates[:, None]  # (p, n), (b, n)
    combine = np.maximum if overlapped else np.add
    bound = combine(compute[:, None, :], memory[None, :, :])  # (p, b, n)
    errors = np.stack([np.abs(np.log(bound + c) - log_ms).mean(axis=-1) for c in overheads], axis=-1)  # (p, b, c)
    best = np.unravel_index(int(np.argmin(errors)), errors.shape)
    return int(best[0]), int(best[1]), int(best[2])
