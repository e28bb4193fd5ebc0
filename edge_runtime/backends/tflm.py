"""TensorFlow Lite Micro on a host: its PyPI interpreter where installed, else LiteRT's reference kernels.

Both round like the microcontroller in all operators but FULLY_CONNECTED, where LiteRT rounds once and TFLM twice.
"""

import importlib
import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np

from edge_runtime.artefact import Artefact
from edge_runtime.backends import litert
from edge_runtime.manifest import TensorSpec
from edge_runtime.session import EngineError, Session, check_inputs

_ARENA_BYTES = (4 << 20, 64 << 20)


class TflmSession:
    """A `Session` on the interpreter of the package tflite-micro; inputs and outputs are in the file's order."""

    def __init__(self, artefact: Artefact, interpreter: Any) -> None:  # noqa: ANN401 - the library is untyped
        self.inputs: tuple[TensorSpec, ...] = artefact.manifest.inputs
        self.outputs: tuple[TensorSpec, ...] = artefact.manifest.outputs
        self._interpreter = interpreter

    def run(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Run once; see `Session.run`."""
        check_inputs(self.inputs, arrays)
        try:
            for index, array in enumerate(arrays):
                self._interpreter.set_input(np.ascontiguousarray(array), index)
            self._interpreter.invoke()
        except (ValueError, RuntimeError) as error:
            raise EngineError(f"Wanted TensorFlow Lite Micro to run the model, found: {error}") from error
        return [self._interpreter.get_output(index) for index in range(len(self.outputs))]

    def close(self) -> None:
        """Free the interpreter."""
        del self._interpreter


def installed() -> bool:
    """Whether the package tflite-micro is there."""
    return importlib.util.find_spec("tflite_micro") is not None


def open_backend(artefact: Artefact, threads: int) -> Session:
    """Open the artefact's .tflite file; TensorFlow Lite Micro has one thread.

    Raises:
        EngineError: The interpreter refuses it.
    """
    if not installed():
        return litert.open_backend(artefact, threads)
    return TflmSession(artefact, open_interpreter(artefact.entry.read_bytes(), str(artefact.entry)))


def open_interpreter(model: bytes, where: str) -> Any:  # noqa: ANN401 - the library is untyped
    """Open a .tflite file; the library's own arena follows the file's size, which is too little for large activations.

    Raises:
        EngineError: The interpreter refuses it.
    """
    runtime = importlib.import_module("tflite_micro").runtime
    for arena_bytes in _ARENA_BYTES:
        try:
            return runtime.Interpreter.from_bytes(model, arena_size=arena_bytes)
        except (ValueError, RuntimeError, MemoryError) as error:
            found: Exception = error
    raise EngineError(f"Wanted a model that TensorFlow Lite Micro opens, found: {found}, in {where}.") from found
