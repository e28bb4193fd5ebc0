"""Multiply-accumulates of ONNX operators, from shapes."""

from collections.abc import Mapping
from math import prod

import onnx

Shapes = Mapping[str, tuple[int, ...]]


def node_macs(node: onnx.NodeProto, shapes: Shapes) -> int:
    """Multiply-accumulates of one run of an operator; 0 for anything but convolutions and matrix products.

    Args:
        node: The operator.
        shapes: Shape of every tensor and constant, by name; an operator with an unknown shape counts as 0.
    """
    if node.op_type in ("Conv", "ConvInteger"):
        return _conv(shapes.get(node.input[1]), shapes.get(node.output[0]))
    if node.op_type == "QLinearConv":
        return _conv(shapes.get(node.input[3]), shapes.get(node.output[0]))
    if node.op_type == "ConvTranspose":
        return _conv(shapes.get(node.input[1]), shapes.get(node.input[0]))
    if node.op_type in ("MatMul", "MatMulInteger", "QLinearMatMul"):
        return _product(shapes.get(node.input[0]), shapes.get(node.output[0]))
    if node.op_type == "Gemm":
        inner = _gemm_inner(node, shapes.get(node.input[0]))
        return inner * prod(shapes.get(node.output[0], (0,)))
    return 0


def _conv(weight: tuple[int, ...] | None, moved: tuple[int, ...] | None) -> int:
    """Each value of the larger map meets the kernel over the channels of one group: weight (out, in/group, *kernel)."""
    return prod(weight[1:]) * prod(moved) if weight and moved else 0


def _product(left: tuple[int, ...] | None, out: tuple[int, ...] | None) -> int:
    return left[-1] * prod(out) if left and out is not None else 0


def _gemm_inner(node: onnx.NodeProto, left: tuple[int, ...] | None) -> int:
    if not left or len(left) != 2:
        return 0
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return left[0] if transposed else left[1]
