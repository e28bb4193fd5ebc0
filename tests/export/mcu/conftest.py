"""Small int8 networks for the microcontroller tests, written with the flatbuffer schema's own packer."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from export.mcu.native import build_library
from export.mcu.oracle_process import OracleProcess

CODES = {name: code for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
TYPES = {
    np.dtype("int8"): schema.TensorType.INT8,
    np.dtype("uint8"): schema.TensorType.UINT8,
    np.dtype("int32"): schema.TensorType.INT32,
    np.dtype("float32"): schema.TensorType.FLOAT32,
}


@dataclass
class TfliteBuilder:
    """Collects tensors and operators, then packs them."""

    seed: int = 0
    tensors: list = field(default_factory=list)
    buffers: list = field(default_factory=lambda: [schema.BufferT()])
    operators: list = field(default_factory=list)
    codes: list = field(default_factory=list)

    def __post_init__(self):
        self.rng = np.random.default_rng(self.seed)

    def activation(self, shape, scale=0.05, zero_point=0, dtype="int8", name=None):
        tensor = schema.TensorT()
        tensor.shape = list(shape)
        tensor.type = TYPES[np.dtype(dtype)]
        tensor.buffer = 0
        tensor.name = name or f"t{len(self.tensors)}"
        if dtype != "float32":
            tensor.quantization = schema.QuantizationParametersT()
            tensor.quantization.scale = [float(np.float32(scale))]
            tensor.quantization.zeroPoint = [int(zero_point)]
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def constant(self, data, scales=None, axis=0, zero_points=None):
        data = np.asarray(data)
        tensor = schema.TensorT()
        tensor.shape = list(data.shape)
        tensor.type = TYPES[data.dtype]
        tensor.name = f"c{len(self.tensors)}"
        if scales is not None:
            tensor.quantization = schema.QuantizationParametersT()
            tensor.quantization.scale = [float(np.float32(s)) for s in np.atleast_1d(scales)]
            points = zero_points if zero_points is not None else [0] * len(tensor.quantization.scale)
            tensor.quantization.zeroPoint = points
            tensor.quantization.quantizedDimension = axis
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(data.tobytes(), np.uint8)
        tensor.buffer = len(self.buffers)
        self.buffers.append(buffer)
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def node(self, op, inputs, outputs, options=None, **fields):
        operator = schema.OperatorT()
        if op not in self.codes:
            self.codes.append(op)
        operator.opcodeIndex = self.codes.index(op)
        operator.inputs = list(inputs)
        operator.outputs = list(outputs)
        if options:
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, options)
            operator.builtinOptions = getattr(schema, options + "T")()
            for name, value in fields.items():
                assert hasattr(operator.builtinOptions, name), name
                setattr(operator.builtinOptions, name, value)
        self.operators.append(operator)
        return outputs[0]

    def finish(self, inputs, outputs) -> bytes:
        model = schema.ModelT()
        model.version = 3
        model.buffers = self.buffers
        graph = schema.SubGraphT()
        graph.tensors, graph.operators = self.tensors, self.operators
        graph.inputs, graph.outputs = list(inputs), list(outputs)
        model.subgraphs = [graph]
        model.operatorCodes = []
        for name in self.codes:
            code = schema.OperatorCodeT()
            code.builtinCode = CODES[name]
            code.deprecatedBuiltinCode = min(CODES[name], 127)
            code.version = 1
            model.operatorCodes.append(code)
        packer = flatbuffers.Builder(1024)
        packer.Finish(model.Pack(packer), b"TFL3")
        return bytes(packer.Output())

    # ---- operators with random weights; each returns the index of its output tensor ----

    def scale_of(self, tensor):
        return self.tensors[tensor].quantization.scale[0]

    def zero_of(self, tensor):
        return int(self.tensors[tensor].quantization.zeroPoint[0])

    def weights(self, shape, axis, per_channel=True):
        count = shape[axis] if per_channel else 1
        scales = self.rng.uniform(0.002, 0.02, count).astype(np.float32)
        return self.constant(self.rng.integers(-127, 128, shape).astype(np.int8), scales, axis), scales

    def bias(self, source, scales, count):
        values = self.rng.integers(-3000, 3000, count).astype(np.int32)
        per_channel = np.broadcast_to(np.float32(self.scale_of(source)) * scales, (count,))
        return self.constant(values, per_channel)

    def conv(
        self,
        source,
        out,
        kernel=(3, 3),
        stride=(1, 1),
        padding=0,
        gain=1.0,
        activation=0,
        dilation=(1, 1),
        groups=1,
        per_channel=True,
    ):
        _, _height, _width, channels = self.tensors[source].shape
        weights, scales = self.weights((out, *kernel, channels // groups), 0, per_channel)
        taps = kernel[0] * kernel[1] * channels / groups
        target = self.window(source, out, kernel, stride, padding, dilation, self.spread(source, scales, taps, gain))
        bias = self.bias(source, scales, out)
        options = dict(
            padding=padding, strideH=stride[0], strideW=stride[1], fusedActivationFunction=activation,
            dilationHFactor=dilation[0], dilationWFactor=dilation[1],
        )  # fmt: skip
        return self.node("CONV_2D", [source, weights, bias], [target], "Conv2DOptions", **options)

    def depthwise(
        self, source, multiplier=1, kernel=(3, 3), stride=(1, 1), padding=0, gain=1.0, activation=0, dilation=(1, 1)
    ):
        channels = self.tensors[source].shape[3]
        out = channels * multiplier
        weights, scales = self.weights((1, *kernel, out), 3)
        target = self.window(
            source, out, kernel, stride, padding, dilation, self.spread(source, scales, kernel[0] * kernel[1], gain)
        )
        bias = self.bias(source, scales, out)
        options = dict(
            padding=padding, strideH=stride[0], strideW=stride[1], fusedActivationFunction=activation,
            depthMultiplier=multiplier, dilationHFactor=dilation[0], dilationWFactor=dilation[1],
        )  # fmt: skip
        return self.node("DEPTHWISE_CONV_2D", [source, weights, bias], [target], "DepthwiseConv2DOptions", **options)

    def spread(self, source, scales, taps, gain):
        """An output scale that uses the int8 range, made smaller (clipping) or larger by ``gain``."""
        return float(self.scale_of(source) * scales.mean() * np.sqrt(taps) * 60 / gain)

    def window(self, source, out, kernel, stride, padding, dilation, scale):
        _, height, width, _ = self.tensors[source].shape
        sizes = []
        for extent, k, s, d in zip((height, width), kernel, stride, dilation, strict=False):
            reach = (k - 1) * d + 1
            sizes.append(-(-extent // s) if padding == 0 else (extent - reach) // s + 1)
        return self.activation((1, *sizes, out), scale, int(self.rng.integers(-128, 128)))

    def dense(self, source, out, gain=1.0, activation=0, per_channel=False, keep=False):
        size = int(np.prod(self.tensors[source].shape))
        weights, scales = self.weights((out, size), 0, per_channel)
        target = self.activation((1, out), self.spread(source, scales, size, gain), int(self.rng.integers(-128, 128)))
        bias = self.bias(source, scales, out)
        return self.node(
            "FULLY_CONNECTED", [source, weights, bias], [target], "FullyConnectedOptions",
            fusedActivationFunction=activation, keepNumDims=keep,
        )  # fmt: skip

    def pool(self, source, op="AVERAGE_POOL_2D", kernel=(2, 2), stride=(2, 2), padding=1, activation=0):
        channels = self.tensors[source].shape[3]
        target = self.window(source, channels, kernel, stride, padding, (1, 1), self.scale_of(source))
        self.tensors[target].quantization.zeroPoint = [self.zero_of(source)]
        return self.node(
            op, [source], [target], "Pool2DOptions", padding=padding, strideH=stride[0], strideW=stride[1],
            filterHeight=kernel[0], filterWidth=kernel[1], fusedActivationFunction=activation,
        )  # fmt: skip

    def binary(self, op, first, second, activation=0, gain=1.0):
        shapes = [self.tensors[i].shape for i in (first, second)]
        shape = np.broadcast_shapes(*shapes)
        scales = [self.scale_of(i) for i in (first, second)]
        scale = (max(scales) * 1.3 if op == "ADD" else scales[0] * scales[1] * 40) / gain
        target = self.activation(shape, scale, int(self.rng.integers(-100, 100)))
        return self.node(
            op,
            [first, second],
            [target],
            {"ADD": "AddOptions", "MUL": "MulOptions"}[op],
            fusedActivationFunction=activation,
        )

    def unary(self, op, source, scale=None, zero_point=None):
        fixed = {
            "LOGISTIC": (1 / 256, -128),
            "SOFTMAX": (1 / 256, -128),
            "RELU6": (self.scale_of(source), self.zero_of(source)),
        }
        chosen = fixed.get(
            op,
            (
                scale or self.scale_of(source) * 0.9,
                int(self.rng.integers(-128, 128)) if zero_point is None else zero_point,
            ),
        )
        target = self.activation(self.tensors[source].shape, *chosen)
        options = ("SoftmaxOptions", {"beta": 1.0}) if op == "SOFTMAX" else (None, {})
        return self.node(op, [source], [target], options[0], **options[1])

    def pad(self, source, top, bottom, left, right):
        _, height, width, channels = self.tensors[source].shape
        target = self.activation(
            (1, height + top + bottom, width + left + right, channels), self.scale_of(source), self.zero_of(source)
        )
        amounts = self.constant(np.array([[0, 0], [top, bottom], [left, right], [0, 0]], np.int32))
        return self.node("PAD", [source, amounts], [target], "PadOptions")

    def mean(self, source, axes, keep=True, gain=1.0):
        shape = self.tensors[source].shape
        kept = [1 if i in axes else n for i, n in enumerate(shape) if keep or i not in axes]
        target = self.activation(kept, self.scale_of(source) * 0.4 / gain, int(self.rng.integers(-60, 60)))
        return self.node(
            "MEAN", [source, self.constant(np.array(axes, np.int32))], [target], "ReducerOptions", keepDims=keep
        )

    def reshape(self, source, shape):
        target = self.activation(shape, self.scale_of(source), self.zero_of(source))
        return self.node(
            "RESHAPE",
            [source, self.constant(np.array(shape, np.int32))],
            [target],
            "ReshapeOptions",
            newShape=list(shape),
        )

    def transpose(self, source, order):
        shape = [self.tensors[source].shape[i] for i in order]
        target = self.activation(shape, self.scale_of(source), self.zero_of(source))
        return self.node("TRANSPOSE", [source, self.constant(np.array(order, np.int32))], [target], "TransposeOptions")

    def concatenate(self, sources, axis):
        shape = list(self.tensors[sources[0]].shape)
        shape[axis] = sum(self.tensors[i].shape[axis] for i in sources)
        target = self.activation(shape, self.scale_of(sources[0]), self.zero_of(sources[0]))
        return self.node(
            "CONCATENATION", sources, [target], "ConcatenationOptions", axis=axis, fusedActivationFunction=0
        )

    def resize(self, source, size, align=False, half=False):
        shape = [1, *size, self.tensors[source].shape[3]]
        target = self.activation(shape, self.scale_of(source), self.zero_of(source))
        sizes = self.constant(np.array(size, np.int32))
        return self.node(
            "RESIZE_NEAREST_NEIGHBOR",
            [source, sizes],
            [target],
            "ResizeNearestNeighborOptions",
            alignCorners=align,
            halfPixelCenters=half,
        )


@pytest.fixture(scope="session")
def tflite_builder() -> type[TfliteBuilder]:
    return TfliteBuilder


@pytest.fixture(scope="session")
def kernel_library(tmp_path_factory) -> Path:
    return build_library(tmp_path_factory.mktemp("kernels"))


@pytest.fixture(scope="session")
def fresh_folder(tmp_path_factory):
    """A function that gives a new folder on every call (hypothesis runs one test many times)."""
    base = tmp_path_factory.mktemp("networks")
    numbers = itertools.count()
    return lambda: base / str(next(numbers))


@pytest.fixture(scope="session")
def engines() -> OracleProcess:
    """The reference engines, loaded once for all proofs."""
    return OracleProcess()
