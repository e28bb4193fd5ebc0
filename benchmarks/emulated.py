"""The emulated Raspberry Pi 4 that `scripts/setup-arm64` makes: run the device packages in it."""

import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.rows import ROOT
from device_profiles.errors import EdgeError

FOLDER = ROOT / "arm64-root"
DEVICE = "Cortex-A72 (qemu-user, one user space of Debian 12)"
_TIMEOUT_S = 900


class EmulationError(EdgeError):
    """The emulated user space is missing, or a program failed in it."""


def emulated_python(folder: Path = FOLDER) -> Path:
    """The interpreter; it runs like any other program.

    Raises:
        EmulationError: `scripts/setup-arm64` has not made it.
    """
    python = folder / "bin" / "python3"
    if not (folder / ".stamp").is_file() or not python.exists():
        raise EmulationError(f"Wanted an emulated user space in {folder.name}/, found none. Run: scripts/setup-arm64")
    return python


def emulated_environment(**changes: str) -> dict[str, str]:
    """The process's environment without what belongs to the host's Python."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV", "LD_"))}
    return {**kept, **changes}


def run_emulated(artefact: Path, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Run an artefact on the emulated device; arguments and result as `run_head`.

    Raises:
        EmulationError: No emulated user space, or the run failed; with the end of its output.
    """
    python = emulated_python()
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "inputs.npz"), Path(folder, "outputs.npz")
        with source.open("wb") as stream:
            np.savez(stream, *inputs)
        script = ROOT / "benchmarks" / "run_head.py"
        environment = emulated_environment(PYTHONPATH=f"{ROOT}{os.pathsep}{FOLDER / 'site'}")
        command = [str(part) for part in (python, script, artefact, source, target)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
        if done.returncode != 0 or not target.is_file():
            raise EmulationError(
                f"Wanted {artefact.name} to run under emulation, found exit status {done.returncode}: {done.stderr[-800:]}"
            )
        with np.load(target, allow_pickle=False) as content:
            return [content[f"arr_{index}"] for index in range(len(content.files))]


def emulated_versions() -> str:
    """Machine, Python and engine versions as the emulated interpreter reports them.

    Raises:
        EmulationError: No emulated user space, or it does not start.
    """
    code = (
        "import platform, numpy, onnxruntime;"
        "print(platform.machine(), 'Python', platform.python_version(), 'onnxruntime', onnxruntime.__version__, 'numpy', numpy.__version__)"
    )
    environment = emulated_environment(PYTHONPATH=str(FOLDER / "site"))
    done = subprocess.run(
        [str(emulated_python()), "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    if done.returncode != 0:
        raise EmulationError(f"Wanted the emulated interpreter to start, found: {done.stderr[-800:]}")
    return done.stdout.strip()
