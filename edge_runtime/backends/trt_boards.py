"""Which TensorRT a board can have, and what that means for deploying to it."""

import re

from device_profiles import DeviceProfile, load_board
from edge_runtime.manifest import Manifest
from edge_runtime.session import EngineError

LEAST_MAJOR = 10  # JetPack 6; before, there is no Python 3.10 for it
# Newest TensorRT of each JetPack, by major version (7: at least; some of its releases bring 11).
_JETPACK = {4: 8, 5: 8, 6: 10, 7: 10}
_JETPACK_WORD = re.compile(r"JetPack (\d+)")
_VERSION = re.compile(r"tensorrt (\d+)\.\d")


class DeployRefusedError(EngineError):
    """An artefact cannot run on the board that it is meant for; the message says what can be done there."""


def tensorrt_major(board: DeviceProfile) -> int | None:
    """The newest major version that the board's runtimes name, directly or by JetPack; null without TensorRT."""
    found: set[int] = set()
    for runtime in board.runtimes:
        if runtime.startswith("tensorrt"):
            found |= {int(one) for one in _VERSION.findall(runtime)}
            found |= {_JETPACK[int(one)] for one in _JETPACK_WORD.findall(runtime) if int(one) in _JETPACK}
    return max(found, default=None)


def check_deploy(manifest: Manifest) -> None:
    """Refuse to deploy to a Jetson that is too old for headtail's device package, and TensorRT files to any other board.

    Raises:
        DeployRefusedError: The board has TensorRT 8.x at most (JetPack 4 or 5), or the file needs what it has not.
        BoardError: The manifest's target is not a known board.
    """
    board = load_board(manifest.target)
    major = tensorrt_major(board)
    if major is not None and major < LEAST_MAJOR:
        raise DeployRefusedError(
            f"Wanted a board with TensorRT {LEAST_MAJOR} or newer (JetPack 6), found {board.id} with TensorRT {major}.x: "
            "its system has no Python that the device package runs on. Copy the artefact there by hand and build the "
            "engine with the command in its trtexec.txt, or export for another board."
        )
    if major is None and manifest.engine.name == "tensorrt":
        raise DeployRefusedError(
            f"Wanted a board with TensorRT, found {board.id} with {', '.join(board.runtimes) or 'no known engine'}. "
            "Export for this board with --engine onnxruntime."
        )
