"""The same latents give the same bytes on aarch64, from C and from NumPy, and both read them."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
CSRC = ROOT / "edge_runtime" / "csrc"

SCRIPT = """
import pathlib, platform, sys
from dataclasses import dataclass
import numpy as np
from edge_runtime.entropy import EntropyCodec, parse_tables
from edge_runtime.entropy.native import NativeCoder

@dataclass
class Head:
    dtype: str
    shape: tuple

native, count = NativeCoder(pathlib.Path(sys.argv[1])), 0
for path in sorted(pathlib.Path("tests/golden/entropy").glob("*.bin")):
    tables = parse_tables(path.with_suffix(".tables").read_bytes())
    array = np.load(path.with_suffix(".npy"), allow_pickle=False)
    for codec in (EntropyCodec(tables, coder=native), EntropyCodec(tables, use_c=False)):
        layers = codec.encode([array])
        assert b"".join(layers) == path.read_bytes(), path
        assert np.array_equal(codec.decode([Head(array.dtype.name, array.shape)], layers)[0], array), path
        count += 1
print(platform.machine(), count)
"""


@pytest.mark.arm64
def test_emulated_aarch64_writes_and_reads_the_golden_layers(tmp_path):
    library = tmp_path / "coder.so"
    sources = [str(CSRC / "ht_entropy.c"), str(CSRC / "ht_frame.c")]
    flags = ["-std=c99", "-O3", "-fPIC", "-shared", "-DHT_ENTROPY_WIDE"]
    subprocess.run(["aarch64-linux-gnu-gcc", *flags, *sources, "-o", str(library)], check=True)
    command = [str(ROOT / "arm64-root" / "bin" / "python3"), "-c", SCRIPT, str(library)]
    path = os.pathsep.join([str(ROOT), str(ROOT / "arm64-root" / "site")])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    machine, count = done.stdout.split()
    assert machine == "aarch64"
    assert int(count) == 2 * len(list((ROOT / "tests" / "golden" / "entropy").glob("*.bin")))
