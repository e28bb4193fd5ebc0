"""How much a process grows when a network is opened and run: weights, the largest kernel and a constant, fitted.

Engines pack weights a second time and hold an arena for activations, so that the growth is a multiple of either. A
measured growth (VmHWM of a fresh process) is used where there is one; this is for networks that were not on the board.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from device_profiles.measurement import Profile
from split.roofline import PredictError

MIN_SAMPLES = 6


@dataclass(frozen=True)
class MemorySample:
    """One network. Sizes in bytes."""

    weights: int
    largest_kernel: int  # inputs, weights and outputs of the kernel that moves most
    growth: int  # of the process, measured


class MemoryModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """growth = per_weight x weights + per_kernel x largest kernel + base; for one engine on one board."""

    per_weight: float
    per_kernel: float
    base_bytes: float
    samples: int
    bare_bytes: int = 0  # interpreter and engine, before a network is opened

    def peak(self, *, weights: int, largest_kernel: int) -> int:
        """Predicted peak of the whole process in bytes."""
        return self.bare_bytes + self.growth(weights=weights, largest_kernel=largest_kernel)

    def growth(self, *, weights: int, largest_kernel: int) -> int:
        """Predicted growth of the process in bytes."""
        return round(self.per_weight * weights + self.per_kernel * largest_kernel + self.base_bytes)


def memory_sample(profile: Profile) -> MemorySample | None:
    """What a profile says of memory; null where it lacks a part."""
    memory = profile.memory
    if memory.weights is None or memory.rss_peak is None or memory.rss_peak <= 0 or not profile.kernels:
        return None
    return MemorySample(memory.weights, max(kernel.bytes for kernel in profile.kernels), memory.rss_peak)


def fit_memory(samples: Sequence[MemorySample]) -> MemoryModel:
    """Least squares of the relative error, with no constant below zero.

    Raises:
        PredictError: Fewer than `MIN_SAMPLES` networks, or a size that is not positive.
    """
    if len(samples) < MIN_SAMPLES or any(one.growth <= 0 for one in samples):
        raise PredictError(
            f"Wanted the memory of {MIN_SAMPLES} or more networks, each above zero, found {len(samples)}. "
            "Profile more networks on the board."
        )
    features = np.array([[one.weights, one.largest_kernel, 1.0] for one in samples])  # (n, 3)
    growth = np.array([float(one.growth) for one in samples])  # (n,)
    scaled = features / growth[:, None]
    best, least = np.zeros(3), math.inf
    for mask in range(1, 8):  # every subset of the three: the best one without a negative constant
        chosen = [index for index in range(3) if mask >> index & 1]
        found, *_ = np.linalg.lstsq(scaled[:, chosen], np.ones(len(growth)), rcond=None)
        error = float(np.sum((scaled[:, chosen] @ found - 1) ** 2))
        if np.all(found >= 0) and error < least:
            best, least = np.zeros(3), error
            best[chosen] = found
    return MemoryModel(
        per_weight=float(best[0]), per_kernel=float(best[1]), base_bytes=float(best[2]), samples=len(samples)
    )
