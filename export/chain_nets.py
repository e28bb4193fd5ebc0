"""Chains of random convolutions as artefacts: small networks that a board is calibrated with, in fp32 or int8.

Single layers measured alone do not add up to a network (cold or too warm caches, changes of layout), so that layers are
measured inside chains. Weights are random; times do not depend on them.
"""

import random
from pathlib import Path
from typing import Literal

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from edge_runtime.artefact import Artefact, write_artefact
from edge_runtime.engine_version import installed_version
from edge_runtime.manifest import Engine, Manifest, ModelInfo, TensorSpec, Tool

Precision = Literal["fp32", "int8"]
Tensor = tuple[str, int]  # name, channels
CLASSES = 1000
_MAX_MACS = 300_000_000  # of one convolution of a chain: a slow board should not take seconds for it
_MIN_SIDE = 7  # of a chain's feature maps


class NetBuilder:
    """Adds layers to a graph; with int8, every activation and weight stands between QuantizeLinear and DequantizeLinear."""

    def __init__(self, size: int, seed: int = 0, precision: Precision = "fp32") -> None:
        self.size, self.precision = size, precision
        self._nodes: list[object] = []
        self._constants: list[object] = []
        self._generator = np.random.default_rng(seed)
        if precision == "int8":
            self._constant("zero", np.array(0, np.uint8))
            self._constant("scale", np.array(0.03, np.float32))

    @property
    def source(self) -> Tensor:
        """The picture, three channels."""
        return (self._quantise("x"), 3)

    def conv(
        self, source: Tensor, out: int, kernel: int, stride: int = 1, *, groups: int = 1, relu: bool = True
    ) -> Tensor:
        """A convolution with bias, and ReLU."""
        name, channels = source
        index = len(self._nodes)
        weight = self._weight(f"w{index}", out, channels // groups, kernel, kernel)
        bias = self._bias(f"b{index}", out)
        pads = [kernel // 2] * 4
        self._add("Conv", [name, weight, bias], f"c{index}", group=groups, strides=[stride] * 2, pads=pads)
        if not relu:
            return self._quantise(f"c{index}"), out
        self._add("Relu", [f"c{index}"], f"r{index}")
        return self._quantise(f"r{index}"), out

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        """A residual sum with ReLU."""
        index = len(self._nodes)
        self._add("Add", [a[0], b[0]], f"s{index}")
        self._add("Relu", [f"s{index}"], f"r{index}")
        return self._quantise(f"r{index}"), a[1]

    def concat(self, a: Tensor, b: Tensor) -> Tensor:
        """Channels of both."""
        index = len(self._nodes)
        self._add("Concat", [a[0], b[0]], f"j{index}", axis=1)
        return self._quantise(f"j{index}"), a[1] + b[1]

    def pool(self, source: Tensor) -> Tensor:
        """Largest of 3x3, every second."""
        index = len(self._nodes)
        self._add("MaxPool", [source[0]], f"p{index}", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
        return self._quantise(f"p{index}"), source[1]

    def finish(self, source: Tensor) -> bytes:
        """Mean over the picture and a linear layer; the model's bytes."""
        weight, bias = self._weight("wl", CLASSES, source[1]), self._bias("bl", CLASSES)
        self._add("GlobalAveragePool", [source[0]], "mean")
        self._add("Flatten", [self._quantise("mean")], "flat")
        self._add("Gemm", [self._quantise("flat"), weight, bias], "logits", transB=1)
        output = self._quantise("logits")
        self._add("Identity", [output], "y")
        graph = helper.make_graph(
            self._nodes,
            "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, self.size, self.size])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, CLASSES])],
            self._constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        data: bytes = model.SerializeToString()
        return data

    def _add(self, op: str, inputs: list[str], output: str, **attributes: object) -> None:
        name = f"{op.lower()}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(op, inputs, [output], name=name, **attributes))

    def _constant(self, name: str, values: np.ndarray) -> str:
        self._constants.append(numpy_helper.from_array(values, name))
        return name

    def _quantise(self, name: str) -> str:
        if self.precision == "fp32":
            return name
        self._add("QuantizeLinear", [name, "scale", "zero"], f"{name}_q")
        self._add("DequantizeLinear", [f"{name}_q", "scale", "zero"], f"{name}_d")
        return f"{name}_d"

    def _weight(self, name: str, *shape: int) -> str:
        if self.precision == "fp32":
            fan_in = int(np.prod(shape[1:])) or 1
            return self._constant(name, (self._generator.standard_normal(shape) / np.sqrt(fan_in)).astype(np.float32))
        integers = self._generator.integers(-127, 128, shape, np.int8)
        self._constant(f"{name}_q", integers)
        self._constant(f"{name}_s", np.full(shape[0], 0.01, np.float32))
        self._constant(f"{name}_z", np.zeros(shape[0], np.int8))
        self._add("DequantizeLinear", [f"{name}_q", f"{name}_s", f"{name}_z"], name, axis=0)
        return name

    def _bias(self, name: str, count: int) -> str:
        if self.precision == "fp32":
            return self._constant(name, (0.1 * self._generator.standard_normal(count)).astype(np.float32))
        self._constant(f"{name}_q", self._generator.integers(-1000, 1000, count).astype(np.int32))
        self._constant(f"{name}_s", np.full(count, 0.0003, np.float32))  # scale of data times that of weights
        self._constant(f"{name}_z", np.zeros(count, np.int32))
        self._add("DequantizeLinear", [f"{name}_q", f"{name}_s", f"{name}_z"], name, axis=0)
        return name


def chain(seed: int, precision: Precision = "fp32") -> tuple[bytes, int]:
    """A chain of 5 to 12 random blocks, and the size of its input; every class of kernels that networks have is in them.

    A block is a convolution, or two with a residual sum, or two side by side whose channels are joined; some are pooled.
    """
    choose = random.Random(seed)
    size = choose.choice([96, 128, 160, 224])
    net = NetBuilder(size, seed, precision)
    stride = choose.choice([1, 2, 2, 2])
    x = net.conv(net.source, choose.choice([16, 32, 64]) if stride == 2 else 16, choose.choice([3, 3, 7]), stride)
    side = size // stride
    for index in range(choose.randint(5, 12)):
        out = min(512, x[1] * choose.choice([1, 1, 2]))
        room = _MAX_MACS // (side * side * x[1])  # output channels times kernel size
        kinds = [
            kind for kind, need in (("conv", 9 * out), ("residual", 9 * x[1]), ("joined", 9 * out)) if need <= room
        ]
        kind = choose.choice([*kinds, "pointwise", "depthwise", "pointwise", "depthwise"])
        stride = choose.choice([1, 1, 2]) if index < 8 and side > 2 * _MIN_SIDE else 1
        if kind == "depthwise":
            x = net.conv(x, x[1], 3, stride, groups=x[1])
        elif kind == "residual":
            x, stride = net.add(net.conv(x, x[1], choose.choice([1, 3]), relu=False), x), 1
        elif kind == "joined":
            thin = net.conv(x, max(16, x[1] // choose.choice([2, 4])), 1)
            x, stride = net.concat(net.conv(thin, max(16, out // 2), 1), net.conv(thin, max(16, out // 2), 3)), 1
        else:
            x = net.conv(x, out if out <= room or kind == "conv" else x[1], 3 if kind == "conv" else 1, stride)
        side //= stride
        if side > 2 * _MIN_SIDE and choose.random() < 0.2:
            x, side = net.pool(x), side // 2
    return net.finish(x), size


def write_net(folder: Path, name: str, data: bytes, size: int, precision: Precision = "fp32") -> Artefact:
    """A model of this module as an artefact for ONNX Runtime, one thread."""
    manifest = Manifest(
        schema=1,
        tool=Tool(name="headtail", version="calibration"),
        model=ModelInfo(name=name, source_sha256="0" * 64),
        role="whole",
        target="this",
        precision=precision,
        engine=Engine(name="onnxruntime", built=installed_version("onnxruntime") or "unknown"),
        entry="model.onnx",
        inputs=(TensorSpec(name="x", engine_name="x", dtype="float32", shape=(1, 3, size, size)),),
        outputs=(TensorSpec(name="y", engine_name="y", dtype="float32", shape=(1, CLASSES)),),
        files=(),
    )
    return write_artefact(folder / name, manifest, {"model.onnx": data})
