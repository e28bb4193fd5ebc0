"""MEAN over height and/or width (or channels)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from export.mcu.errors import ModelFileError
from export.mcu.fixedpoint import multiply_by_quantized_multiplier, quantize_multiplier
from export.mcu.ops.base import Op, Values, Window
from export.mcu.ops.lookup import EVERY_INT8, Lookup
from export.mcu.reader import Node
from export.mcu.values import Quant

if TYPE_CHECKING:
    from export.mcu.builder import NetworkBuilder


@dataclass(frozen=True, eq=False)
class Mean(Op):
    """``requantise(sum - count * input zero point)`` over the physical axes that ``over`` marks.

    Attributes:
        over: (height, width, channels): True where the axis is averaged away.
        scaling: Multiplier and shift; 1 / count is part of them.
        input_zero_point: Of the input.
        output_zero_point: Of the output.
    """

    over: tuple[bool, bool, bool]
    scaling: tuple[int, int]
    input_zero_point: int
    output_zero_point: int

    @property
    def kind(self) -> str:
        """``MEAN``."""
        return "MEAN"

    def reads(self, values: Values) -> tuple[tuple[Window, Window], ...]:
        """The whole of an averaged axis."""
        source = values[self.inputs[0]]
        rows = Window(size=source.height, stride=0) if self.over[0] else Window()
        columns = Window(size=source.width, stride=0) if self.over[1] else Window()
        return ((rows, columns),)


def mean_scaling(source: Quant, target: Quant, count: int) -> tuple[int, int]:
    """Fold 1 / count into the multiplier.

    Source: QuantizedMeanOrSum, tensorflow/lite/kernels/internal/reference/reduce.h.
    """
    multiplier, shift = quantize_multiplier(float(source.scale) / float(target.scale))
    extra = min(count.bit_length() - 1, 32, 31 + shift)
    return (multiplier << extra) // count, shift - extra


def read_mean(node: Node, net: NetworkBuilder) -> None:
    """Read a MEAN node over any view of its input."""
    view = net.view(node, 0)
    axes = {int(i) % len(view.shape) for i in net.constant(node, 1, "int32").data.reshape(-1)}
    source = net.values[view.key]
    sizes = [size for size, axis in zip(view.shape, view.axes, strict=True) if axis >= 0 and size > 1]
    if sorted(sizes) != sorted(n for n in source.shape if n > 1) or len(set(view.order)) != len(view.order):
        source = net.plain(node, 0)
        view = net.view(node, 0)
    over = [False, False, False]
    count = 1
    for axis in axes:
        count *= view.shape[axis]
        if view.shape[axis] > 1:
            over[view.axes[axis]] = True
    keep = len(net.file.tensors[node.outputs[0]].shape) == len(view.shape)
    kept = [i for i in range(len(view.shape)) if keep or i not in axes]
    shape = tuple(1 if i in axes else view.shape[i] for i in kept)
    if net.file.tensors[node.outputs[0]].shape != (shape or (1,)) and net.file.tensors[node.outputs[0]].shape != shape:
        raise ModelFileError(f"node {node.index} (MEAN): output is not {shape}.")
    target = net.define(node.outputs[0], tuple(-1 if i in axes else view.axes[i] for i in kept))
    scaling = mean_scaling(source.quant, target.quant, count)
    if over[2]:
        raise node.refuse("a mean over channels", "a mean over height, width or both")
    if not any(over):  # axes of size 1: only the quantisation changes
        scaled = multiply_by_quantized_multiplier(EVERY_INT8 - source.quant.zero_point, *scaling)
        table = np.clip(scaled + target.quant.zero_point, -128, 127).astype(np.int8)
        net.ops.append(Lookup(node.index, (source.key,), target.key, table, "MEAN"))
        return
    flags = (over[0], over[1], over[2])
    net.ops.append(
        Mean(node.index, (source.key,), target.key, flags, scaling, source.quant.zero_point, target.quant.zero_point)
    )
