"""MUL with broadcasting (squeeze-and-excite multiplies a map by one number per channel)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from export.mcu.fixedpoint import Int64s, multiply_by_quantized_multiplier, quantize_multiplier
from export.mcu.ops.base import Clamp, activation_clamp
from export.mcu.ops.elementwise import Elementwise, read_operands
from export.mcu.ops.lookup import EVERY_INT8, Lookup
from export.mcu.reader import Node
from export.mcu.values import Quant

if TYPE_CHECKING:
    from export.mcu.builder import NetworkBuilder


@dataclass(frozen=True, eq=False)
class Mul(Elementwise):
    """Product of two operands, rescaled by ``scaling`` = (multiplier, shift)."""

    scaling: tuple[int, int]
    output_zero_point: int

    @property
    def kind(self) -> str:
        """``MUL``."""
        return "MUL"


def mul_scaling(first: Quant, second: Quant, output: Quant) -> tuple[int, int]:
    """Constants of MUL.

    Source: CalculateOpDataMul, tensorflow/lite/micro/kernels/mul_common.cc.
    """
    return quantize_multiplier(float(first.scale) * float(second.scale) / float(output.scale))


def mul_integers(x: Int64s, y: Int64s, quants: tuple[Quant, Quant], output: Quant, clamp: Clamp) -> Int64s:
    """The integers that MUL gives, element by element."""
    product = (x - quants[0].zero_point) * (y - quants[1].zero_point)
    total = multiply_by_quantized_multiplier(product, *mul_scaling(*quants, output)) + output.zero_point
    return np.clip(total, clamp.low, clamp.high)


def read_mul(node: Node, net: NetworkBuilder) -> None:
    """Read a MUL node; with a constant scalar it is a table."""
    activation = node.options.FusedActivationFunction() if node.options is not None else 0
    operands = read_operands(node, net)
    clamp = activation_clamp(node, activation, operands.target.quant)
    scalar = operands.scalar
    if scalar is not None:
        table = mul_integers(
            EVERY_INT8,
            np.full(256, scalar),
            operands.quants if operands.constant_place else (operands.quants[1], operands.quants[0]),
            operands.target.quant,
            clamp,
        )
        net.ops.append(Lookup(node.index, operands.keys, operands.target.key, table.astype(np.int8), "MUL"))
        return
    net.ops.append(
        Mul(
            node.index,
            operands.keys,
            operands.target.key,
            operands.shapes,
            operands.constant,
            operands.constant_place,
            operands.quants,
            clamp,
            mul_scaling(*operands.quants, operands.target.quant),
            operands.target.quant.zero_point,
        )
    )
