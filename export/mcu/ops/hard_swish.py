"""HARD_SWISH: x * relu6(x + 3) / 6 in the reference's 16-bit fixed point, as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from export.mcu.fixedpoint import Int64s, quantize_multiplier, rounding_divide_by_power_of_two
from export.mcu.ops.lookup import add_lookup
from export.mcu.reader import Node

if TYPE_CHECKING:
    from export.mcu.builder import NetworkBuilder


def high_mul_16(a: Int64s, b: int) -> Int64s:
    """``a * b / 2^15`` for int16, to nearest (gemmlowp's 16-bit SQRDMULH)."""
    product = a * b
    nudged = product + np.where(product >= 0, 1 << 14, 1 - (1 << 14))
    quotient = np.abs(nudged) >> 15
    return np.minimum(np.where(nudged < 0, -quotient, quotient), 32767)


def to_int16_multiplier(multiplier: int) -> int:
    """Round a Q0.31 multiplier to Q0.15, saturating (DownScaleInt32ToInt16Multiplier)."""
    return 32767 if multiplier >= 2**31 - (1 << 15) else (multiplier + (1 << 15)) >> 16


def read_hard_swish(node: Node, net: NetworkBuilder) -> None:
    """Read a HARD_SWISH node.

    Source: tensorflow/lite/micro/kernels/hard_swish_common.cc and internal/reference/hard_swish.h.
    """
    source = net.quant(net.file.tensors[node.input_index(0)])
    target = net.quant(net.file.tensors[node.outputs[0]])
    fine_scale = np.float32(1.0 / 128.0) * source.scale
    output_q, output_shift = quantize_multiplier(float(np.float32(fine_scale / target.scale)))
    reluish_q, reluish_shift = quantize_multiplier(float(np.float32(fine_scale / np.float32(3.0 / 32768.0))))
    if output_shift > 0:
        raise node.refuse(f"input scale {source.scale} far above output scale {target.scale}", "a smaller ratio")

    def saturated(x: Int64s) -> Int64s:
        return np.clip(x, -32768, 32767)

    def hard_swish(x: Int64s) -> Int64s:
        fine = (x - source.zero_point) * 128
        preshift = high_mul_16(fine, to_int16_multiplier(output_q))
        gate = saturated(fine << (reluish_shift - 1)) if reluish_shift > 0 else fine
        gate = high_mul_16(gate, to_int16_multiplier(reluish_q))
        if reluish_shift > 0:
            gate = saturated(gate << 1)
        gate = rounding_divide_by_power_of_two(gate, max(-reluish_shift, 0))
        gate = (gate + (1 << 15)) >> 1
        product = gate * preshift
        out = np.where(product < 0, -(np.abs(product) >> 15), product >> 15)
        out = rounding_divide_by_power_of_two(out, -output_shift)
        return np.clip(out + target.zero_point, -128, 127)

    add_lookup(node, net, 0, hard_swish)
