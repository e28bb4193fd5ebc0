"""The same integer latents on x86-64 and on emulated aarch64: equal bytes from C and from NumPy, read both ways."""

import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.emulated import DEVICE, FOLDER, emulated_environment, emulated_python, emulated_versions
from benchmarks.rows import ROOT, RowError
from benchmarks.split.codec import SIDES, case
from edge_runtime.entropy import count_tables

_CODE = """
import sys
from pathlib import Path
from types import SimpleNamespace
import numpy as np
from edge_runtime.entropy import EntropyCodec, parse_tables
from edge_runtime.entropy.native import NativeCoder
folder, library = Path(sys.argv[1]), Path(sys.argv[2])
for path in sorted(folder.glob("case*.npy")):
    latent = np.load(path, allow_pickle=False)
    tables = parse_tables(path.with_suffix(".tables").read_bytes())
    head = [SimpleNamespace(dtype=latent.dtype.name, shape=latent.shape)]
    for name, codec in (("c", EntropyCodec(tables, coder=NativeCoder(library))), ("numpy", EntropyCodec(tables, use_c=False))):
        target = path.with_suffix(f".{name}.bin")
        if sys.argv[3] == "write":
            target.with_suffix(f".{sys.argv[4]}").write_bytes(b"".join(codec.encode([latent])))
        else:
            data = target.with_suffix(f".{sys.argv[4]}").read_bytes()
            assert np.array_equal(codec.decode(head, [data])[0], latent), target
"""
_TIMEOUT_S = 900


def rows() -> list[dict[str, Any]]:
    """Row arch: layers that differ, or are not read back, between the two."""
    if platform.machine() != "x86_64":
        raise RowError(f"Wanted an x86-64 machine to compare with, found {platform.machine()}.")
    versions = emulated_versions()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for side in SIDES:
            latent = case(side)
            np.save(folder / f"case{side}.npy", latent)
            (folder / f"case{side}.tables").write_bytes(count_tables([latent]).data)
        libraries = {one: _build(folder, one) for one in ("x86", "arm")}
        for machine in libraries:
            _run(machine, folder, libraries[machine], "write", machine)
        for machine, other in (("x86", "arm"), ("arm", "x86")):
            _run(machine, folder, libraries[machine], "read", other)
        found = sorted(folder.glob("*.x86"))
        differ = sum(one.read_bytes() != one.with_suffix(".arm").read_bytes() for one in found)
    sizes = " and ".join(str(24 * side * side) for side in SIDES)
    what = f"of {len(found)} layers of {sizes} symbols, C and NumPy: other bytes on aarch64 (each read by the other machine)"
    row = {"id": "arch", "what": what, "value": differ, "unit": "layers", "direction": "==", "bar": 0}
    return [{**row, "peer": "the same coder on x86-64", "peer_version": versions, "emulated": DEVICE}]


def _build(folder: Path, machine: str) -> Path:
    library = folder / f"coder-{machine}.so"
    compiler = "cc" if machine == "x86" else "aarch64-linux-gnu-gcc"
    sources = [str(ROOT / "edge_runtime" / "csrc" / one) for one in ("ht_entropy.c", "ht_frame.c")]
    command = [compiler, "-std=c99", "-O3", "-fPIC", "-shared", "-DHT_ENTROPY_WIDE", *sources, "-o", str(library)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise RowError(f"Wanted a coder from {compiler}, found {error}. Run: scripts/setup-arm64") from error
    return library


def _run(machine: str, folder: Path, library: Path, verb: str, whose: str) -> None:
    python, path = sys.executable, str(ROOT)
    if machine == "arm":
        python, path = str(emulated_python()), f"{ROOT}:{FOLDER / 'site'}"
    command = [python, "-c", _CODE, str(folder), str(library), verb, whose]
    environment = emulated_environment(PYTHONPATH=path)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    if done.returncode:
        raise RowError(f"Wanted {machine} to {verb} the layers of {whose}, found: {done.stderr[-800:]}")
