"""The profiler: do kernels add up to the whole, do they carry the user's names, and are joules what they should be?"""

import json
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from benchmarks.rows import ROOT
from device_profiles.measurement import Profile
from edge_runtime.profile_energy import integrate, measured_energy
from edge_runtime.profile_tegrastats import read_log
from split.predict_memory import MemoryModel, fit_memory, memory_sample

MIN_QUIET = 3  # networks; with fewer the sum counts as not measured
GOLDEN = ROOT / "tests" / "golden" / "tegrastats"


def rows() -> list[dict[str, Any]]:
    """Row energy_parser; those of times come from the rounds of `bench_rounds`."""
    return energy_rows()


def profile_rows(profiles: dict[str, Profile], chains: Sequence[Profile]) -> list[dict[str, Any]]:
    """Rows kernel_sum, mapped and rss.

    Args:
        profiles: Of the networks.
        chains: On which memory is fitted; processor load does not matter to it.
    """
    samples = [one for one in map(memory_sample, chains) if one is not None]
    return [*sum_rows(profiles), *mapped_rows(profiles), *memory_rows(fit_memory(samples), profiles)]


def deviation(profile: Profile) -> float:
    """Sum of the kernels' medians against the median CPU time of the plain runs between them, in percent."""
    return 100 * (profile.kernel_sum / profile.kernel_reference.p50 - 1)


def sum_rows(profiles: dict[str, Profile]) -> list[dict[str, Any]]:
    """Both ends of the range over the networks, and for each both runs."""
    values = {name: deviation(profile) for name, profile in profiles.items()}
    quiet = [values[name] for name, profile in profiles.items() if profile.status == "ok"]
    peer = {"peer": "plain run, CPU time", "peer_version": f"onnxruntime {version('onnxruntime')}"}
    what = f"sum of kernels against CPU time of the plain runs that take turns with them, fp32, 1 thread, {len(quiet)} of {len(values)} networks quiet"
    enough = len(quiet) >= MIN_QUIET  # a noisy profile is one that nothing is planned with
    found = [
        row("kernel_sum.low", f"{what}: lowest", min(quiet) if enough else None, "%", ">=", -15) | peer,
        row("kernel_sum.high", f"{what}: highest", max(quiet) if enough else None, "%", "<=", 3) | peer,
    ]
    for name, profile in profiles.items():
        instrumented, hook_ms = profile.whole_profiled, profile.hook_ms
        assert instrumented is not None
        assert hook_ms is not None
        text = (
            f"{name}: kernels {profile.kernel_sum:.3f} ms, without what the profiler adds to each of {len(profile.kernels)} "
            f"({1000 * hook_ms:.1f} us, measured on empty kernels in the same process); plain runs between them "
            f"{profile.kernel_reference.p50:.3f} ms CPU, {profile.whole.p50:.3f} ms wall; "
            f"instrumented run p50 {instrumented.p50:.3f} ms; {profile.status}"
        )
        found.append(row(f"kernel_sum.{name}", text, values[name], "%", "info", None))
    return found


def mapped_rows(profiles: dict[str, Profile]) -> list[dict[str, Any]]:
    """The lowest share over the networks, and each."""
    shares = {name: 100 * profile.mapped_share for name, profile in profiles.items()}
    what = f"kernel time in nodes of the user's graph, lowest of {len(shares)} networks"
    return [
        row("mapped", what, min(shares.values()), "%", ">=", 95),
        *[row(f"mapped.{name}", name, share, "%", "info", None) for name, share in shares.items()],
    ]


def energy_rows() -> list[dict[str, Any]]:
    """Logs in tegrastats' documented output against joules computed by hand."""
    expected = json.loads((GOLDEN / "expected.json").read_text())
    errors = {}
    for family, wanted in expected.items():
        lines = (GOLDEN / f"{family}.log").read_text().splitlines()
        samples = read_log(lines, interval_s=wanted["interval_s"])
        idle, active = integrate(samples, *wanted["idle"]), integrate(samples, *wanted["active"])
        joules = (measured_energy("tegrastats", idle, active, 1).mj_per_run or 0.0) / 1000
        errors[family] = 100 * abs(joules / wanted["joules"] - 1)
    what = f"energy above idle from logs in the documented output of {', '.join(errors)}: largest error"
    return [row("energy_parser", what, max(errors.values()), "%", "<=", 1)]


def memory_rows(model: MemoryModel, profiles: dict[str, Profile]) -> list[dict[str, Any]]:
    """Predicted growth of the process on networks that the fit has not seen."""
    errors = {}
    for name, profile in profiles.items():
        sample = memory_sample(profile)
        if sample is not None:
            found = model.growth(weights=sample.weights, largest_kernel=sample.largest_kernel)
            errors[name] = 100 * (found / sample.growth - 1)
    what = f"predicted growth of peak RSS on {len(errors)} networks, fitted on {model.samples} chains: mean error"
    return [
        row("rss", what, sum(map(abs, errors.values())) / len(errors), "%", "<=", 25),
        *[row(f"rss.{name}", name, error, "%", "info", None) for name, error in errors.items()],
    ]


def row(name: str, what: str, value: float | None, unit: str, direction: str, bar: float | None) -> dict[str, Any]:
    """The keys of a measurement."""
    return {"id": name, "what": what, "value": value, "unit": unit, "direction": direction, "bar": bar}


if __name__ == "__main__":
    for one in rows():
        print(one["id"], one["value"], one["unit"], one["direction"], one["bar"], one["what"], sep="\t")
