"""AVERAGE_POOL_2D and MAX_POOL_2D: windows without weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from export.mcu.errors import ModelFileError
from export.mcu.ops.base import Clamp, Frame, Op, Values, Window, activation_clamp, make_frame
from export.mcu.reader import Node

if TYPE_CHECKING:
    from export.mcu.builder import NetworkBuilder


@dataclass(frozen=True, eq=False)
class Pool2D(Op):
    """Average (``average``) or largest of the window's elements that lie inside the image."""

    frame: Frame
    clamp: Clamp
    average: bool

    @property
    def kind(self) -> str:
        """``AVERAGE_POOL_2D`` or ``MAX_POOL_2D``."""
        return "AVERAGE_POOL_2D" if self.average else "MAX_POOL_2D"

    def is_global(self, values: Values) -> bool:
        """Whether the one window covers the whole image."""
        source, out = values[self.inputs[0]], values[self.output]
        covers = self.frame.kernel_height >= source.height and self.frame.kernel_width >= source.width
        return covers and out.height == out.width == 1 and self.frame.pad_top == self.frame.pad_left == 0

    def reads(self, values: Values) -> tuple[tuple[Window, Window], ...]:
        """The pool's windows."""
        del values
        return (self.frame.windows(),)


def read_pool(node: Node, net: NetworkBuilder) -> None:
    """Read an AVERAGE_POOL_2D or MAX_POOL_2D node."""
    options = node.options
    if options is None:
        raise ModelFileError(f"node {node.index} ({node.op}) has no options; file damaged.")
    source = net.plain(node, 0)
    target = net.define(node.outputs[0])
    if source.quant != target.quant or source.channels != target.channels:
        raise node.refuse(
            f"input {source.shape} {source.quant} and output {target.shape} {target.quant}",
            "equal channels and quantisation",
        )
    kernel = (options.FilterHeight(), options.FilterWidth())
    if max(kernel) > 4096:
        raise node.refuse(f"a window of {kernel}", "at most 4096 x 4096")
    frame = make_frame(node, kernel, (options.StrideH(), options.StrideW()), options.Padding(), (source, target))
    clamp = activation_clamp(node, options.FusedActivationFunction(), target.quant)
    net.ops.append(Pool2D(node.index, (source.key,), target.key, frame, clamp, node.op == "AVERAGE_POOL_2D"))
