"""Ten minutes of coverage-guided fuzzing of the C decoder under address and undefined-behaviour sanitizers."""

import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.rows import ROOT, RowError
from edge_runtime.entropy import EntropyCodec, count_tables

SECONDS = 600
MAX_BYTES = 2600  # of one input: the largest layer that the target decodes, and a little more
TARGET = ROOT / "tests" / "edge_runtime" / "test_entropy_fuzz.c"
SOURCES = ROOT / "edge_runtime" / "csrc"
_SANITIZERS = "-fsanitize=fuzzer,address,undefined"
_DONE = re.compile(r"Done (\d+) runs in (\d+) second")
_COVERAGE = re.compile(r"cov: (\d+)")


@dataclass(frozen=True)
class Campaign:
    """What a run of the fuzzer did.

    Attributes:
        findings: Inputs that it left behind: crashes, sanitizer reports, leaks, time-outs.
        inputs: Inputs that were run.
        edges: Edges of the code that were reached.
        seconds: Of the run.
    """

    findings: int
    inputs: int
    edges: int
    seconds: int


def rows() -> list[dict[str, object]]:
    """Row codec_fuzz. HEADTAIL_FUZZ_SECONDS shortens it for a try; the bar holds for the whole time only."""
    seconds = int(os.environ.get("HEADTAIL_FUZZ_SECONDS", SECONDS))
    done = fuzz(seconds)
    what = (
        f"findings in {done.seconds} s of libFuzzer on the C decoder, ASan and UBSan, {done.inputs} inputs, "
        f"{done.edges} edges"
    )
    whole = done.seconds >= SECONDS
    row: dict[str, object] = {"id": "codec_fuzz", "what": what, "value": done.findings, "unit": "findings"}
    return [{**row, "direction": "==" if whole else "info", "bar": 0 if whole else None}]


def fuzz(seconds: int) -> Campaign:
    """Build the target with clang and run it from seeds that real encoders wrote.

    Raises:
        RowError: No clang with libFuzzer, or a run that did not come to its end for another reason than a finding.
    """
    with tempfile.TemporaryDirectory(prefix="codec-fuzz-") as name:
        folder = Path(name)
        binary, corpus, found = folder / "fuzz", folder / "corpus", folder / "found"
        for one in (corpus, found):
            one.mkdir()
        build(binary)
        write_seeds(corpus)
        command = [
            str(binary), str(corpus), f"-max_total_time={seconds}", f"-max_len={MAX_BYTES}", "-seed=1", "-print_final_stats=1",
            f"-artifact_prefix={found}/", "-timeout=10",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 300, check=False)
        findings = sum(1 for _ in found.iterdir())
        ended, edges = _DONE.search(done.stderr), _COVERAGE.findall(done.stderr)
        if findings or done.returncode:
            print(done.stderr[-4000:])
            findings = max(findings, 1)
        if not findings and not (ended and edges):
            raise RowError(f"Wanted libFuzzer to run for {seconds} s, found: {done.stderr[-800:]}")
        runs, spent = (int(ended[1]), int(ended[2])) if ended else (0, 0)
        return Campaign(findings, runs, int(edges[-1]) if edges else 0, spent)


def build(binary: Path) -> None:
    """Compile the fuzz target.

    Raises:
        RowError: clang or its runtime library is missing, or the target does not compile.
    """
    command = [
        "clang", "-g", "-O2", "-DHT_ENTROPY_WIDE", _SANITIZERS, "-fno-sanitize-recover=undefined", f"-I{SOURCES}", str(TARGET),
        str(SOURCES / "ht_entropy.c"), "-o", str(binary),
    ]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise RowError("Wanted clang with libFuzzer, found no clang. Run: make setup-dev") from error
    if done.returncode:
        raise RowError(f"Wanted a fuzz target from clang, found: {done.stderr[-800:]}. Run: make setup-dev")


def write_seeds(folder: Path) -> None:
    """Inputs to start from: layers of real latents behind the target's three bytes of geometry, and stored ones."""
    rng = np.random.default_rng(0)
    for number in range(16):
        channels, positions = 1 + number % 4, int(rng.integers(1, 600))
        latent = np.clip(rng.laplace(0, 1 + number % 3, (1, channels, positions)).round(), -128, 127).astype(np.int8)
        layer = bytes(EntropyCodec(count_tables([latent])).encode([latent])[0])
        geometry = bytes([(channels - 1) << 1, (positions - 1) & 0xFF, (positions - 1) >> 8])
        (folder / f"coded-{number}").write_bytes(geometry + layer)
        (folder / f"stored-{number}").write_bytes(geometry + b"\0" + latent.tobytes())
