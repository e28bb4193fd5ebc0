"""The profiler: do kernels add up to the whole, do they carry the user's names, and are joules what they should be?"""

import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.profile_nets import NETS, SIZES, chain, write_net
from benchmarks.rows import ROOT
from device_profiles.measurement import Profile
from edge_runtime.profile_energy import integrate, measured_energy
from edge_runtime.profile_tegrastats import read_log
from edge_runtime.profiler import ProfileOptions, profile_artefact
from split.predict_memory import MemoryModel, fit_memory, memory_sample

CHAINS = 16
MIN_QUIET = 3  # networks; with fewer the sum counts as not measured
ATTEMPTS = 6  # of a network whose profile is noisy
GOLDEN = ROOT / "tests" / "golden" / "tegrastats"


def rows() -> list[dict[str, Any]]:
    """Rows kernel_sum, mapped, energy_parser and rss."""
    with tempfile.TemporaryDirectory() as folder:
        profiles = {name: measure(Path(folder), name) for name in NETS}
        model = learn_memory(Path(folder))
    return [*sum_rows(profiles), *mapped_rows(profiles), *energy_rows(), *memory_rows(model, profiles)]


def measure(folder: Path, name: str) -> Profile:
    """A network's profile, quiet if one of six attempts is."""
    artefact = write_net(folder, name, NETS[name](), SIZES[name])
    for attempt in range(ATTEMPTS):
        profile = profile_artefact(artefact, ProfileOptions(seconds=2.0))
        if profile.status == "ok" or attempt == ATTEMPTS - 1:
            break
    print(f"{name}: {profile.status} {'; '.join(profile.remarks)}", file=sys.stderr)
    return profile


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
        instrumented = profile.whole_profiled
        assert instrumented is not None
        text = (
            f"{name}: kernels {profile.kernel_sum:.3f} ms; plain runs between them {profile.kernel_reference.p50:.3f} ms CPU, "
            f"alone {(profile.whole_cpu or profile.whole).p50:.3f} ms CPU and {profile.whole.p50:.3f} ms wall; "
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


def learn_memory(folder: Path) -> MemoryModel:
    """The memory model fitted on chains; processor load does not matter to it."""
    samples = []
    for seed in range(CHAINS):
        artefact = write_net(folder, f"chain{seed}", *chain(seed))
        sample = memory_sample(profile_artefact(artefact, ProfileOptions(runs=5, seconds=0.05)))
        samples += [] if sample is None else [sample]
    return fit_memory(samples)


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
