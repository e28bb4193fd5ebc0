"""CONCATENATION along height, width or channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from export.mcu.errors import ModelFileError
from export.mcu.ops.base import Op, Values, Window
from export.mcu.reader import Node

if TYPE_CHECKING:
    from export.mcu.builder import NetworkBuilder


@dataclass(frozen=True, eq=False)
class Concatenation(Op):
    """Inputs one after the other along physical ``axis`` (0 height, 1 width, 2 channels)."""

    axis: int

    @property
    def kind(self) -> str:
        """``CONCATENATION``."""
        return "CONCATENATION"

    def reads(self, values: Values) -> tuple[tuple[Window, Window], ...]:
        """Each part lies ``before`` its offset."""
        windows, offset = [], 0
        for key in self.inputs:
            shifted = Window(before=offset)
            windows.append((shifted if self.axis == 0 else Window(), shifted if self.axis == 1 else Window()))
            offset += values[key].shape[self.axis]
        return tuple(windows)


def read_concatenation(node: Node, net: NetworkBuilder) -> None:
    """Read a CONCATENATION node; all quantisations must be equal (the integers are copied)."""
    options = node.options
    if options is None or options.FusedActivationFunction() != 0:
        raise node.refuse("missing options or a fused activation", "no fused activation")
    sources = [net.plain(node, place) for place in range(len(node.inputs))]
    target = net.define(node.outputs[0])
    rank = len(net.file.tensors[node.outputs[0]].shape)
    axis = options.Axis() % rank - (rank - 3)
    if axis < 0:
        raise node.refuse("concatenation over the batch", "height, width or channels")
    if any(source.quant != target.quant for source in sources):
        raise node.refuse("parts with different scale or zero point", "equal quantisation of all parts and the output")
    others = [i for i in range(3) if i != axis]
    total = sum(source.shape[axis] for source in sources)
    if total != target.shape[axis] or any(s.shape[i] != target.shape[i] for s in sources for i in others):
        raise ModelFileError(
            f"node {node.index} (CONCATENATION): parts {[s.shape for s in sources]} do not make {target.shape}."
        )
    net.ops.append(Concatenation(node.index, tuple(source.key for source in sources), target.key, axis))
