"""What ADD and MUL share: operands that are activations or constants, and broadcasting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from export.mcu.errors import ModelFileError
from export.mcu.ops.base import Clamp, Op, Values, Window
from export.mcu.reader import Node
from export.mcu.values import Quant, Value, physical_shape

if TYPE_CHECKING:
    from export.mcu.builder import NetworkBuilder

Shape = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Elementwise(Op):
    """A binary operator; an operand of size 1 along an axis is repeated.

    Attributes:
        shapes: Physical shapes of both operands, in order.
        constant: The operand that is data, int8 of its physical shape, or None when both are activations.
        constant_place: 0 or 1, where the constant stands; meaningless without one.
        quants: Quantisation of both operands.
        clamp: Range of the output.
    """

    shapes: tuple[Shape, Shape]
    constant: np.ndarray | None
    constant_place: int
    quants: tuple[Quant, Quant]
    clamp: Clamp

    def reads(self, values: Values) -> tuple[tuple[Window, Window], ...]:
        """Element by element; the only position along a repeated axis."""

        def window(extent: int, out: int) -> Window:
            return Window() if extent == out else Window(size=1, stride=0)

        out = values[self.output].shape
        shapes = (values[key].shape for key in self.inputs)
        return tuple((window(shape[0], out[0]), window(shape[1], out[1])) for shape in shapes)


@dataclass(frozen=True)
class Operands:
    """Both operands of a node, checked."""

    keys: tuple[int, ...]
    shapes: tuple[Shape, Shape]
    quants: tuple[Quant, Quant]
    constant: np.ndarray | None
    constant_place: int
    target: Value

    @property
    def scalar(self) -> int | None:
        """The constant operand's only integer, if it has just one."""
        return int(self.constant.reshape(-1)[0]) if self.constant is not None and self.constant.size == 1 else None


def read_operands(node: Node, net: NetworkBuilder) -> Operands:
    """Read both operands of a binary node and define its output."""
    keys: list[int] = []
    shapes: list[Shape] = []
    quants: list[Quant] = []
    constant, constant_place = None, 0
    for place in range(2):
        if net.is_constant(node, place):
            data = net.constant(node, place, "int8")
            shape = physical_shape(data.data.shape)
            if constant is not None or shape is None or len(data.scales) != 1:
                raise node.refuse(
                    "two constant operands, or one of rank > 4 or with per-channel scales", "one plain constant"
                )
            constant, constant_place = data.data.reshape(shape), place
            quants.append(Quant(data.scales[0], data.zero_points[0]))
            shapes.append(shape)
            continue
        value = net.plain(node, place)
        keys.append(value.key)
        shapes.append(value.shape)
        quants.append(value.quant)
    target_shape = physical_shape(net.file.tensors[node.outputs[0]].shape)
    wanted = tuple(max(a, b) for a, b in zip(*shapes, strict=True))
    if wanted != target_shape or any(n not in (1, w) for shape in shapes for n, w in zip(shape, wanted, strict=True)):
        raise ModelFileError(f"node {node.index} ({node.op}): operands {shapes} do not broadcast to {target_shape}.")
    target = net.define(node.outputs[0])
    return Operands(tuple(keys), (shapes[0], shapes[1]), (quants[0], quants[1]), constant, constant_place, target)
