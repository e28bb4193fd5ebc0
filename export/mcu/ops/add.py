"""ADD with broadcasting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from export.mcu.fixedpoint import Int64s, multiply_by_quantized_multiplier, quantize_multiplier
from export.mcu.ops.base import Clamp, Values, activation_clamp
from export.mcu.ops.elementwise import Elementwise, read_operands
from export.mcu.ops.lookup import EVERY_INT8, Lookup
from export.mcu.reader import Node
from export.mcu.values import Quant

if TYPE_CHECKING:
    from export.mcu.builder import NetworkBuilder

LEFT_SHIFT = 20


@dataclass(frozen=True)
class AddScaling:
    """Fixed-point constants of ADD: operand multipliers and shifts, then the output's."""

    first: tuple[int, int]
    second: tuple[int, int]
    output: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Add(Elementwise):
    """Sum of two operands."""

    scaling: AddScaling
    output_zero_point: int

    @property
    def kind(self) -> str:
        """``ADD``."""
        return "ADD"

    def macs(self, values: Values) -> int:
        """Additions are not counted as multiply-accumulates."""
        del values
        return 0


def add_scaling(first: Quant, second: Quant, output: Quant) -> AddScaling:
    """Constants of ADD.

    Source: CalculateOpDataAdd, tensorflow/lite/micro/kernels/add_common.cc.
    """
    twice = 2 * float(max(first.scale, second.scale))
    return AddScaling(
        quantize_multiplier(float(first.scale) / twice),
        quantize_multiplier(float(second.scale) / twice),
        quantize_multiplier(twice / ((1 << LEFT_SHIFT) * float(output.scale))),
    )


def add_integers(x: Int64s, y: Int64s, quants: tuple[Quant, Quant], output: Quant, clamp: Clamp) -> Int64s:
    """The integers that ADD gives, element by element."""
    scaling = add_scaling(*quants, output)
    a = multiply_by_quantized_multiplier((x - quants[0].zero_point) << LEFT_SHIFT, *scaling.first)
    b = multiply_by_quantized_multiplier((y - quants[1].zero_point) << LEFT_SHIFT, *scaling.second)
    total = multiply_by_quantized_multiplier(a + b, *scaling.output) + output.zero_point
    return np.clip(total, clamp.low, clamp.high)


def read_add(node: Node, net: NetworkBuilder) -> None:
    """Read an ADD node; with a constant scalar it is a table."""
    activation = node.options.FusedActivationFunction() if node.options is not None else 0
    operands = read_operands(node, net)
    clamp = activation_clamp(node, activation, operands.target.quant)
    scalar = operands.scalar
    if scalar is not None:
        level = np.full(256, scalar)
        first, second = (level, EVERY_INT8) if operands.constant_place == 0 else (EVERY_INT8, level)
        table = add_integers(first, second, operands.quants, operands.target.quant, clamp)
        net.ops.append(Lookup(node.index, operands.keys, operands.target.key, table.astype(np.int8), "ADD"))
        return
    net.ops.append(
        Add(
            node.index,
            operands.keys,
            operands.target.key,
            operands.shapes,
            operands.constant,
            operands.constant_place,
            operands.quants,
            clamp,
            add_scaling(*operands.quants, operands.target.quant),
            operands.target.quant.zero_point,
        )
    )
