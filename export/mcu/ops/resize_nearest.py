"""RESIZE_NEAREST_NEIGHBOR: every output position copies one input position."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from export.mcu.errors import ModelFileError
from export.mcu.ops.base import Op, Values, Window
from export.mcu.reader import Node

if TYPE_CHECKING:
    from export.mcu.builder import NetworkBuilder


@dataclass(frozen=True, eq=False)
class ResizeNearest(Op):
    """``out[y, x] = in[rows[y], columns[x]]``."""

    rows: tuple[int, ...]
    columns: tuple[int, ...]

    @property
    def kind(self) -> str:
        """``RESIZE_NEAREST_NEIGHBOR``."""
        return "RESIZE_NEAREST_NEIGHBOR"

    def reads(self, values: Values) -> tuple[tuple[Window, Window], ...]:
        """Exact windows where ``position * in // out`` describes the map, else a window wide enough for all."""
        source, out = values[self.inputs[0]], values[self.output]
        return ((_window(self.rows, source.height, out.height), _window(self.columns, source.width, out.width)),)


def _window(positions: tuple[int, ...], extent: int, out: int) -> Window:
    plain = [y * extent // out for y in range(out)]
    low = min(p - q for p, q in zip(positions, plain, strict=True))
    high = max(p - q for p, q in zip(positions, plain, strict=True))
    return Window(size=high - low + 1, stride=extent, before=-low, divide=out)


def nearest_positions(extent: int, out: int, *, align_corners: bool, half_pixel: bool) -> tuple[int, ...]:
    """Input position of every output position, in float32 as the reference computes it.

    Source: GetNearestNeighbor, tensorflow/lite/kernels/internal/reference/resize_nearest_neighbor.h.
    """
    one = np.float32(1)
    if align_corners and out > 1:
        scale = np.float32(extent - 1) / np.float32(out - 1)
    else:
        scale = np.float32(extent) / np.float32(out)
    offset = np.float32(0.5) if half_pixel else np.float32(0)
    found = []
    for y in range(out):
        real = float((np.float32(y) + offset * one) * scale)
        nearest = math.floor(real + 0.5) if align_corners else math.floor(real)
        found.append(max(min(nearest, extent - 1), 0) if half_pixel else min(nearest, extent - 1))
    return tuple(found)


def read_resize_nearest(node: Node, net: NetworkBuilder) -> None:
    """Read a RESIZE_NEAREST_NEIGHBOR node."""
    if node.options is None:
        raise ModelFileError(f"node {node.index} (RESIZE_NEAREST_NEIGHBOR) has no options; file damaged.")
    source = net.plain(node, 0)
    size = tuple(int(n) for n in net.constant(node, 1, "int32").data.reshape(-1))
    target = net.define(node.outputs[0])
    if size != target.shape[:2] or source.channels != target.channels or source.quant != target.quant:
        raise ModelFileError(
            f"node {node.index} (RESIZE_NEAREST_NEIGHBOR): size {size} does not fit output {target.shape}."
        )
    flags = {"align_corners": bool(node.options.AlignCorners()), "half_pixel": bool(node.options.HalfPixelCenters())}
    rows = nearest_positions(source.height, target.height, **flags)
    columns = nearest_positions(source.width, target.width, **flags)
    net.ops.append(ResizeNearest(node.index, (source.key,), target.key, rows, columns))
