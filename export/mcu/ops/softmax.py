"""SOFTMAX over channels, in TensorFlow Lite Micro's fixed point."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from export.mcu.fixedpoint import quantize_multiplier
from export.mcu.ops.base import Op
from export.mcu.reader import Node

if TYPE_CHECKING:
    from export.mcu.builder import NetworkBuilder

INTEGER_BITS = 5  # of the scaled difference to the row's maximum


@dataclass(frozen=True, eq=False)
class Softmax(Op):
    """exp(x - max) / sum over the channels of every position.

    Attributes:
        multiplier: Scales a difference of inputs to Q5.26.
        left_shift: Of the multiplier.
        diff_min: Differences below it count as exp = 0.
    """

    multiplier: int
    left_shift: int
    diff_min: int

    @property
    def kind(self) -> str:
        """``SOFTMAX``."""
        return "SOFTMAX"


def read_softmax(node: Node, net: NetworkBuilder) -> None:
    """Read a SOFTMAX node.

    Source: CalculateSoftmaxParams, tensorflow/lite/micro/kernels/softmax_common.cc.
    """
    source = net.plain(node, 0)
    target = net.define(node.outputs[0])
    if target.quant.zero_point != -128 or target.quant.scale != np.float32(1 / 256) or target.shape != source.shape:
        raise node.refuse(f"output quantisation {target.quant}", "scale 1/256 and zero point -128")
    beta = float(np.float32(node.options.Beta())) if node.options is not None else 1.0
    if not 0 < beta < 1e6:
        raise node.refuse(f"beta {beta}", "a positive beta")
    real = min(beta * float(source.quant.scale) * (1 << (31 - INTEGER_BITS)), (1 << 31) - 1.0)
    if real <= 1.0:
        raise node.refuse(f"input scale {source.quant.scale}", f"a scale above 2^-{31 - INTEGER_BITS}")
    multiplier, left_shift = quantize_multiplier(real)
    radius = math.floor(((1 << INTEGER_BITS) - 1) * (1 << (31 - INTEGER_BITS)) / (1 << left_shift))
    net.ops.append(Softmax(node.index, (source.key,), target.key, multiplier, left_shift, -radius))
