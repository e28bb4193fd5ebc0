"""Lowers the nodes of a file, one after the other, to operators on physical values."""

from __future__ import annotations

import numpy as np

from export.mcu.errors import ModelFileError, UnsupportedOpError
from export.mcu.ops.base import Op
from export.mcu.ops.layout import Reshape, Transpose
from export.mcu.reader import FileTensor, ModelFile, Node
from export.mcu.values import Constant, Quant, Value, View, physical_shape, plain_view


class NetworkBuilder:
    """Collects values, views and operators while the readers of ``ops`` run.

    Attributes:
        file: The file that is lowered.
        values: Physical values by key.
        views: For each tensor of the file that is an activation, how it looks at a value.
        ops: Operators so far.
        homes: For each value, the file's tensor with the same integers and its view (for the proof).
        taken: Float or uint8 graph inputs that an edge conversion replaced: file tensor -> value key.
    """

    def __init__(self, file: ModelFile) -> None:
        self.file = file
        self.values: dict[int, Value] = {}
        self.views: dict[int, View] = {}
        self.ops: list[Op] = []
        self.homes: dict[int, tuple[int, View]] = {}
        self.taken: dict[int, int] = {}
        self.given: dict[int, int] = {}
        self._next_key = len(file.tensors)

    def quant(self, tensor: FileTensor) -> Quant:
        """The per-tensor int8 quantisation of an activation."""
        if tensor.dtype != np.dtype("int8"):
            raise UnsupportedOpError(
                f"tensor {tensor.index} ({tensor.name[:80]}) is {tensor.dtype}. Accepted: int8 activations "
                "(float32 or uint8 only at the network's edges); quantise the model to full int8 first."
            )
        if len(tensor.scales) != 1 or not -128 <= tensor.zero_points[0] <= 127:
            raise ModelFileError(
                f"tensor {tensor.index} ({tensor.name[:80]}): wanted one scale and an int8 zero point."
            )
        return Quant(tensor.scales[0], tensor.zero_points[0])

    def define(self, index: int, axes: tuple[int, ...] | None = None) -> Value:
        """Make the value of file tensor ``index``; ``axes`` gives another physical order (see ``View``)."""
        tensor = self.file.tensors[index]
        quant = self.quant(tensor)
        view = View(index, tensor.shape, axes) if axes else plain_view(index, tensor.shape)
        if physical_shape(tensor.shape) is None:
            raise UnsupportedOpError(
                f"tensor {index} ({tensor.name[:80]}) has shape {tensor.shape}. Accepted: batch 1, rank <= 4."
            )
        sizes = [1, 1, 1]
        for size, axis in zip(view.shape, view.axes, strict=True):
            if axis >= 0:
                sizes[axis] = size
        if index in self.views:
            raise ModelFileError(f"tensor {index} is written twice; file damaged.")
        value = Value(index, tensor.name, sizes[0], sizes[1], sizes[2], quant)
        self.values[index] = value
        self.views[index] = view
        self.homes[index] = (index, view)
        return value

    def alias(self, index: int, view: View) -> None:
        """Say that file tensor ``index`` is another view of an existing value."""
        if index in self.views:
            raise ModelFileError(f"tensor {index} is written twice; file damaged.")
        self.views[index] = view

    def view(self, node: Node, place: int) -> View:
        """The view of the node's input number ``place``, which must be an activation computed before."""
        index = node.input_index(place)
        if index not in self.views:
            tensor = self.file.tensors[index]
            if tensor.data is not None:
                raise node.refuse(f"input {place} is a constant", "an activation there")
            self.quant(tensor)
            raise ModelFileError(f"node {node.index} ({node.op}): input tensor {index} is read before it is computed.")
        return self.views[index]

    def plain(self, node: Node, place: int) -> Value:
        """Input ``place`` as a value laid out as the file says; copies when the memory is laid out differently."""
        view = self.view(node, place)
        value = self.values[view.key]
        wanted = physical_shape(view.shape)
        if wanted is None:
            raise node.refuse(f"input {place} has shape {view.shape}", "batch 1, rank <= 4")
        if view.in_memory_order and value.shape == wanted:
            return value
        copy = Value(self._next_key, f"{value.name}:plain", *wanted, value.quant)
        self._next_key += 1
        self.values[copy.key] = copy
        plain = plain_view(copy.key, view.shape)
        self.homes[copy.key] = (node.inputs[place], plain)
        self.views[node.inputs[place]] = plain
        if view.in_memory_order:
            self.ops.append(Reshape(node.index, (value.key,), copy.key))
        else:
            self.ops.append(Transpose(node.index, (value.key,), copy.key, source_axes=_source_axes(view)))
        return copy

    def constant(self, node: Node, place: int, dtype: str) -> Constant:
        """Input ``place`` as a constant of the given dtype."""
        index = node.inputs[place] if place < len(node.inputs) else -1
        tensor = self.file.tensors[index] if index >= 0 else None
        if tensor is None or tensor.data is None:
            raise node.refuse(f"input {place} is no constant", f"a constant {dtype} tensor")
        if tensor.dtype != np.dtype(dtype):
            raise node.refuse(f"input {place} is {tensor.dtype}", f"a constant {dtype} tensor")
        return Constant(tensor.name, tensor.data, tensor.scales, tensor.zero_points, tensor.channel_axis)

    def take_input(self, node: Node, index: int) -> None:
        """Let the network start at the output of this QUANTIZE."""
        raise NotImplementedError

    def give_output(self, node: Node, index: int) -> None:
        """Let the network end at the input of this QUANTIZE or DEQUANTIZE."""
        raise NotImplementedError

    def is_constant(self, node: Node, place: int) -> bool:
        """Whether input ``place`` holds data in the file."""
        return self.file.tensors[node.input_index(place)].data is not None


def _source_axes(view: View) -> tuple[int, int, int]:
    """For output axes height, width, channels of the plain layout: the physical axis of the source, or -1 (size 1)."""
    axes = view.axes[1:] if len(view.axes) == 4 else (-1,) * (3 - len(view.axes)) + view.axes
    sizes = view.shape[1:] if len(view.shape) == 4 else (1,) * (3 - len(view.shape)) + view.shape
    picked = [axis if size > 1 else -1 for size, axis in zip(sizes, axes, strict=True)]
    return (picked[0], picked[1], picked[2])
