"""DEPTHWISE_CONV_2D with any multiplier; over a one-channel input it is the same sum as CONV_2D and becomes one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from export.mcu.errors import ModelFileError
from export.mcu.ops.base import activation_clamp, make_frame
from export.mcu.ops.conv2d import Conv2D, SlidingOp, channel_multipliers, dilate, make_requant
from export.mcu.reader import Node

if TYPE_CHECKING:
    from export.mcu.builder import NetworkBuilder


@dataclass(frozen=True, eq=False)
class DepthwiseConv2D(SlidingOp):
    """One filter per output channel; output channel c reads input channel c // multiplier.

    ``weights`` is int8 (kernel height, kernel width, out).
    """

    multiplier: int

    @property
    def kind(self) -> str:
        """``DEPTHWISE_CONV_2D``."""
        return "DEPTHWISE_CONV_2D"


def read_depthwise(node: Node, net: NetworkBuilder) -> None:
    """Read a DEPTHWISE_CONV_2D node."""
    options = node.options
    if options is None:
        raise ModelFileError(f"node {node.index} (DEPTHWISE_CONV_2D) has no options; file damaged.")
    source = net.plain(node, 0)
    weights = net.constant(node, 1, "int8")
    target = net.define(node.outputs[0])
    shape = weights.data.shape
    if len(shape) != 4 or shape[0] != 1 or shape[3] != target.channels or target.channels % source.channels:
        raise ModelFileError(
            f"node {node.index} (DEPTHWISE_CONV_2D): weights {shape} do not fit "
            f"input {source.shape} and output {target.shape}."
        )
    dilation = (options.DilationHFactor(), options.DilationWFactor())
    if min(dilation) < 1 or max(dilation) > 64:
        raise node.refuse(f"dilation {dilation}", "1 to 64")
    spread = dilate(weights.data, *dilation)
    stride = (options.StrideH(), options.StrideW())
    frame = make_frame(node, spread.shape[1:3], stride, options.Padding(), (source, target))
    requant = make_requant(node, net, weights, channel_multipliers(node, weights, (source, target), target.channels, 3))
    clamp = activation_clamp(node, options.FusedActivationFunction(), target.quant)
    keys = (node.index, (source.key,), target.key)
    if source.channels == 1:
        dense = np.ascontiguousarray(spread.transpose(3, 1, 2, 0))  # (1, kh, kw, out) -> (out, kh, kw, 1)
        net.ops.append(Conv2D(*keys, dense, requant, frame, clamp))
        return
    multiplier = target.channels // source.channels
    net.ops.append(DepthwiseConv2D(*keys, spread[0], requant, frame, clamp, multiplier))
