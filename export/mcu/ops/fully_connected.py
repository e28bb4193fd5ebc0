"""FULLY_CONNECTED: one matrix times every vector of the last axis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from export.mcu.errors import ModelFileError
from export.mcu.ops.base import Clamp, Op, Values, Window, activation_clamp, whole
from export.mcu.ops.conv2d import Requant, make_requant
from export.mcu.reader import Node
from export.mcu.values import Constant, Value, View

if TYPE_CHECKING:
    from export.mcu.builder import NetworkBuilder


@dataclass(frozen=True, eq=False)
class FullyConnected(Op):
    """``batch`` vectors, contiguous in the input, each times int8 ``weights`` (out, in)."""

    weights: np.ndarray
    requant: Requant
    clamp: Clamp
    batch: int
    rounds_once: bool = False  # as LiteRT's reference kernels; TensorFlow Lite Micro and CMSIS-NN round twice

    @property
    def kind(self) -> str:
        """``FULLY_CONNECTED``."""
        return "FULLY_CONNECTED"

    def macs(self, values: Values) -> int:
        """Vectors times weights."""
        del values
        return self.batch * int(self.weights.size)

    def reads(self, values: Values) -> tuple[tuple[Window, Window], ...]:
        """All of the input, contiguous."""
        return (whole(values[self.inputs[0]]),)


def _multipliers(weights: Constant, sizes: tuple[Value, Value], count: int) -> list[float]:
    """Real multipliers; per-tensor scales are multiplied in float32 first, per-channel ones in float64.

    Source: CalculateOpDataFullyConnected, tensorflow/lite/micro/kernels/fully_connected_common.cc.
    """
    source, target = sizes[0].quant.scale, float(sizes[1].quant.scale)
    if len(weights.scales) == 1:
        return [float(np.float32(source * weights.scales[0])) / target] * count
    return [float(source) * float(scale) / target for scale in weights.scales]


def _memory_order(weights: np.ndarray, view: View, shape: tuple[int, int, int]) -> np.ndarray:
    """Reorder weight columns from the file's order of the input to the order in memory."""
    sizes = [n for n in view.shape if n > 1]
    if view.in_memory_order or not sizes:
        return weights
    columns = np.arange(weights.shape[1]).reshape(sizes)
    by_axis = np.argsort(view.order)
    return np.ascontiguousarray(weights[:, columns.transpose(by_axis).reshape(-1)])


def read_fully_connected(node: Node, net: NetworkBuilder) -> None:
    """Read a FULLY_CONNECTED node; the input may be any view of one vector, or plain for several."""
    if node.options is not None and node.options.WeightsFormat() != 0:
        raise node.refuse("shuffled weights", "the default weights format")
    view = net.view(node, 0)
    source = net.values[view.key]
    weights = net.constant(node, 1, "int8")
    if weights.data.ndim != 2 or source.size_bytes % weights.data.shape[1]:
        raise ModelFileError(
            f"node {node.index} (FULLY_CONNECTED): weights {weights.data.shape} do not fit {view.shape}."
        )
    batch = source.size_bytes // weights.data.shape[1]
    if batch > 1 and not view.in_memory_order:
        source = net.plain(node, 0)
        view = net.view(node, 0)
    target = net.define(node.outputs[0])
    outs = weights.data.shape[0]
    if target.size_bytes != batch * outs or len(weights.scales) not in (1, outs):
        raise ModelFileError(
            f"node {node.index} (FULLY_CONNECTED): output {target.shape} or {len(weights.scales)} scales do not fit "
            f"weights {weights.data.shape} and {batch} vectors."
        )
    activation = node.options.FusedActivationFunction() if node.options is not None else 0
    net.ops.append(
        FullyConnected(
            node.index,
            (source.key,),
            target.key,
            _memory_order(weights.data, view, source.shape),
            make_requant(node, net, weights, _multipliers(weights, (source, target), outs)),
            activation_clamp(node, activation, target.quant),
            batch,
        )
    )
