"""RESHAPE and TRANSPOSE: usually only another view of the same bytes, else a copy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from export.mcu.errors import ModelFileError
from export.mcu.ops.base import Op, Values, Window, whole
from export.mcu.reader import Node
from export.mcu.values import View

if TYPE_CHECKING:
    from export.mcu.builder import NetworkBuilder


@dataclass(frozen=True, eq=False)
class Reshape(Op):
    """Copy bytes in order into rows of another length."""

    @property
    def kind(self) -> str:
        """``RESHAPE``."""
        return "RESHAPE"

    def reads(self, values: Values) -> tuple[tuple[Window, Window], ...]:
        """All of the input, contiguous."""
        return (whole(values[self.inputs[0]]),)


@dataclass(frozen=True, eq=False)
class Transpose(Op):
    """Permute axes.

    Attributes:
        source_axes: For the output's height, width, channels: the input axis it walks (0, 1, 2), -1 for size 1.
    """

    source_axes: tuple[int, int, int]

    @property
    def kind(self) -> str:
        """``TRANSPOSE``."""
        return "TRANSPOSE"

    def reads(self, values: Values) -> tuple[tuple[Window, Window], ...]:
        """All of the input, contiguous."""
        return (whole(values[self.inputs[0]]),)


def read_reshape(node: Node, net: NetworkBuilder) -> None:
    """RESHAPE: an alias when memory order and file order agree, else a TRANSPOSE copy first."""
    view = net.view(node, 0)
    target = net.file.tensors[node.outputs[0]]
    size = 1
    for n in view.shape:
        size *= n
    wanted = 1
    for n in target.shape:
        wanted *= n
    if size != wanted or len(target.shape) > 4:
        raise ModelFileError(f"node {node.index} (RESHAPE): {view.shape} can not become {target.shape}.")
    if not view.in_memory_order:
        net.plain(node, 0)
        view = net.view(node, 0)
    net.quant(target)
    value = net.values[view.key]
    net.alias(node.outputs[0], View(view.key, target.shape, _spread(target.shape, value.shape)))


def _spread(shape: tuple[int, ...], physical: tuple[int, int, int]) -> tuple[int, ...]:
    """Axes of an in-order view: exact when the sizes above 1 agree, else any ascending ones (only order counts)."""
    sizes = [n for n in shape if n > 1]
    axes = [axis for axis in range(3) if physical[axis] > 1]
    exact = sizes == [physical[axis] for axis in axes]
    remaining = iter(axes)
    return tuple((next(remaining) if exact else 2) if n > 1 else -1 for n in shape)


def read_transpose(node: Node, net: NetworkBuilder) -> None:
    """TRANSPOSE: a view with permuted axes; a copy is made only where a consumer needs the order."""
    view = net.view(node, 0)
    order = tuple(int(i) for i in net.constant(node, 1, "int32").data.reshape(-1))
    target = net.file.tensors[node.outputs[0]]
    if sorted(order) != list(range(len(view.shape))):
        raise ModelFileError(f"node {node.index} (TRANSPOSE): {order} is no permutation of {len(view.shape)} axes.")
    if not _axes_are_exact(view, net):
        net.plain(node, 0)
        view = net.view(node, 0)
    shape = tuple(view.shape[i] for i in order)
    if shape != target.shape:
        raise ModelFileError(f"node {node.index} (TRANSPOSE): output shape {target.shape}, expected {shape}.")
    net.quant(target)
    net.alias(node.outputs[0], View(view.key, shape, tuple(view.axes[i] for i in order)))


def _axes_are_exact(view: View, net: NetworkBuilder) -> bool:
    """Whether every dimension above 1 runs over exactly one physical axis."""
    value = net.values[view.key]
    return len(set(view.order)) == len(view.order) and all(
        size == 1 or value.shape[axis] == size for size, axis in zip(view.shape, view.axes, strict=True)
    )
