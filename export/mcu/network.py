"""A whole int8 network, ready to be planned and written as C."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from export.mcu.builder import NetworkBuilder
from export.mcu.errors import ModelFileError, UnsupportedOpError
from export.mcu.ops.base import Op
from export.mcu.ops.conv2d import Conv2D
from export.mcu.ops.depthwise import DepthwiseConv2D
from export.mcu.ops.fully_connected import FullyConnected
from export.mcu.ops.pad import fold_pads
from export.mcu.ops.registry import READERS, check_supported
from export.mcu.reader import Node, read_model
from export.mcu.values import Quant, Value, View

WEIGHTED = (Conv2D, DepthwiseConv2D, FullyConnected)


@dataclass(frozen=True)
class Port:
    """One input or output of the network.

    Attributes:
        key: The int8 value that the C code reads or writes.
        name: The tensor's name in the file.
        tensor: Index of the file's own tensor (float32 or uint8 when ``dtype`` says so).
        dtype: Type at the edge of the file: int8, float32 or uint8.
        view: How the file's tensor looks at the value.
        quant: Quantisation of the int8 value.
    """

    key: int
    name: str
    tensor: int
    dtype: str
    view: View
    quant: Quant


@dataclass(frozen=True)
class Network:
    """Values, operators in execution order, ports.

    ``homes`` maps each value to the file's tensor with the same integers and the view that compares them.
    """

    values: dict[int, Value]
    ops: tuple[Op, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    homes: dict[int, tuple[int, View]]
    file_macs: int

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights as the file holds them (int8), biases not counted."""
        return sum(int(op.weights.size) for op in self.ops if isinstance(op, WEIGHTED))


def lower(data: bytes) -> Network:
    """Turn a ``.tflite`` file into a network.

    Args:
        data: The file's bytes, from any source.

    Returns:
        The network; RESHAPEs, foldable TRANSPOSEs and PADs and edge conversions are gone.

    Raises:
        ModelFileError: The file is damaged or contradicts itself.
        UnsupportedOpError: An operator, or a form of it, has no exact C; named with node and what is accepted.
    """
    file = read_model(data)
    check_supported(file.nodes)
    net = _EdgeBuilder(file)
    for index in file.inputs:
        tensor = file.tensors[index]
        if tensor.dtype == np.dtype("int8"):
            net.define(index, net.input_axes(index))
    for node in file.nodes:
        READERS[node.op](node, net)
    inputs = tuple(_port(net, index, net.taken.get(index, index)) for index in file.inputs)
    outputs = tuple(_port(net, index, net.given.get(index, index)) for index in file.outputs)
    kept = {port.key for port in outputs}
    ops = tuple(drop_unread(fold_pads(net.ops, kept), kept))
    _check_order(ops, {port.key for port in inputs})
    used = {key for op in ops for key in (*op.inputs, op.output)} | {port.key for port in (*inputs, *outputs)}
    values = {key: value for key, value in net.values.items() if key in used}
    macs = sum(op.macs(values) for op in ops)
    return Network(values, ops, inputs, outputs, {k: v for k, v in net.homes.items() if k in used}, macs)


def round_dense_once(network: Network) -> Network:
    """The same network with FULLY_CONNECTED as LiteRT's reference kernels compute it (one rounding)."""
    ops = tuple(
        dataclasses.replace(op, rounds_once=True) if isinstance(op, FullyConnected) else op for op in network.ops
    )
    return dataclasses.replace(network, ops=ops)


def _port(net: NetworkBuilder, index: int, inner: int) -> Port:
    tensor = net.file.tensors[index]
    if inner not in net.views:
        raise ModelFileError(
            f"graph input or output {index} ({tensor.name[:80]}, {tensor.dtype}) is never computed or converted."
        )
    view = net.views[inner]
    value = net.values[view.key]
    return Port(view.key, tensor.name, index, str(tensor.dtype), view, value.quant)


def drop_unread(ops: list[Op], kept: set[int]) -> list[Op]:
    """Leave out operators whose result nobody reads."""
    result: list[Op] = []
    needed = set(kept)
    for op in reversed(ops):
        if op.output in needed:
            needed.update(op.inputs)
            result.append(op)
    return result[::-1]


def _check_order(ops: tuple[Op, ...], inputs: set[int]) -> None:
    known = set(inputs)
    for op in ops:
        if not set(op.inputs) <= known or op.output in known:
            raise ModelFileError(
                f"node {op.node} ({op.kind}) reads a tensor before it is computed, or writes one twice."
            )
        known.add(op.output)
    if not ops:
        raise ModelFileError("nothing is left to compute between the inputs and the outputs.")


class _EdgeBuilder(NetworkBuilder):
    """A builder that knows the edge conversions."""

    def input_axes(self, index: int) -> tuple[int, ...] | None:
        """Physical order of an input: that of its consumers when all of them transpose it alike, else the file's."""
        readers = [node for node in self.file.nodes if index in node.inputs]
        shape = self.file.tensors[index].shape
        orders = set()
        for node in readers:
            if node.op != "TRANSPOSE" or len(shape) != 4 or self.file.tensors[node.input_index(1)].data is None:
                return None
            data = self.file.tensors[node.input_index(1)].data
            assert data is not None
            orders.add(tuple(int(i) for i in data.reshape(-1)))
        if len(orders) != 1:
            return None
        order = orders.pop()
        if sorted(order) != [0, 1, 2, 3] or order[0] != 0:
            return None
        axes = [-1] * 4
        for position, source in enumerate(order):
            axes[source] = position - 1
        return tuple(axes)

    def take_input(self, node: Node, index: int) -> None:
        """Let the network start at the output of this QUANTIZE."""
        source, target = self.file.tensors[index], self.file.tensors[node.outputs[0]]
        if source.shape != target.shape:
            raise ModelFileError(f"node {node.index} (QUANTIZE): shapes {source.shape} and {target.shape} differ.")
        self.check_sign_flip(node, source.index, target.index)
        if index in self.taken:
            raise node.refuse(f"input {index} quantised twice", "one QUANTIZE per float or uint8 input")
        self.taken[index] = target.index
        self.define(target.index, self.input_axes(target.index))

    def give_output(self, node: Node, index: int) -> None:
        """Let the network end at the input of this QUANTIZE or DEQUANTIZE."""
        view = self.view(node, 0)
        if view.shape != self.file.tensors[index].shape:
            raise ModelFileError(f"node {node.index} ({node.op}): the shape changes from {view.shape}.")
        self.check_sign_flip(node, index, node.input_index(0))
        self.given[index] = node.input_index(0)

    def check_sign_flip(self, node: Node, edge: int, inner: int) -> None:
        """A uint8 edge must be the int8 tensor plus 128: anything else would need arithmetic."""
        outer, core = self.file.tensors[edge], self.file.tensors[inner]
        if outer.dtype != np.dtype("uint8"):
            return
        quant = self.quant(core)
        if outer.scales != core.scales or outer.zero_points != (quant.zero_point + 128,):
            raise node.refuse("a uint8 edge with another scale or zero point", "uint8 = int8 + 128 with the same scale")


__all__ = ["Network", "Port", "UnsupportedOpError", "lower"]
