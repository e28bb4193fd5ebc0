"""The work of each operator of a network, in the classes that a calibration knows, without an engine at hand.

Engines fuse: quantisation pairs and activations after a convolution or matrix product run inside it and are no work of
their own here. What an engine really fused is known from a profile only.
"""

import math

from edge_runtime.profile_kernels import STEM_CHANNELS
from split.cut_blocks import free_nodes
from split.cut_graph import CutGraph, CutNode
from split.predict import Work

_BYTES = {"fp32": 4, "fp16": 2, "int8": 1}  # of a value in memory
_QUANTISE = frozenset({"QuantizeLinear", "DequantizeLinear", "QUANTIZE", "DEQUANTIZE"})
_ACTIVATIONS = frozenset(
    {"Relu", "Clip", "LeakyRelu", "HardSigmoid", "Sigmoid", "HardSwish", "BatchNormalization", "RELU", "RELU6"}
)
_KIND_OF = {
    **dict.fromkeys(("Conv", "CONV_2D", "ConvTranspose", "TRANSPOSE_CONV"), "conv"),
    "DEPTHWISE_CONV_2D": "depthwise",
    **dict.fromkeys(("MatMul", "Gemm", "FULLY_CONNECTED", "BATCH_MATMUL"), "matmul"),
    **dict.fromkeys(
        ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "MEAN", "AVERAGE_POOL_2D", "MAX_POOL_2D"), "pool"
    ),
    **dict.fromkeys(("Transpose", "TRANSPOSE"), "layout"),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Softmax", "ADD", "SUB", "MUL", "SOFTMAX", *_ACTIVATIONS), "elementwise"),
}  # fmt: skip


def work_of(graph: CutGraph, *, precision: str) -> tuple[Work | None, ...]:
    """One entry for each node of the graph; null where it runs inside another operator.

    Args:
        graph: ONNX (channels second) or LiteRT (channels last).
        precision: fp32, fp16 or int8: how large a value is in memory.
    """
    free = free_nodes(graph)
    size = _BYTES[precision]
    found: list[Work | None] = []
    for index, node in enumerate(graph.nodes):
        if index in free or node.op in _QUANTISE or (node.op in _ACTIVATIONS and _follows_product(graph, node)):
            found.append(None)
            continue
        values = sum(math.prod(graph.tensors[name].shape) for name in (*node.inputs, *node.outputs))
        weights = sum(graph.constants[name] for name in node.constants)
        found.append(Work(node.name, kind_of(graph, node), node.macs, size * values + weights))
    return tuple(found)


def kind_of(graph: CutGraph, node: CutNode) -> str:
    """Class of an operator. A convolution's groups and kernel size are read from its multiply-accumulates per value."""
    kind = _KIND_OF.get(node.op, "other")
    if node.op not in ("Conv", "CONV_2D") or not node.macs:
        return kind
    data = graph.tensors[node.inputs[0]].shape
    channels = data[1] if node.op == "Conv" else data[-1]
    per_value = node.macs / math.prod(graph.tensors[node.outputs[0]].shape)  # in / groups * kernel height * width
    if per_value % channels:
        return "depthwise"  # ungrouped, every input channel would take part
    if channels <= STEM_CHANNELS:
        return "stem"
    return "pointwise" if per_value == channels else "conv"


def _follows_product(graph: CutGraph, node: CutNode) -> bool:
    """Whether the data comes from a convolution or matrix product, seen through quantisation pairs."""
    name = node.inputs[0] if node.inputs else ""
    while name in graph.producers:
        maker = graph.nodes[graph.producers[name]]
        if maker.op not in _QUANTISE or not maker.inputs:
            return _KIND_OF.get(maker.op) in ("conv", "depthwise", "matmul")
        name = maker.inputs[0]
    return False
