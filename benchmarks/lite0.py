"""EfficientNet-Lite0 as the benches use it: exported and cut by headtail's own commands, calibrated on every fifth picture.

Everything lands in `build/bench/`; headtail's cache makes a second export take seconds.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.data import Samples, imagenet_samples
from benchmarks.rows import ROOT
from device_profiles.errors import EdgeError

FOLDER = ROOT / "build" / "bench"
MODEL = "export.zoo:efficientnet_lite0"
HEAD_SHARE = 0.6  # the head used by the benches may do this share of the multiply-accumulates
_TIMEOUT_S = 600


class CommandError(EdgeError):
    """A headtail command that a bench depends on failed."""


def headtail(*arguments: str | Path) -> Any:
    """Run a headtail command and return what it prints with --json.

    Raises:
        CommandError: With the end of what it printed.
    """
    code = "from orchestrator.cli import main; main()"  # what the console script does, for the interpreter that runs
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments), "--json"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        raise CommandError(
            f"Wanted `headtail {' '.join(map(str, arguments))}` to succeed, found exit status {done.returncode}: "
            f"{done.stderr.strip()[-800:]}"
        )
    return json.loads(done.stdout)


def calibration_folder(folder: Path = FOLDER) -> Path:
    """The calibration pictures as files."""
    samples = imagenet_samples()
    return _unpack(samples, samples.calibration(), folder / "calibration")


def evaluation_folder(folder: Path = FOLDER) -> Path:
    """The pictures that are evaluated as files, in folders named by class id."""
    samples = imagenet_samples()
    return _unpack(samples, samples.evaluation(), folder / "evaluation")


def whole(target: str = "this", precision: str = "int8", engine: str | None = None, folder: Path = FOLDER) -> Path:
    """The folder of Lite0 exported for a board.

    Args:
        target: The board.
        precision: fp32 or int8.
        engine: The board's default when null.
        folder: Where benches keep what they export.

    Raises:
        CommandError: The export failed.
    """
    out = folder / f"lite0-{target}-{precision}-{engine or 'default'}"
    options: list[str | Path] = ["--target", target, "--precision", precision, "--out", out]
    if precision == "int8":
        options += ["--calibration", calibration_folder(folder)]
    if engine is not None:
        options += ["--engine", engine]
    headtail("export", MODEL, *options)
    return out


def pair(whole_folder: Path, folder: Path = FOLDER) -> tuple[Path, Path]:
    """Head and tail of a quantised artefact at the cut that `choose_cut` takes; their folders.

    Raises:
        CommandError: The split failed.
    """
    cut = choose_cut(headtail("split", whole_folder, "--list")["cuts"])
    out = folder / f"{whole_folder.name}-pair"
    headtail("split", whole_folder, "--at", cut, "--out", out, "--fallback", whole_folder)
    return out / "head", out / "tail"


def choose_cut(cuts: Sequence[dict[str, Any]]) -> str:
    """The single tensor with the smallest payload among the cuts whose head does at most `HEAD_SHARE` of the work.

    Raises:
        CommandError: There is none.
    """
    fitting = [
        cut
        for cut in cuts
        if len(cut["tensors"]) == 1 and 0 < cut["head_macs"] <= HEAD_SHARE * (cut["head_macs"] + cut["tail_macs"])
    ]
    if not fitting:
        raise CommandError(
            f"Wanted a single-tensor cut in the first {HEAD_SHARE:.0%} of the work, found none of {len(cuts)}."
        )
    best = min(fitting, key=lambda cut: (cut["payload_bytes"], cut["head_macs"]))
    return str(best["tensors"][0]["name"])


def _unpack(samples: Samples, indices: Sequence[int], folder: Path) -> Path:
    by_class = folder.name == "evaluation"
    for index in indices:
        name = f"{index:04d}.jpg"
        path = folder / str(samples.labels[index]) / name if by_class else folder / name
        if not path.is_file() or path.stat().st_size != len(samples.pictures[index]):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(samples.pictures[index])
    return folder
