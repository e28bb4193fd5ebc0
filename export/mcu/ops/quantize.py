"""QUANTIZE and DEQUANTIZE: conversions at the network's edges, a table inside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from export.mcu.fixedpoint import Int64s, multiply_by_quantized_multiplier, quantize_multiplier
from export.mcu.ops.lookup import add_lookup
from export.mcu.reader import Node

if TYPE_CHECKING:
    from export.mcu.builder import NetworkBuilder

EDGE_TYPES = (np.dtype("float32"), np.dtype("uint8"))


def read_quantize(node: Node, net: NetworkBuilder) -> None:
    """QUANTIZE at the edge (from float32 or uint8, or to uint8) leaves the network; int8 to int8 is a table."""
    source, target = net.file.tensors[node.input_index(0)], net.file.tensors[node.outputs[0]]
    if source.dtype in EDGE_TYPES and source.index in net.file.inputs:
        net.take_input(node, source.index)
        return
    if target.dtype == np.dtype("uint8") and target.index in net.file.outputs:
        net.give_output(node, target.index)
        return
    before, after = net.quant(source), net.quant(target)
    scaling = quantize_multiplier(float(before.scale) / float(after.scale))

    def requantize(x: Int64s) -> Int64s:
        return np.clip(multiply_by_quantized_multiplier(x - before.zero_point, *scaling) + after.zero_point, -128, 127)

    add_lookup(node, net, 0, requantize)


def read_dequantize(node: Node, net: NetworkBuilder) -> None:
    """DEQUANTIZE to a graph output leaves the network."""
    target = net.file.tensors[node.outputs[0]]
    if target.index not in net.file.outputs:
        raise node.refuse("a float32 tensor inside the network", "DEQUANTIZE only to a graph output")
    net.give_output(node, target.index)
