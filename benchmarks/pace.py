"""How fast the machine is now, by a fixed network beside every measurement.

A virtual machine that shares its cores is half as fast for minutes on end, and no profile says so: its own runs agree. What is
measured at different times is compared after it was divided by the reference network's time then.
"""

import statistics
import time
from collections.abc import Callable

import msgspec
import numpy as np
import onnxruntime

from device_profiles.measurement import Percentiles, Profile
from export.chain_nets import chain

_REFERENCE = 1_000_003  # a seed that no calibration uses
_RUNS = 20
_ATTEMPTS = 4
_STEADY = 0.05  # the reference before and after differs by no more


class Pace:
    """Holds the reference network; times are scaled to how it ran at first."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        data, size = chain(_REFERENCE)
        self._session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        self._feed = {"x": np.zeros((1, 3, size, size), np.float32)}
        self._now()
        self._usual = self._now()

    def measure(self, profile: Callable[[], Profile]) -> Profile:
        """An undisturbed profile during which the machine kept its pace, or the last of some attempts; scaled."""
        for _ in range(_ATTEMPTS):
            before = self._now()
            found = profile()
            after = self._now()
            if found.status == "ok" and abs(after / before - 1) <= _STEADY:
                break
        return scaled(found, 2 * self._usual / (before + after))

    def _now(self) -> float:
        times = []
        for _ in range(_RUNS):
            begun = time.perf_counter()
            self._session.run(None, self._feed)
            times.append(time.perf_counter() - begun)
        return statistics.median(times)


def scaled(profile: Profile, factor: float) -> Profile:
    """The profile with all that took time taking that many times as long."""

    def times(one: Percentiles) -> Percentiles:
        values = {key: getattr(one, key) for key in ("p50", "p90", "p95", "p99", "mean")}
        return msgspec.structs.replace(one, **{key: ms * factor for key, ms in values.items() if ms is not None})

    names = ("whole", "whole_cpu", "whole_profiled", "whole_beside")
    changed = {name: times(one) for name in names if (one := getattr(profile, name)) is not None}
    kernels = tuple(msgspec.structs.replace(one, latency=times(one.latency)) for one in profile.kernels)
    return msgspec.structs.replace(profile, kernels=kernels, **changed)
