"""RELU and RELU6 as operators of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from export.mcu.errors import ModelFileError
from export.mcu.fixedpoint import Int64s, multiply_by_quantized_multiplier, quantize_multiplier, round_half_away
from export.mcu.ops.lookup import add_lookup
from export.mcu.reader import Node

if TYPE_CHECKING:
    from export.mcu.builder import NetworkBuilder


def read_relu(node: Node, net: NetworkBuilder) -> None:
    """RELU rescales; the reference's RELU6 only clamps, so input and output must agree.

    Source: CalculateReluOpData and Relu6Prepare, tensorflow/lite/micro/kernels/activations_common.cc.
    """
    source = net.quant(net.file.tensors[node.input_index(0)])
    target = net.quant(net.file.tensors[node.outputs[0]])

    def relu(x: Int64s) -> Int64s:
        scaled = multiply_by_quantized_multiplier(
            x - source.zero_point, *quantize_multiplier(float(source.scale) / float(target.scale))
        )
        return np.clip(scaled + target.zero_point, max(-128, target.zero_point), 127)

    def relu6(x: Int64s) -> Int64s:
        six = min(127, source.zero_point + round_half_away(float(np.float32(6.0) / source.scale)))
        return np.clip(x, source.zero_point, six)

    if node.op == "RELU6" and source != target:
        raise ModelFileError(
            f"node {node.index} (RELU6): input {source} and output {target} must have equal quantisation."
        )
    add_lookup(node, net, 0, relu6 if node.op == "RELU6" else relu)
