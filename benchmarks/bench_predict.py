"""The predictor: convolutions and whole networks that it has not seen, in int8 and with two threads.

Chains and held-out networks take turns, round by round, and of each only the fastest third of its blocks counts. Whether a profile was
quiet is said; times that were disturbed say nothing of the predictor. fp32 with one thread is measured by `bench_rounds`.
"""

import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.one_core import on_one_core
from benchmarks.profile_nets import NETS, SIZES
from device_profiles.measurement import Profile
from edge_runtime.artefact import Artefact, open_artefact
from edge_runtime.profile_in_turn import profile_in_turn
from edge_runtime.profiler import ProfileOptions
from export.calibrate import fit_all, write_chains
from export.chain_nets import Precision, write_net
from split.predict import Calibration, Work, predict

CHAINS = 16
ROUNDS, RUNS = 12, 3
CONVS = ("conv", "pointwise", "depthwise", "stem")
CASES: tuple[tuple[Precision, int], ...] = (("int8", 1), ("fp32", 2), ("int8", 2))


def rows() -> Iterator[dict[str, Any]]:
    """Rows layer_mape, layer_acc10 and net_error, without bars."""
    for precision, threads in CASES:
        with tempfile.TemporaryDirectory() as folder, on_one_core(threads == 1):
            artefacts = [*open_chains(Path(folder), precision, CHAINS), *open_nets(Path(folder), precision)]
            found = profile_in_turn(artefacts, options(threads, ROUNDS, RUNS), rounds=ROUNDS)
        yield from case_rows(found, CHAINS, bars=False)


def options(threads: int, rounds: int, runs: int) -> ProfileOptions:
    """So many runs in each round, in a second at most."""
    return ProfileOptions(threads=threads, runs=rounds * runs, seconds=0.0, limit_s=1.0 * rounds, kernels_only=True)


def open_chains(folder: Path, precision: Precision, count: int) -> list[Artefact]:
    """What the predictor learns from."""
    return [open_artefact(path) for path in write_chains(folder, precision=precision, count=count)]


def open_nets(folder: Path, precision: Precision) -> list[Artefact]:
    """What it has not seen."""
    return [write_net(folder, name, build(precision=precision), SIZES[name], precision) for name, build in NETS.items()]


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


def case_rows(found: Sequence[Profile], chains: int, *, bars: bool) -> list[dict[str, Any]]:
    """Rows of one precision and number of threads; the first profiles are those of the chains."""
    learned, profiles = found[:chains], found[chains:]
    calibration = fit_all(learned)
    layers, nets = layer_errors(calibration, profiles), net_errors(calibration, profiles)
    quiet = [sum(one.status == "ok" for one in each) for each in (learned, profiles)]
    each = ", ".join(f"{name} {100 * error:+.1f} %" for name, error in nets.items())
    where = (
        f"{calibration.precision}, {calibration.threads} thread(s); quiet: {quiet[0]} of {chains} chains, "
        f"{quiet[1]} of {len(profiles)} networks"
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
