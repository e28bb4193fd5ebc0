"""Writes one operator's constant tables and parameters as C."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from export.mcu.c_text import initialiser, int8_array, int32_array, uint16_array
from export.mcu.errors import UnsupportedOpError
from export.mcu.graph import is_reduction
from export.mcu.kernels_pack import PackedLayer, Quantization, pack_conv, pack_depthwise, pack_fully_connected
from export.mcu.network import Network
from export.mcu.ops.add import Add
from export.mcu.ops.base import Clamp, Op
from export.mcu.ops.concatenation import Concatenation
from export.mcu.ops.conv2d import Conv2D, Requant
from export.mcu.ops.depthwise import DepthwiseConv2D
from export.mcu.ops.elementwise import Elementwise
from export.mcu.ops.fully_connected import FullyConnected
from export.mcu.ops.layout import Reshape, Transpose
from export.mcu.ops.lookup import Lookup
from export.mcu.ops.mean import Mean
from export.mcu.ops.mul import Mul
from export.mcu.ops.pad import Pad
from export.mcu.ops.pool import Pool2D
from export.mcu.ops.resize_nearest import ResizeNearest
from export.mcu.ops.softmax import Softmax
from export.mcu.softmax_table import softmax_exp_table

FROM_BUFFER, FROM_OUTPUT, FROM_START = "HT_FROM_BUFFER", "HT_FROM_OUTPUT", "HT_FROM_START"


@dataclass
class OpCode:
    """What the step loop needs for one operator.

    Attributes:
        tables: C definitions, in order.
        row: Row function.
        params: C expression of the parameters' address.
        constant: C expression of a table or constant operand.
        aux: See ``ht_run.h``.
        swapped: The operands go to the kernel in the other order.
        origins: For each input (after swapping), where its row pointers point.
    """

    row: str
    params: str = "NULL"
    constant: str = "NULL"
    aux: int = 0
    swapped: bool = False
    origins: tuple[str, ...] = (FROM_OUTPUT,)
    tables: list[str] = field(default_factory=list)


def emit_op(network: Network, op: Op, name: str) -> OpCode:
    """Write the tables of one operator.

    Args:
        network: The network that ``op`` belongs to.
        op: One of its operators.
        name: Suffix that makes the C names unique in the file.

    Raises:
        UnsupportedOpError: A size does not fit the kernels' fields.
    """
    for kind, writer in WRITERS:
        if isinstance(op, kind):
            return writer(network, op, name)
    raise UnsupportedOpError(f"node {op.node} ({op.kind}): no C kernel. This is a gap in the generator; report it.")


def _quantization(network: Network, op: Op, requant: Requant, clamp: Clamp) -> Quantization:
    zero = network.values[op.inputs[0]].quant.zero_point
    return Quantization(requant.bias, requant.multiplier, requant.shift, zero, (clamp.low, clamp.high))


def _layer_tables(name: str, packed: PackedLayer) -> list[str]:
    entries = ",\n    ".join(
        initialiser(initialiser(*entry.mult), initialiser(*entry.shift)) for entry in packed.requant
    )
    return [
        int8_array(f"weights_{name}", packed.weights),
        f"static const ht_rq4 requant_{name}[{len(packed.requant)}] = {{\n    {entries}}};\n",
    ]


def _conv_params(network: Network, op: Conv2D | FullyConnected, name: str, packed: PackedLayer) -> str:
    out = network.values[op.output].quant.zero_point
    source = network.values[op.inputs[0]]
    if isinstance(op, Conv2D):
        channels, frame = op.weights.shape[3], op.frame
        geometry: tuple[int, ...] = (frame.kernel_height, frame.kernel_width, frame.stride_width, frame.pad_left)
    else:
        channels, geometry = op.weights.shape[1], (1, 1, 1, 0)
    _fits(op, channels, op.weights.shape[0], *(256 * n for n in geometry))
    fields = (
        f"weights_{name}", f"requant_{name}", packed.rq_step, channels, op.weights.shape[0], *geometry,
        f"{packed.flags}u", source.quant.zero_point, out, op.clamp.low, op.clamp.high,
    )  # fmt: skip
    return f"static const ht_conv params_{name} = {initialiser(*fields)};\n"


def _fits(op: Op, *sizes: int) -> None:
    if max(sizes) > 65535:
        raise UnsupportedOpError(f"node {op.node} ({op.kind}): a size in {sizes} is above 65535, the kernels' limit.")


def _conv(network: Network, op: Conv2D, name: str) -> OpCode:
    packed = pack_conv(op.weights, _quantization(network, op, op.requant, op.clamp))
    tables = [*_layer_tables(name, packed), _conv_params(network, op, name, packed)]
    return OpCode("ht_do_conv", f"&params_{name}", origins=(FROM_BUFFER,), tables=tables)


def _fully_connected(network: Network, op: FullyConnected, name: str) -> OpCode:
    if op.rounds_once:
        return _dense_once(network, op, name)
    packed = pack_fully_connected(op.weights, _quantization(network, op, op.requant, op.clamp))
    tables = [*_layer_tables(name, packed), _conv_params(network, op, name, packed)]
    return OpCode("ht_do_fully_connected", f"&params_{name}", origins=(FROM_START,), tables=tables)


def _dense_once(network: Network, op: FullyConnected, name: str) -> OpCode:
    outs, ins = op.weights.shape
    requant = op.requant
    _fits(op, outs, ins)
    if int(requant.shift.max()) > 30:
        raise UnsupportedOpError(f"node {op.node} (FULLY_CONNECTED): a multiplier above 2^30. Accepted: smaller ones.")
    tables = [
        int8_array(f"weights_{name}", op.weights.tobytes()),
        int32_array(f"bias_{name}", [int(v) for v in requant.bias]),
        int32_array(f"multiplier_{name}", [int(v) for v in requant.multiplier]),
        int8_array(f"exponent_{name}", requant.shift.astype(np.int8).tobytes()),
    ]
    zeros = (network.values[op.inputs[0]].quant.zero_point, network.values[op.output].quant.zero_point)
    pointers = (f"weights_{name}", f"bias_{name}", f"multiplier_{name}", f"exponent_{name}")
    fields = (*pointers, ins, outs, *zeros, op.clamp.low, op.clamp.high)
    tables.append(f"static const ht_dense_once params_{name} = {initialiser(*fields)};\n")
    return OpCode("ht_do_dense_once", f"&params_{name}", origins=(FROM_START,), tables=tables)


def _depthwise(network: Network, op: DepthwiseConv2D, name: str) -> OpCode:
    packed = pack_depthwise(op.weights, _quantization(network, op, op.requant, op.clamp))
    source, out = network.values[op.inputs[0]], network.values[op.output]
    frame = op.frame
    geometry = (frame.kernel_height, frame.kernel_width, frame.stride_width, frame.pad_left, op.multiplier)
    _fits(op, source.channels, out.channels, *(256 * n for n in geometry))
    fields = (
        f"weights_{name}", f"requant_{name}", packed.rq_step, source.channels, out.channels, *geometry,
        f"{packed.flags}u", source.quant.zero_point, out.quant.zero_point, op.clamp.low, op.clamp.high,
    )  # fmt: skip
    params = f"static const ht_dwconv params_{name} = {initialiser(*fields)};\n"
    return OpCode(
        "ht_do_depthwise", f"&params_{name}", origins=(FROM_BUFFER,), tables=[*_layer_tables(name, packed), params]
    )


def _pool(network: Network, op: Pool2D, name: str) -> OpCode:
    frame, source = op.frame, network.values[op.inputs[0]]
    reduces = is_reduction(op, network.values)
    window = (1, 1, 1, 0) if reduces else (frame.kernel_height, frame.kernel_width, frame.stride_width, frame.pad_left)
    _fits(op, source.channels, *(256 * n for n in window))
    fields = (source.channels, *window, op.clamp.low, op.clamp.high)
    tables = [f"static const ht_pool params_{name} = {initialiser(*fields)};\n"]
    if reduces:
        count = source.height * source.width
        _fits(op, count)
        return OpCode("ht_do_finish_average", f"&params_{name}", aux=count, tables=tables)
    row = "ht_do_average_pool" if op.average else "ht_do_max_pool"
    return OpCode(row, f"&params_{name}", origins=(FROM_BUFFER,), tables=tables)


def _mean(network: Network, op: Mean, name: str) -> OpCode:
    source = network.values[op.inputs[0]]
    count = (source.height if op.over[0] else 1) * (source.width if op.over[1] else 1)
    fields = (*op.scaling, count, op.input_zero_point, op.output_zero_point)
    tables = [f"static const ht_mean params_{name} = {initialiser(*fields)};\n"]
    if is_reduction(op, network.values):
        return OpCode("ht_do_finish_mean", f"&params_{name}", tables=tables)
    if op.over == (True, False, False):
        return OpCode("ht_do_mean_rows", f"&params_{name}", origins=(FROM_START,), tables=tables)
    return OpCode("ht_do_mean_columns", f"&params_{name}", tables=tables)


def _elementwise(network: Network, op: Elementwise, name: str) -> OpCode:
    out = network.values[op.output]
    widths = [shape[1] * shape[2] for shape in op.shapes]
    constant_later = op.constant is not None and op.constant_place == 0 and widths[0] == widths[1]
    swapped = constant_later or widths[0] < widths[1]
    first, second = (1, 0) if swapped else (0, 1)
    if op.shapes[first][1:] != (out.width, out.channels):
        raise UnsupportedOpError(
            f"node {op.node} ({op.kind}): both rows are broadcast ({op.shapes}). "
            "Accepted: one operand as wide as the output."
        )
    columns, channels = op.shapes[second][1], op.shapes[second][2]
    by_pixel = columns == out.width > 1 and channels == 1 < out.channels
    if channels == out.channels and columns == out.width:
        broadcast = "HT_SAME"
    else:
        broadcast = "HT_SCALAR" if channels == 1 else "HT_CHANNEL"
    tables = [f"static const {_kernel_params(op, name, (first, second), broadcast, out.channels)}"]
    constant, strides, constant_first = "NULL", (0, 0), False
    if op.constant is not None:
        tables.append(int8_array(f"constant_{name}", op.constant.tobytes()))
        height, width, depth = op.constant.shape
        constant = f"constant_{name}"
        strides = (width * depth if height > 1 else 0, depth if width > 1 else 0)
        constant_first = op.constant_place == first
    fields = (f"&kernel_{name}", constant, *strides, int(constant_first), int(by_pixel))
    tables.append(f"static const ht_binary params_{name} = {initialiser(*fields)};\n")
    narrow = FROM_OUTPUT if columns > 1 or out.width == 1 else FROM_BUFFER
    if op.constant is not None:
        origins: tuple[str, ...] = (narrow if constant_first else FROM_OUTPUT,)
    else:
        origins = (FROM_OUTPUT, narrow)
    row = "ht_do_add" if isinstance(op, Add) else "ht_do_mul"
    return OpCode(row, f"&params_{name}", swapped=swapped and op.constant is None, origins=origins, tables=tables)


def _kernel_params(op: Elementwise, name: str, order: tuple[int, int], broadcast: str, channels: int) -> str:
    zeros = [op.quants[i].zero_point for i in order]
    clamp = (op.clamp.low, op.clamp.high)
    if isinstance(op, Add):
        pairs = [(op.scaling.first, op.scaling.second)[i] for i in order] + [op.scaling.output]
        if any(shift > 0 for _, shift in pairs):
            raise UnsupportedOpError(
                f"node {op.node} (ADD): a multiplier is 1 or more. "
                "Accepted: an output scale above 2^-19 of the inputs'."
            )
        shifts = [-shift for _, shift in pairs]
        fields = (*(q for q, _ in pairs), *shifts, *zeros, op.output_zero_point, *clamp, channels, broadcast)
        return f"ht_add kernel_{name} = {initialiser(*fields)};\n"
    assert isinstance(op, Mul)
    fields = (*op.scaling, *zeros, op.output_zero_point, *clamp, broadcast, channels)
    return f"ht_mul kernel_{name} = {initialiser(*fields)};\n"


def _lookup(network: Network, op: Lookup, name: str) -> OpCode:
    del network
    return OpCode("ht_do_lookup", constant=f"table_{name}", tables=[int8_array(f"table_{name}", op.table.tobytes())])


def _softmax(network: Network, op: Softmax, name: str) -> OpCode:
    table = [int(v) for v in softmax_exp_table(op.multiplier, op.left_shift, op.diff_min)]
    fields = (f"table_{name}", len(table), network.values[op.output].channels)
    tables = [int32_array(f"table_{name}", table), f"static const ht_softmax params_{name} = {initialiser(*fields)};\n"]
    return OpCode("ht_do_softmax", f"&params_{name}", tables=tables)


def _pad(network: Network, op: Pad, name: str) -> OpCode:
    del network
    tables = [f"static const int8_t fill_{name}[1] = {{{op.fill}}};\n"]
    return OpCode("ht_do_pad", constant=f"fill_{name}", aux=op.left, origins=(FROM_BUFFER,), tables=tables)


def _reshape(network: Network, op: Reshape, name: str) -> OpCode:
    del network, op, name
    return OpCode("ht_do_reshape", origins=(FROM_START,))


def _transpose(network: Network, op: Transpose, name: str) -> OpCode:
    source, out = network.values[op.inputs[0]], network.values[op.output]
    steps = (source.width * source.channels, source.channels, 1)
    strides = [steps[axis] if axis >= 0 else 0 for axis in op.source_axes]
    dims = initialiser(*out.shape, 1, 1, 1)
    params = initialiser(3, dims, initialiser(*strides, 0, 0, 0))
    tables = [f"static const ht_transpose params_{name} = {params};\n"]
    return OpCode("ht_do_transpose", f"&params_{name}", origins=(FROM_START,), tables=tables)


def _concatenation(network: Network, op: Concatenation, name: str) -> OpCode:
    del network, name
    row = ("ht_do_concat_rows", "ht_do_concat_columns", "ht_do_concat_channels")[op.axis]
    origin = FROM_OUTPUT if op.axis == 2 else FROM_BUFFER
    return OpCode(row, origins=(origin,) * len(op.inputs))


def _resize(network: Network, op: ResizeNearest, name: str) -> OpCode:
    tables = [uint16_array(f"map_{name}", op.columns)]
    rows = op.reads(network.values)[0][0]
    picks = "NULL"
    if rows.size > 1:
        picks = f"pick_{name}"
        firsts = (y * rows.stride // rows.divide - rows.before for y in range(len(op.rows)))
        tables.append(uint16_array(picks, [p - first for p, first in zip(op.rows, firsts, strict=True)]))
    tables.append(f"static const ht_resize params_{name} = {initialiser(f'map_{name}', picks)};\n")
    return OpCode("ht_do_resize", f"&params_{name}", origins=(FROM_BUFFER,), tables=tables)


WRITERS: tuple[tuple[type[Op], Callable[..., OpCode]], ...] = (
    (Conv2D, _conv),
    (DepthwiseConv2D, _depthwise),
    (FullyConnected, _fully_connected),
    (Pool2D, _pool),
    (Mean, _mean),
    (Elementwise, _elementwise),
    (Lookup, _lookup),
    (Softmax, _softmax),
    (Pad, _pad),
    (Reshape, _reshape),
    (Transpose, _transpose),
    (Concatenation, _concatenation),
    (ResizeNearest, _resize),
)
