"""The reference engine: TensorFlow Lite Micro in its PyPI package, every intermediate tensor kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from device_profiles.errors import MissingDependencyError
from export.mcu.errors import ProofError
from export.mcu.network import Network
from export.mcu.values import Quant, View

Int8s = npt.NDArray[np.int8]


@dataclass(frozen=True, eq=False)
class Truth:
    """Integers of one run, laid out as the generated C has them (height, width, channels)."""

    inputs: tuple[Int8s, ...]
    outputs: tuple[Int8s, ...]
    tensors: dict[int, Int8s]  # every value of the network, by key


def to_physical(data: npt.NDArray[Any], view: View, shape: tuple[int, int, int]) -> npt.NDArray[Any]:
    """Lay out a tensor of the file as its value lies in memory."""
    if view.in_memory_order:
        return np.ascontiguousarray(data).reshape(shape)
    dims = [axis for axis, size in enumerate(view.shape) if size > 1]
    squeezed = data.reshape([view.shape[i] for i in dims])
    return np.ascontiguousarray(squeezed.transpose(np.argsort(view.order))).reshape(shape)


def from_physical(data: npt.NDArray[Any], view: View) -> npt.NDArray[Any]:
    """The inverse of ``to_physical``: a value's bytes in the file's shape."""
    if view.in_memory_order:
        return data.reshape(view.shape)
    order = list(view.order)
    by_axis = sorted(order)
    sizes = {axis: size for axis, size in zip(view.axes, view.shape, strict=True) if size > 1}
    squeezed = data.reshape([sizes[axis] for axis in by_axis])
    return np.ascontiguousarray(squeezed.transpose([by_axis.index(axis) for axis in order])).reshape(view.shape)


class Oracle:
    """Runs a ``.tflite`` file in TensorFlow Lite Micro and hands out every tensor of its network.

    Raises:
        MissingDependencyError: The package ``tflite-micro`` is not installed.
        ProofError: The engine refuses the model.
    """

    name = "TensorFlow Lite Micro"

    def __init__(self, model: bytes, network: Network) -> None:
        try:
            from tflite_micro import runtime
        except ImportError as error:
            raise MissingDependencyError(
                "the reference engine needs the package tflite-micro; pip install 'headtail[export-mcu]'."
            ) from error
        self._network = network
        try:
            self._engine = runtime.Interpreter.from_bytes(
                model,
                arena_size=arena_guess(network),
                intrepreter_config=runtime.InterpreterConfig.kPreserveAllTensors,
            )
        except Exception as error:  # it reads the file itself, and whatever that raises is its refusal
            raise ProofError(f"TensorFlow Lite Micro refuses the model: {type(error).__name__}: {error}") from error

    def run(self, inputs: tuple[Int8s, ...]) -> Truth:
        """Run once.

        Args:
            inputs: int8 arrays, one for each network input, shape (height, width, channels).

        Returns:
            Inputs, outputs and every tensor, all int8 in the value's shape.
        """
        network = self._network
        for place, (port, data) in enumerate(zip(network.inputs, inputs, strict=True)):
            self._engine.set_input(edge_input(from_physical(data, port.view), port.dtype, port.quant), place)
        self._engine.invoke()
        tensors = {}
        for key, (index, view) in network.homes.items():
            raw = np.asarray(self._engine.GetTensor(index, 0)["tensor_data"])
            tensors[key] = to_physical(raw.reshape(view.shape), view, network.values[key].shape)
        outputs = tuple(tensors[port.key] for port in network.outputs)
        return Truth(inputs, outputs, tensors)


def edge_input(data: Int8s, dtype: str, quant: Quant) -> npt.NDArray[Any]:
    """What the file's own input must hold so that its QUANTIZE gives exactly these integers."""
    if dtype == "int8":
        return data
    if dtype == "uint8":
        return (data.astype(np.int16) + 128).astype(np.uint8)
    real = (data.astype(np.float32) - np.float32(quant.zero_point)) * quant.scale
    return np.asarray(real, dtype=np.float32)


def arena_guess(network: Network) -> int:
    """Bytes that surely hold all tensors of a run: four times their sum (edges may be float) and 4 MB."""
    return 4 * 1024 * 1024 + 6 * sum(value.size_bytes for value in network.values.values()) + 2 * network.weight_bytes
