"""sc2bench as a child process in an environment of its own; arrays go both ways as .npz."""

import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from benchmarks.rows import ROOT, RowError
from split.entropic_student import EntropicStudent

PYTHON = ROOT / ".sc2bench" / "bin" / "python"
CHILD = Path(__file__).parent / "peer_child.py"
_TIMEOUT_S = 900


def run_peer(command: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run `peer_child.py`.

    Raises:
        RowError: No environment for it, or it failed; with the end of its output.
    """
    if not PYTHON.exists():
        raise RowError("Wanted sc2bench in an environment of its own, found none. Run: scripts/setup-sc2bench")
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "in.npz"), Path(folder, "out.npz")
        np.savez(source, **arrays)
        line = [str(PYTHON), str(CHILD), command, str(source), str(target)]
        done = subprocess.run(line, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
        if done.returncode or not target.is_file():
            raise RowError(f"Wanted {command} of sc2bench, found exit status {done.returncode}: {done.stderr[-1200:]}")
        with np.load(target, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}


def peer_version() -> str:
    """Versions of sc2bench and of the coder below it."""
    code = "from importlib.metadata import version as v; print(v('sc2bench'), 'CompressAI', v('compressai'))"
    try:
        done = subprocess.run([str(PYTHON), "-c", code], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise RowError("Wanted sc2bench in an environment of its own. Run: scripts/setup-sc2bench") from error
    return done.stdout.strip()


def to_peer(block: EntropicStudent) -> dict[str, np.ndarray]:
    """Our block's weights under the peer's names."""
    result = {}
    for key, value in block.state_dict().items():
        result[f"state.{peer_name(key)}"] = value.detach().cpu().numpy().copy()
    return result


def from_peer(block: EntropicStudent, arrays: Mapping[str, np.ndarray]) -> None:
    """The peer's weights into our block."""
    names = {key: f"state.{peer_name(key)}" for key in block.state_dict()}
    block.load_state_dict({key: torch.from_numpy(arrays[name]) for key, name in names.items()})


def peer_name(key: str) -> str:
    """Name of one of our parameters in the peer's block: only the prior is called otherwise."""
    return f"entropy_bottleneck.{key[6:]}" if key.startswith("prior.") else key
