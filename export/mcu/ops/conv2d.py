"""CONV_2D, with dilation and groups written out as zero weights (exact: a zero weight adds nothing)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from export.mcu.errors import ModelFileError
from export.mcu.fixedpoint import quantize_multiplier
from export.mcu.ops.base import Clamp, Frame, Op, Values, Window, activation_clamp, make_frame
from export.mcu.reader import Node
from export.mcu.values import Constant, Value

if TYPE_CHECKING:
    from export.mcu.builder import NetworkBuilder


@dataclass(frozen=True, eq=False)
class Requant:
    """Per output channel: accumulator -> int8.

    Attributes:
        bias: int32, shape (out,).
        multiplier: int32, shape (out,), 0 or in [2^30, 2^31).
        shift: int32, shape (out,), exponent of two (left when positive).
    """

    bias: np.ndarray
    multiplier: np.ndarray
    shift: np.ndarray


@dataclass(frozen=True, eq=False)
class SlidingOp(Op):
    """A dot product of weights (int8) with a window that slides over the input."""

    weights: np.ndarray
    requant: Requant
    frame: Frame
    clamp: Clamp

    def macs(self, values: Values) -> int:
        """Output positions times weights."""
        out = values[self.output]
        return out.height * out.width * int(self.weights.size)

    def reads(self, values: Values) -> tuple[tuple[Window, Window], ...]:
        """The kernel's windows."""
        del values
        return (self.frame.windows(),)


@dataclass(frozen=True, eq=False)
class Conv2D(SlidingOp):
    """``weights`` is int8 (out, kernel height, kernel width, in)."""

    @property
    def kind(self) -> str:
        """``CONV_2D``."""
        return "CONV_2D"


def make_requant(node: Node, net: NetworkBuilder, weights: Constant, multipliers: list[float]) -> Requant:
    """Bias and fixed-point multipliers of a layer with ``len(multipliers)`` output channels."""
    count = len(multipliers)
    bias = np.zeros(count, np.int32)
    if len(node.inputs) > 2 and node.inputs[2] >= 0:
        bias = net.constant(node, 2, "int32").data.reshape(-1)
    if bias.size != count:
        raise ModelFileError(f"node {node.index} ({node.op}): {bias.size} biases for {count} output channels.")
    if any(weights.zero_points):
        raise node.refuse("weights with a zero point other than 0", "symmetric int8 weights")
    pairs = [quantize_multiplier(m) for m in multipliers]
    return Requant(
        bias.astype(np.int32), np.array([q for q, _ in pairs], np.int32), np.array([s for _, s in pairs], np.int32)
    )


def channel_multipliers(
    node: Node, weights: Constant, sizes: tuple[Value, Value], count: int, axis: int
) -> list[float]:
    """Real multipliers of a convolution.

    Source: PopulateConvolutionQuantizationParams, tensorflow/lite/kernels/kernel_util.cc (float64 product of float32).
    """
    if len(weights.scales) not in (1, count) or (len(weights.scales) == count > 1 and weights.channel_axis != axis):
        raise ModelFileError(
            f"node {node.index} ({node.op}): {len(weights.scales)} weight scales over axis {weights.channel_axis}; "
            f"wanted 1, or {count} over axis {axis}."
        )
    scales = weights.scales if len(weights.scales) == count else weights.scales * count
    source, target = float(sizes[0].quant.scale), float(sizes[1].quant.scale)
    return [source * float(scale) / target for scale in scales]


def dilate(weights: np.ndarray, height: int, width: int) -> np.ndarray:
    """Spread kernel taps of (out, kh, kw, in) weights with zeros between them."""
    out, kernel_height, kernel_width, channels = weights.shape
    spread = np.zeros((out, (kernel_height - 1) * height + 1, (kernel_width - 1) * width + 1, channels), np.int8)
    spread[:, ::height, ::width, :] = weights
    return spread


def ungroup(weights: np.ndarray, channels: int) -> np.ndarray:
    """Write grouped (out, kh, kw, in / groups) weights as dense (out, kh, kw, in)."""
    out, height, width, group_channels = weights.shape
    groups = channels // group_channels
    dense = np.zeros((out, height, width, channels), np.int8)
    per_group = out // groups
    for g in range(groups):
        rows, columns = slice(g * per_group, (g + 1) * per_group), slice(g * group_channels, (g + 1) * group_channels)
        dense[rows, :, :, columns] = weights[rows]
    return dense


def read_conv2d(node: Node, net: NetworkBuilder) -> None:
    """Read a CONV_2D node."""
    options = node.options
    if options is None:
        raise ModelFileError(f"node {node.index} (CONV_2D) has no options; file damaged.")
    source = net.plain(node, 0)
    weights = net.constant(node, 1, "int8")
    target = net.define(node.outputs[0])
    if weights.data.ndim != 4 or weights.data.shape[0] != target.channels or source.channels % weights.data.shape[3]:
        raise ModelFileError(
            f"node {node.index} (CONV_2D): weights {weights.data.shape} do not fit "
            f"input {source.shape} and output {target.shape}."
        )
    if target.channels % (source.channels // weights.data.shape[3]):
        raise ModelFileError(f"node {node.index} (CONV_2D): {target.channels} outputs do not divide into groups.")
    dilation = (options.DilationHFactor(), options.DilationWFactor())
    if min(dilation) < 1 or max(dilation) > 64:
        raise node.refuse(f"dilation {dilation}", "1 to 64")
    dense = ungroup(dilate(weights.data, *dilation), source.channels)
    stride = (options.StrideH(), options.StrideW())
    frame = make_frame(node, dense.shape[1:3], stride, options.Padding(), (source, target))
    multipliers = channel_multipliers(node, weights, (source, target), target.channels, 0)
    net.ops.append(
        Conv2D(
            node.index,
            (source.key,),
            target.key,
            dense,
            make_requant(node, net, weights, multipliers),
            frame,
            activation_clamp(node, options.FusedActivationFunction(), target.quant),
        )
    )
