"""What the engine's profiler itself takes inside the interval that it shows for a kernel.

ONNX Runtime collects sizes and shapes of a kernel's tensors between the two readings of its clock. Chains of linear layers of
four values show how much that is: their kernels take about a microsecond in a plain run. It is the same for every kernel,
with weights and in warm caches: of networks whose kernels take a few microseconds it may be too much (docs/profiling.md).
"""

import statistics
import struct
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort

from edge_runtime.backends.onnxrt import session_options
from edge_runtime.profile_trace import read_trace

_SHORT, _LONG = 8, 40  # kernels: the difference is free of what one run costs
_RUNS = 5  # of each chain in a block
_WIDTH = 4
_VARINT, _BYTES, _FLOAT32 = 0, 2, 1


class HookCost:
    """Two chains, each with and without the profiler; measured a little in every block."""

    def __init__(self, folder: Path, threads: int) -> None:
        self._feeds = {"t0": np.zeros((1, _WIDTH), np.float32)}
        self._plain = [
            ort.InferenceSession(encode_chain(count), session_options("all", threads)) for count in (_SHORT, _LONG)
        ]
        options = session_options("all", threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(folder / "hook")
        self._instrumented = ort.InferenceSession(encode_chain(_LONG), options)
        self._blocks: list[list[tuple[int, int]]] = []  # ns of the short and of the long chain, plain

    def measure(self) -> None:
        """One block: plain and instrumented runs in turn."""
        short, long = self._plain
        block = []
        for _ in range(_RUNS):
            begun = time.perf_counter_ns()
            short.run(None, self._feeds)
            middle = time.perf_counter_ns()
            long.run(None, self._feeds)
            block.append((middle - begun, time.perf_counter_ns() - middle))
            self._instrumented.run(None, self._feeds)
        self._blocks.append(block)

    def end(self) -> list[float]:
        """Milliseconds that each kernel is shown too long, for each block; not below zero."""
        trace = read_trace(Path(self._instrumented.end_profiling()))
        shown = [sum(call.us for call in run) / len(run) for run in trace.runs]
        return [hook_ms(shown[index * _RUNS : (index + 1) * _RUNS], block) for index, block in enumerate(self._blocks)]


def hook_ms(shown_us: Sequence[float], plain_ns: Sequence[tuple[int, int]]) -> float:
    """What a kernel is shown too long, from mean kernel times of instrumented runs and (short, long) plain runs."""
    short, long = (statistics.median(one) for one in zip(*plain_ns, strict=True))
    real_us = (long - short) / (_LONG - _SHORT) / 1000
    return float(max(0.0, statistics.median(shown_us) - real_us) / 1000)


def encode_chain(count: int) -> bytes:
    """A chain of `count` linear layers as an ONNX model; a device has no onnx library to build it with."""
    nodes = b"".join(
        _message(1, _text(1, f"t{i}") + _text(1, "w") + _text(1, "b") + _text(2, f"t{i + 1}") + _text(4, "Gemm"))
        for i in range(count)
    )  # GraphProto.node: inputs, output, op_type
    constants = _tensor("w", (_WIDTH, _WIDTH)) + _tensor("b", (_WIDTH,))
    ends = _message(11, _value("t0")) + _message(12, _value(f"t{count}"))
    graph = nodes + _text(2, "hook") + constants + ends
    opset = _message(8, _number(2, 17))
    return _number(1, 9) + _message(7, graph) + opset  # ModelProto: ir_version, graph, opset_import


def _tensor(name: str, shape: tuple[int, ...]) -> bytes:
    values = struct.pack(f"<{np.prod(shape)}f", *[0.0] * int(np.prod(shape)))
    sizes = b"".join(_number(1, size) for size in shape)
    return _message(5, sizes + _number(2, _FLOAT32) + _text(8, name) + _message(9, values))  # GraphProto.initializer


def _value(name: str) -> bytes:
    shape = b"".join(_message(1, _number(1, size)) for size in (1, _WIDTH))
    return _text(1, name) + _message(2, _message(1, _number(1, _FLOAT32) + _message(2, shape)))  # ValueInfoProto


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3 | _VARINT) + _varint(value)


def _text(field: int, value: str) -> bytes:
    return _message(field, value.encode())


def _message(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | _BYTES) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
