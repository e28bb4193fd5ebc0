"""The profiler: do kernels add up to the whole, do they carry the user's names, and are joules what they should be?"""

import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.profile_nets import NETS, write_net
from benchmarks.rows import ROOT
from device_profiles.measurement import Profile
from edge_runtime.profile_energy import integrate, measured_energy
from edge_runtime.profile_tegrastats import read_log
from edge_runtime.profiler import ProfileOptions, profile_artefact

SIZES = {"mobile_v1": 224, "residual_18": 128, "squeeze": 224, "plain": 224}
ATTEMPTS = 6  # of a network whose profile is noisy
GOLDEN = ROOT / "tests" / "golden" / "tegrastats"


def rows() -> list[dict[str, Any]]:
    """Rows kernel_sum, mapped and energy_parser."""
    with tempfile.TemporaryDirectory() as folder:
        profiles = {name: measure(Path(folder), name) for name in NETS}
    return [*sum_rows(profiles), *mapped_rows(profiles), *energy_rows()]


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
    """Sum of the kernels' medians against the median CPU time of the plain run, in percent."""
    whole = profile.whole_cpu or profile.whole
    return 100 * (profile.kernel_sum / whole.p50 - 1)


def sum_rows(profiles: dict[str, Profile]) -> list[dict[str, Any]]:
    """Both ends of the range over the networks, and for each both runs."""
    values = {name: deviation(profile) for name, profile in profiles.items()}
    peer = {"peer": "plain run, CPU time", "peer_version": f"onnxruntime {version('onnxruntime')}"}
    what = f"sum of kernels against CPU time of the plain run, fp32, 1 thread, {len(values)} networks"
    found = [
        row("kernel_sum.low", f"{what}: lowest", min(values.values()), "%", ">=", -15) | peer,
        row("kernel_sum.high", f"{what}: highest", max(values.values()), "%", "<=", 3) | peer,
    ]
    for name, profile in profiles.items():
        instrumented = profile.whole_profiled
        assert instrumented is not None
        text = (
            f"{name}: kernels {profile.kernel_sum:.3f} ms; plain run p50 {profile.whole.p50:.3f} ms wall, "
            f"{(profile.whole_cpu or profile.whole).p50:.3f} ms CPU; instrumented run p50 {instrumented.p50:.3f} ms; {profile.status}"
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


def row(name: str, what: str, value: float, unit: str, direction: str, bar: float | None) -> dict[str, Any]:
    """The keys of a measurement."""
    return {"id": name, "what": what, "value": value, "unit": unit, "direction": direction, "bar": bar}


if __name__ == "__main__":
    for one in rows():
        print(one["id"], f"{one['value']:.3f}", one["unit"], one["direction"], one["bar"], one["what"], sep="\t")
