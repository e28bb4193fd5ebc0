"""The reference engines, TensorFlow Lite Micro and LiteRT: every tensor of a network over given inputs."""

from __future__ import annotations

import importlib.util
import io
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from device_profiles.errors import MissingDependencyError
from export.mcu.errors import ProofError
from export.mcu.network import Network
from export.mcu.oracle_process import Ended, OracleProcess
from export.mcu.values import Quant, View

Int8s = npt.NDArray[np.int8]
SPARE_S = 120.0  # for a call beside its arithmetic,
SLOW_MACS_PER_S = 5e6  # which takes a hundredth of that on a desktop machine
_HEAD_BYTES = 4096  # of an array in an .npz, and of the .npz


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

    The engine runs in a process of its own, since some files make it crash: a fork for each call, for all its cases.

    Args:
        model: The file.
        network: What ``lower`` made of it.
        process: Keeps the engine loaded, for many oracles; None: one of this oracle's own.
        limit_s: A call may take so long; None: what a slow machine needs.

    Raises:
        MissingDependencyError: The engine's package is not installed.
    """

    name = "TensorFlow Lite Micro"
    engine = "tflm"
    package = ("tflite_micro", "tflite-micro")
    advice = "Nothing proves the C without its integers: convert the model again, or try --rounding litert."
    crashes = (
        "Known causes: a DEPTHWISE_CONV_2D without a bias (give it one of zeros), and a SOFTMAX over 512 or more values "
        "that can be equal (leave it to the caller)."
    )

    def __init__(
        self, model: bytes, network: Network, *, process: OracleProcess | None = None, limit_s: float | None = None
    ) -> None:
        module, package = self.package
        if importlib.util.find_spec(module) is None:
            raise MissingDependencyError(
                f"the reference engine needs the package {package}; pip install 'headtail[export-mcu]'."
            )
        self._model, self._network, self._limit_s = model, network, limit_s
        self._process = OracleProcess() if process is None else process

    def run_all(self, cases: Sequence[tuple[Int8s, ...]]) -> tuple[Truth, ...]:
        """Run every case.

        Args:
            cases: For each, int8 arrays, one for each network input, shape (height, width, channels).

        Returns:
            For each, inputs, outputs and every tensor, all int8 in the value's shape.

        Raises:
            ProofError: The engine refuses the model, crashes or takes too long.
        """
        raw = self._ask(cases)
        return tuple(
            self._truth(inputs, {i: data[case] for i, data in raw.items()}) for case, inputs in enumerate(cases)
        )

    def _ask(self, cases: Sequence[tuple[Int8s, ...]]) -> dict[int, npt.NDArray[Any]]:
        request, network = io.BytesIO(), self._network
        np.savez(request, **self._request(cases))  # type: ignore[arg-type]
        limit_s = SPARE_S + len(cases) * network.file_macs / SLOW_MACS_PER_S if self._limit_s is None else self._limit_s
        values = network.homes.items()
        most_bytes = sum(_HEAD_BYTES + len(cases) * 4 * network.values[key].size_bytes for key, _ in values)
        answer = self._process.ask(
            self.engine, request.getvalue(), limit_s=limit_s, most_bytes=_HEAD_BYTES + most_bytes
        )
        if isinstance(answer, Ended):
            raise self._failure(answer, limit_s)
        with np.load(io.BytesIO(answer), allow_pickle=False) as found:
            return {index: found[str(index)] for index, _ in network.homes.values()}

    def _request(self, cases: Sequence[tuple[Int8s, ...]]) -> dict[str, npt.NDArray[Any]]:
        network = self._network
        request = {
            "model": np.frombuffer(self._model, np.uint8),
            "inputs": np.array(len(network.inputs)),
            "tensors": np.array(sorted({index for index, _ in network.homes.values()}), np.int64),
            "arena_bytes": np.array(arena_guess(network)),
        }
        for place, (port, arrays) in enumerate(zip(network.inputs, zip(*cases, strict=True), strict=True)):
            given = [edge_input(from_physical(data, port.view), port.dtype, port.quant) for data in arrays]
            request[f"input_{place}"] = np.stack(given)
        return request

    def _failure(self, ended: Ended, limit_s: float) -> ProofError:
        said = " | ".join(ended.said.split("\n")).strip(" |.")[-400:]
        if ended.status == -signal.SIGALRM:
            return ProofError(
                f"Wanted {self.name} to run the model within {limit_s:g} s, found it still running. "
                "Try a smaller model or an idle machine."
            )
        if ended.status < 0:
            return ProofError(
                f"Wanted {self.name} to run the model, found that {_signal_name(-ended.status)} ended it: "
                f"{said or 'it said nothing'}. {self.crashes}"
            )
        return ProofError(f"{self.name} refuses the model: {said}. {self.advice}")

    def _truth(self, inputs: tuple[Int8s, ...], raw: Mapping[int, npt.NDArray[Any]]) -> Truth:
        network, tensors = self._network, {}
        for key, (index, view) in network.homes.items():
            tensors[key] = to_physical(raw[index].reshape(view.shape), view, network.values[key].shape)
        return Truth(inputs, tuple(tensors[port.key] for port in network.outputs), tensors)


class LitertOracle(Oracle):
    """LiteRT's reference kernels, for exports that round FULLY_CONNECTED once."""

    name = "LiteRT"
    engine = "litert"
    package = ("ai_edge_litert", "ai-edge-litert")
    advice = "Leave --rounding at tflm."
    crashes = "Known cause: a SOFTMAX over 512 or more values that can be equal (leave it to the caller)."


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


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
