"""Tells the planner what it must know about a network: rows, windows, scratch, accumulators."""

from __future__ import annotations

from export.mcu.network import Network
from export.mcu.ops.add import Add
from export.mcu.ops.base import Op, Values
from export.mcu.ops.concatenation import Concatenation
from export.mcu.ops.conv2d import Conv2D
from export.mcu.ops.depthwise import DepthwiseConv2D
from export.mcu.ops.fully_connected import FullyConnected
from export.mcu.ops.layout import Reshape, Transpose
from export.mcu.ops.lookup import Lookup
from export.mcu.ops.mean import Mean
from export.mcu.ops.mul import Mul
from export.mcu.ops.pad import Pad
from export.mcu.ops.pool import Pool2D
from export.mcu.ops.resize_nearest import ResizeNearest
from export.mcu.ops.softmax import Softmax
from export.mcu.scratch import conv_scratch_bytes, depthwise_scratch_bytes, fully_connected_scratch_bytes
from split.patch_graph import PatchGraph, PatchInput, PatchOp, PatchTensor

FULL_WIDTH = (FullyConnected, Reshape, Transpose, Pad, ResizeNearest, Softmax)


def to_patch_graph(network: Network, *, name: str) -> PatchGraph:
    """Describe a network to the planner.

    Args:
        network: A lowered network.
        name: For reports.

    Returns:
        A graph whose tensors are the network's values in order of ``network.values`` and whose operators are
        ``network.ops`` one for one.
    """
    places = tensor_places(network)
    tensors = tuple(PatchTensor(v.name, v.height, v.width, v.channels) for v in network.values.values())
    ops = tuple(_to_patch_op(network, op, i, places) for i, op in enumerate(network.ops))
    inputs = tuple(places[port.key] for port in network.inputs)
    outputs = tuple(dict.fromkeys(places[port.key] for port in network.outputs))
    return PatchGraph(name, tensors, ops, inputs, outputs)


def tensor_places(network: Network) -> dict[int, int]:
    """Index in ``PatchGraph.tensors`` of every value's key."""
    return {key: i for i, key in enumerate(network.values)}


def _to_patch_op(network: Network, op: Op, index: int, places: dict[int, int]) -> PatchOp:
    values = network.values
    inputs = tuple(
        PatchInput(places[key], rows, columns) for key, (rows, columns) in zip(op.inputs, op.reads(values), strict=True)
    )
    reduces = is_reduction(op, values)
    return PatchOp(
        name=f"{op.kind.lower()}_{index}",
        kind=op.kind,
        inputs=inputs,
        output=places[op.output],
        macs=op.macs(values),
        scratch_bytes=0 if reduces else scratch_bytes(op, values),
        reduces=reduces,
        accumulator_bytes=4 * values[op.output].channels if reduces else 0,
        in_place=isinstance(op, Add | Mul | Lookup | Softmax) and not reduces,
        whole_rows=isinstance(op, FULL_WIDTH)
        or (isinstance(op, Concatenation) and op.axis != 2)
        or (isinstance(op, Mean) and not reduces),
    )


def is_reduction(op: Op, values: Values) -> bool:
    """Whether an operator runs as an accumulator over input rows."""
    out = values[op.output]
    if isinstance(op, Mean):
        return out.height == out.width == 1 and not op.over[2]
    return isinstance(op, Pool2D) and op.average and op.is_global(values)


def scratch_bytes(op: Op, values: Values) -> int:
    """Work memory of one row call."""
    source = values[op.inputs[0]]
    if isinstance(op, Conv2D):
        _, height, width, channels = op.weights.shape
        return conv_scratch_bytes(height, width, channels, padded=is_padded(op, values))
    if isinstance(op, DepthwiseConv2D):
        return depthwise_scratch_bytes(op.frame.kernel_height, op.frame.kernel_width)
    if isinstance(op, FullyConnected):
        return fully_connected_scratch_bytes(op.weights.shape[1])
    if isinstance(op, Mean):
        return 4 * source.channels * (source.width if op.over[0] else 1)
    return 0


def is_padded(op: Conv2D, values: Values) -> bool:
    """Whether any window of a convolution reaches outside of the image."""
    source, out = values[op.inputs[0]], values[op.output]
    frame = op.frame
    below = (out.height - 1) * frame.stride_height - frame.pad_top + frame.kernel_height > source.height
    right = (out.width - 1) * frame.stride_width - frame.pad_left + frame.kernel_width > source.width
    return frame.pad_top > 0 or frame.pad_left > 0 or below or right
