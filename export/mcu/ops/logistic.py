"""LOGISTIC: the fixed-point sigmoid of the reference, as a table."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from export.mcu.fixedpoint import (
    Int64s,
    multiply_by_quantized_multiplier,
    round_half_away,
    rounding_divide_by_power_of_two,
)
from export.mcu.fixedpoint import saturating_rounding_doubling_high_mul as high_mul
from export.mcu.ops.lookup import add_lookup
from export.mcu.reader import Node

if TYPE_CHECKING:
    from export.mcu.builder import NetworkBuilder

INTEGER_BITS = 4
ONE = 2**31 - 1


def saturating_left_shift(x: Int64s, amount: int) -> Int64s:
    """``x * 2**amount`` clipped to int32."""
    return np.asarray(np.clip(x << amount, -(2**31), ONE), dtype=np.int64)


def exp_between_minus_quarter_and_zero(a: Int64s) -> Int64s:
    """Exp of Q0.31 numbers in [-1/4, 0), by a polynomial around -1/8 (gemmlowp)."""
    x = a + (1 << 28)
    x2 = high_mul(x, x)
    x3 = high_mul(x2, x)
    x4_over_4 = rounding_divide_by_power_of_two(high_mul(x2, x2), 2)
    sixth = rounding_divide_by_power_of_two(high_mul(x4_over_4 + x3, 715827883) + x2, 1)
    return 1895147668 + high_mul(np.int64(1895147668) * np.ones_like(x), x + sixth)


def exp_on_negative(a: Int64s, integer_bits: int) -> Int64s:
    """Exp of numbers <= 0 with ``integer_bits`` integer bits, as Q0.31 (gemmlowp).

    Source: exp_on_negative_values, gemmlowp fixedpoint/fixedpoint.h.
    """
    fraction_bits = 31 - integer_bits
    quarter = 1 << (fraction_bits - 2)
    remainder = (a & (quarter - 1)) - quarter
    result = exp_between_minus_quarter_and_zero(saturating_left_shift(remainder, integer_bits))
    rest = remainder - a
    factors = ((-2, 1672461947), (-1, 1302514674), (0, 790015084), (1, 290630308), (2, 39332535), (3, 720401), (4, 242))
    for exponent, factor in factors:
        if integer_bits > exponent:
            bit = (rest >> (fraction_bits + exponent)) & 1
            result = np.where(bit == 1, high_mul(result, factor), result)
    if integer_bits > 5:
        result = np.where(a < -(1 << (fraction_bits + 5)), 0, result)
    return np.where(a == 0, ONE, result)


def one_over_one_plus_x(a: Int64s) -> Int64s:
    """1 / (1 + x) for Q0.31 x in [0, 1], by three Newton steps (gemmlowp)."""
    half_denominator = (a + ONE + 1) >> 1  # rounding half sum of x and one
    x = 1515870810 + high_mul(half_denominator, -1010580540)
    for _ in range(3):
        product = high_mul(half_denominator, x)
        x = x + saturating_left_shift(high_mul(x, (1 << 29) - product), 2)
    return saturating_left_shift(x, 1)


def logistic_q0(x: Int64s) -> Int64s:
    """Sigmoid of Q4.27 numbers as Q0.31."""
    below = one_over_one_plus_x(exp_on_negative(-np.abs(x), INTEGER_BITS))
    return np.where(x == 0, 1 << 30, np.where(x > 0, below, ONE - below))


def read_logistic(node: Node, net: NetworkBuilder) -> None:
    """Read a LOGISTIC node.

    Source: tensorflow/lite/micro/kernels/logistic_common.cc and internal/reference/integer_ops/logistic.h.
    """
    source = net.quant(net.file.tensors[node.input_index(0)])
    target = net.quant(net.file.tensors[node.outputs[0]])
    if target.zero_point != -128:
        raise node.refuse(f"output zero point {target.zero_point}", "output zero point -128 and scale 1/256")
    mantissa, left_shift = math.frexp(float(source.scale) * (1 << (31 - INTEGER_BITS)))
    if not -31 <= left_shift <= 31:  # the kernel shifts an int32 by that
        raise node.refuse(f"input scale {source.scale:g}", "an input scale of 2^-59 to 16")
    multiplier = round_half_away(mantissa * 2**31)
    radius = math.floor(((1 << INTEGER_BITS) - 1) * (1 << (31 - INTEGER_BITS)) / 2.0**left_shift)

    def logistic(x: Int64s) -> Int64s:
        centred = x - source.zero_point
        inside = np.clip(centred, -radius + 1, radius - 1)
        scaled = multiply_by_quantized_multiplier(inside, multiplier, left_shift)
        out = np.clip(rounding_divide_by_power_of_two(logistic_q0(scaled), 23) - 128, -128, 127)
        return np.where(centred <= -radius, -128, np.where(centred >= radius, 127, out))

    add_lookup(node, net, 0, logistic)
