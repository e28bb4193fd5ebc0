"""PAD of height and width; it disappears into the convolutions that follow where that is exact."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from export.mcu.errors import ModelFileError
from export.mcu.ops.base import Frame, Op, Values, Window
from export.mcu.ops.conv2d import Conv2D
from export.mcu.ops.depthwise import DepthwiseConv2D
from export.mcu.reader import Node

if TYPE_CHECKING:
    from export.mcu.builder import NetworkBuilder


@dataclass(frozen=True, eq=False)
class Pad(Op):
    """Rows and columns of ``fill`` around the input (top and left; bottom and right follow from the output's size)."""

    top: int
    left: int
    fill: int

    @property
    def kind(self) -> str:
        """``PAD``."""
        return "PAD"

    def reads(self, values: Values) -> tuple[tuple[Window, Window], ...]:
        """The input position that lies under the output position."""
        del values
        return ((Window(before=self.top), Window(before=self.left)),)


def read_pad(node: Node, net: NetworkBuilder) -> None:
    """Read a PAD node; only height and width of (1, height, width, channels) may grow."""
    source = net.plain(node, 0)
    amounts = net.constant(node, 1, "int32").data
    target = net.define(node.outputs[0])
    rank = len(net.file.tensors[node.outputs[0]].shape)
    if amounts.shape != (rank, 2) or amounts.min() < 0 or source.quant != target.quant:
        raise node.refuse(
            f"padding of shape {amounts.shape} or changed quantisation", "non-negative pairs, equal quantisation"
        )
    pairs = [(0, 0)] * (4 - rank) + [(int(a), int(b)) for a, b in amounts]
    if pairs[0] != (0, 0) or pairs[3] != (0, 0):
        raise node.refuse(f"padding {pairs} of batch or channels", "padding of height and width")
    grown = (source.height + sum(pairs[1]), source.width + sum(pairs[2]), source.channels)
    if grown != target.shape:
        raise ModelFileError(f"node {node.index} (PAD): output {target.shape}, expected {grown}.")
    net.ops.append(Pad(node.index, (source.key,), target.key, pairs[1][0], pairs[2][0], target.quant.zero_point))


def fold_pads(ops: list[Op], kept: set[int]) -> list[Op]:
    """Move each PAD into its readers when all of them are convolutions, to which a border tap adds 0.

    Args:
        ops: Operators in order.
        kept: Keys of values that must exist (graph outputs).

    Returns:
        The operators without the PADs that could be folded.
    """
    result: list[Op] = []
    folded: dict[int, Pad] = {}
    for op in ops:
        if isinstance(op, Pad) and op.output not in kept:
            readers = [other for other in ops if op.output in other.inputs]
            if readers and all(isinstance(other, Conv2D | DepthwiseConv2D) for other in readers):
                folded[op.output] = op
                continue
        if isinstance(op, Conv2D | DepthwiseConv2D) and op.inputs[0] in folded:
            pad = folded[op.inputs[0]]
            frame: Frame = dataclasses.replace(
                op.frame, pad_top=op.frame.pad_top + pad.top, pad_left=op.frame.pad_left + pad.left
            )
            result.append(dataclasses.replace(op, inputs=pad.inputs, frame=frame))
            continue
        result.append(op)
    return result
