"""What all operators of the generator share: the struct's head, padding, activation ranges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from ai_edge_litert.schema_py_generated import ActivationFunctionType, Padding

from export.mcu.errors import ModelFileError
from export.mcu.fixedpoint import round_half_away
from export.mcu.reader import Node
from export.mcu.values import Quant, Value
from split.patch_graph import PatchInput, Window

Values = Mapping[int, Value]


@dataclass(frozen=True, eq=False)
class Op:
    """One operator of the lowered network.

    Attributes:
        node: Index of the operator in the ``.tflite`` file (several lowered operators may share one).
        inputs: Keys of the activations it reads.
        output: Key of the activation it writes.
    """

    node: int
    inputs: tuple[int, ...]
    output: int

    @property
    def kind(self) -> str:
        """Name of the operator for reports, such as ``CONV_2D``."""
        raise NotImplementedError

    def macs(self, values: Values) -> int:
        """Multiply-accumulates of the whole operator."""
        del values
        return 0

    def reads(self, values: Values) -> tuple[tuple[Window, Window], ...]:
        """Row and column window of each input; the default is element by element."""
        del values
        return tuple((Window(), Window()) for _ in self.inputs)


def whole(value: Value) -> tuple[Window, Window]:
    """Windows of an operator that needs all of an input for every output row."""
    return Window(size=value.height, stride=0), Window(size=value.width, stride=0)


@dataclass(frozen=True)
class Frame:
    """Geometry of a sliding window: stride and explicit padding at the top and left (bottom and right follow)."""

    kernel_height: int
    kernel_width: int
    stride_height: int
    stride_width: int
    pad_top: int
    pad_left: int

    def windows(self) -> tuple[Window, Window]:
        """Row and column windows."""
        return (
            Window(self.kernel_height, self.stride_height, self.pad_top),
            Window(self.kernel_width, self.stride_width, self.pad_left),
        )


def make_frame(
    node: Node, kernel: tuple[int, int], stride: tuple[int, int], padding: int, sizes: tuple[Value, Value]
) -> Frame:
    """Compute TensorFlow's padding and check the output's size.

    Args:
        node: For messages.
        kernel: Effective height and width (dilation included).
        stride: Height and width.
        padding: ``Padding.SAME`` or ``Padding.VALID``.
        sizes: Input and output values.

    Raises:
        ModelFileError: A stride or kernel below 1, or an output size that the window does not give.
    """
    if min(*kernel, *stride) < 1:
        raise ModelFileError(f"node {node.index} ({node.op}): kernel {kernel} and stride {stride} must be at least 1.")
    pads = []
    for axis in range(2):
        extent, out = sizes[0].shape[axis], sizes[1].shape[axis]
        same = padding == Padding.SAME
        expected = -(-extent // stride[axis]) if same else (extent - kernel[axis]) // stride[axis] + 1
        if out != expected or (not same and extent < kernel[axis]):
            raise ModelFileError(
                f"node {node.index} ({node.op}): output {sizes[1].shape} does not follow from input {sizes[0].shape}, "
                f"kernel {kernel}, stride {stride}."
            )
        pads.append(max((out - 1) * stride[axis] + kernel[axis] - extent, 0) // 2 if same else 0)
    return Frame(*kernel, *stride, *pads)


@dataclass(frozen=True)
class Clamp:
    """Range of the output integers after the fused activation."""

    low: int
    high: int


def activation_clamp(node: Node, activation: int, quant: Quant) -> Clamp:
    """Range that a fused activation leaves.

    Raises:
        UnsupportedOpError: The activation is none of NONE, RELU, RELU6, RELU_N1_TO_1.

    Source: CalculateActivationRangeQuantized, tensorflow/lite/kernels/kernel_util.cc (float32 division).
    """

    def quantized(real: float) -> int:
        return quant.zero_point + round_half_away(float(np.float32(real) / quant.scale))

    kinds = ActivationFunctionType
    if activation == kinds.NONE:
        return Clamp(-128, 127)
    if activation == kinds.RELU:
        return Clamp(max(-128, quantized(0.0)), 127)
    if activation == kinds.RELU6:
        return Clamp(max(-128, quantized(0.0)), min(127, quantized(6.0)))
    if activation == kinds.RELU_N1_TO_1:
        return Clamp(max(-128, quantized(-1.0)), min(127, quantized(1.0)))
    raise node.refuse(f"fused activation code {activation}", "none, RELU, RELU6, RELU_N1_TO_1")


__all__ = ["Clamp", "Frame", "Op", "PatchInput", "Values", "Window", "activation_clamp", "make_frame", "whole"]
