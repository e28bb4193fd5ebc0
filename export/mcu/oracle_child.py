"""Runs a ``.tflite`` file in a reference engine, in a process of its own: an engine that crashes ends nothing else.

python -m export.mcu.oracle_child ENGINE FOLDER      model.tflite and request.npz lie there; writes answer.npz
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

MODEL, REQUEST, ANSWER = "model.tflite", "request.npz", "answer.npz"
Array = npt.NDArray[Any]


class Engine(Protocol):
    """One open model; inputs are named by their place and tensors by their index in the file."""

    def set_input(self, place: int, data: Array) -> None:
        """Fill an input of the network."""

    def invoke(self) -> None:
        """Run once."""

    def tensor(self, index: int) -> Array:
        """Any tensor after a run."""


class Micro:
    """TensorFlow Lite Micro in its PyPI package, every intermediate tensor kept."""

    def __init__(self, model: bytes, arena_bytes: int) -> None:
        from tflite_micro import runtime

        self._engine = runtime.Interpreter.from_bytes(
            model, arena_size=arena_bytes, intrepreter_config=runtime.InterpreterConfig.kPreserveAllTensors
        )

    def set_input(self, place: int, data: Array) -> None:
        """See `Engine`."""
        self._engine.set_input(data, place)

    def invoke(self) -> None:
        """See `Engine`."""
        self._engine.invoke()

    def tensor(self, index: int) -> Array:
        """See `Engine`."""
        return np.array(self._engine.GetTensor(index, 0)["tensor_data"])


class Litert:
    """LiteRT's reference kernels."""

    def __init__(self, model: bytes) -> None:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        self._engine = Interpreter(
            model_content=model,
            experimental_op_resolver_type=OpResolverType.BUILTIN_REF,
            experimental_preserve_all_tensors=True,
        )
        self._engine.allocate_tensors()
        self._inputs = [int(detail["index"]) for detail in self._engine.get_input_details()]

    def set_input(self, place: int, data: Array) -> None:
        """See `Engine`."""
        self._engine.set_tensor(self._inputs[place], data)

    def invoke(self) -> None:
        """See `Engine`."""
        self._engine.invoke()

    def tensor(self, index: int) -> Array:
        """See `Engine`."""
        return np.array(self._engine.get_tensor(index))


def run_all(engine: Engine, inputs: Sequence[Array], tensors: Sequence[int]) -> dict[str, Array]:
    """Run every case.

    Args:
        engine: An open model.
        inputs: One array for each input of the network, shape (cases, ...).
        tensors: Indices of the tensors that are wanted.

    Returns:
        By index as text, shape (cases, ...).
    """
    found: dict[str, list[Array]] = {str(index): [] for index in tensors}
    for case in zip(*inputs, strict=True):
        for place, data in enumerate(case):
            engine.set_input(place, np.ascontiguousarray(data))
        engine.invoke()
        for index in tensors:
            found[str(index)].append(engine.tensor(index))
    return {name: np.stack(arrays) for name, arrays in found.items()}


def main(arguments: Sequence[str]) -> int:
    """Answer the request in a folder; whatever an engine raises is its refusal, told in the last line of stderr."""
    name, folder = arguments[0], Path(arguments[1])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with np.load(folder / REQUEST, allow_pickle=False) as request:
        inputs = [request[f"input_{place}"] for place in range(int(request["inputs"]))]
        tensors, arena_bytes = request["tensors"].tolist(), int(request["arena_bytes"])
    try:
        model = (folder / MODEL).read_bytes()
        engine: Engine = Litert(model) if name == "litert" else Micro(model, arena_bytes)
        answer = run_all(engine, inputs, tensors)
    except Exception as error:  # it reads the file itself, and raises whatever it likes
        sys.stderr.write(f"\n{type(error).__name__}: {error}\n")
        return 1
    np.savez(folder / ANSWER, **answer)  # type: ignore[arg-type]  # no array is called allow_pickle
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
