"""The predictor: convolutions and whole networks that it has not seen, in fp32 and int8, with one and two threads.

Chains and held-out networks are profiled alike: plain and instrumented runs in turn, medians over the pairs that kept the
core. Whether a profile was quiet is counted and said; times that were disturbed say nothing of the predictor.
"""

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.profile_nets import NETS, SIZES
from device_profiles.measurement import Profile
from edge_runtime.profiler import ProfileOptions, profile_artefact
from export.calibrate import fit_all, measure_chains
from export.chain_nets import Precision, write_net
from split.predict import Calibration, Work, predict

CHAINS = 24
CONVS = ("conv", "pointwise", "depthwise", "stem")
ATTEMPTS = 4
CASES: tuple[tuple[Precision, int], ...] = (("fp32", 1), ("int8", 1), ("fp32", 2), ("int8", 2))


def rows() -> list[dict[str, Any]]:
    """Rows layer_mape, layer_acc10 and net_error; those of fp32 and one thread have bars."""
    found: list[dict[str, Any]] = []
    for precision, threads in CASES:
        calibration, chain_status = calibrated(precision, threads, CHAINS if threads == 1 else 12)
        profiles = held_out(precision, threads)
        found += case_rows(calibration, profiles, chain_status, bars=(precision, threads) == ("fp32", 1))
    return found


def calibrated(precision: Precision, threads: int, count: int = CHAINS) -> tuple[Calibration, str]:
    """A calibration, and how many of its chains were measured quietly."""
    measured = measure_chains(precision=precision, threads=threads, count=count)
    enough = measured.profiles if len(measured.profiles) >= count / 2 else (*measured.profiles, *measured.noisy)
    return fit_all(enough), f"{len(measured.profiles)} of {count} chains quiet"


def held_out(precision: Precision, threads: int) -> list[Profile]:
    """The networks' profiles."""
    options = ProfileOptions(threads=threads, runs=100, seconds=0.0, limit_s=6.0, kernels_only=True)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for name, build in NETS.items():
            artefact = write_net(Path(folder), name, build(precision=precision), SIZES[name], precision)
            for _ in range(ATTEMPTS):
                profile = profile_artefact(artefact, options)
                if profile.status == "ok":
                    break
            found.append(profile)
    return found


def work_of(profile: Profile) -> list[Work]:
    """The kernels as the engine fused them, without their times."""
    return [Work(kernel.name, kernel.kind, kernel.macs, kernel.bytes) for kernel in profile.kernels if kernel.bytes > 0]


def layer_errors(calibration: Calibration, profiles: Sequence[Profile]) -> list[float]:
    """Relative error of each convolution."""
    return [
        abs(calibration.class_of(one.kind).roofline.ms(one.macs, one.bytes) / one.latency.p50 - 1)
        for profile in profiles
        for one in profile.kernels
        if one.kind in CONVS
    ]


def net_errors(calibration: Calibration, profiles: Sequence[Profile]) -> dict[str, float]:
    """Signed relative error of each whole network."""
    return {one.model: predict(calibration, work_of(one)).ms / one.kernel_reference.p50 - 1 for one in profiles}


def case_rows(
    calibration: Calibration, profiles: Sequence[Profile], chain_status: str, *, bars: bool
) -> list[dict[str, Any]]:
    layers, nets = layer_errors(calibration, profiles), net_errors(calibration, profiles)
    quiet = sum(one.status == "ok" for one in profiles)
    each = ", ".join(f"{name} {100 * error:+.1f} %" for name, error in nets.items())
    where = (
        f"{calibration.precision}, {calibration.threads} thread(s); {chain_status}, {quiet} of {len(profiles)} networks"
    )
    suffix = "" if bars else f".{calibration.precision}_{calibration.threads}"
    sizes = [100 * abs(error) for error in nets.values()]
    figures = (
        (f"layer_mape{suffix}", f"mean error of {len(layers)} convolutions of networks not seen, {where}",
         100 * statistics.fmean(layers), "<=", 12),
        (f"layer_acc10{suffix}", f"convolutions predicted within 10 %, {where}",
         100 * statistics.fmean([error <= 0.1 for error in layers]), ">=", 65),
        (f"net_error.mean{suffix}", f"whole networks, mean error ({each}), {where}", statistics.fmean(sizes), "<=", 8),
        (f"net_error.max{suffix}", f"whole networks, largest error, {where}", max(sizes), "<=", 15),
    )  # fmt: skip
    return [
        {"id": name, "what": what, "value": value, "unit": "%", "direction": direction if bars else "info",
         "bar": bar if bars else None}
        for name, what, value, direction, bar in figures
    ]  # fmt: skip


if __name__ == "__main__":
    for row in rows():
        print(row["id"], row["value"], row["unit"], row["direction"], row["bar"], row["what"], sep="\t")
