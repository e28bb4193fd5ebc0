"""Writes the frame of a head as C: where the latents lie, their tables, and one function that runs and encodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from device_profiles.version import __version__
from edge_runtime import entropy
from edge_runtime.entropy.c_tables import table_flash_bytes, table_source
from edge_runtime.entropy.tables import LayerPlan, TableSet
from edge_runtime.manifest import DTYPES, MAX_TENSORS
from edge_runtime.wire import (
    CODEC_ENTROPY,
    CODEC_RAW,
    CUT_ID_BYTES,
    FIXED_BYTES,
    MAX_RANK,
    RAW_CODECS,
    Codec,
    encode_tensors,
)
from export.mcu.emit_network import NetworkCode, comment_text, make_environment
from export.mcu.errors import ScheduleError, UnsupportedOpError
from export.mcu.network import Network, Port
from export.mcu.oracle import Int8s, from_physical
from split.patch_plan import InputMode

HERE = Path(__file__).parent
_STRUCT_BYTES = 24  # of one ht_head_tensor on a 32-bit core; with its wire form and layers a few more
# What the run function takes: types and names
_ARENA = ("int8_t *", "arena")
_GIVEN = {
    InputMode.RESIDENT: (_ARENA,),
    InputMode.OVERWRITTEN: (_ARENA,),
    InputMode.PULLED: (_ARENA, ("ht_pull_row ", "row"), ("void *", "user")),
    InputMode.EXTERNAL: (_ARENA, ("const int8_t *", "picture")),
}


@dataclass(frozen=True)
class FrameRequest:
    """What the tail of a cut expects.

    Attributes:
        cut_id: 8 bytes, the route key.
        tables: Of the entropy coder; None: values travel as they are.
    """

    cut_id: bytes
    tables: TableSet | None = None

    def __post_init__(self) -> None:
        """Check the cut id's length."""
        if len(self.cut_id) != CUT_ID_BYTES:
            raise ValueError(f"Wanted a cut id of {CUT_ID_BYTES} bytes, found {len(self.cut_id)}.")

    @property
    def codec(self) -> tuple[int, Codec]:
        """Number and codec, as the host encodes."""
        if self.tables is None:
            return CODEC_RAW, RAW_CODECS[CODEC_RAW]
        return CODEC_ENTROPY, entropy.EntropyCodec(self.tables)


@dataclass(frozen=True)
class FrameCode:
    """The generated files and what a caller must know. Sizes in bytes."""

    request: FrameRequest = field(repr=False)
    ports: tuple[Port, ...]
    files: dict[str, str]
    buffer_bytes: int  # the largest frame, and scratch
    latent_bytes: int
    constant_bytes: int


@dataclass(frozen=True)
class _TensorLine:
    """One crossing tensor as the template shows it; `sizes` are those of the wire, batch left out."""

    name: str
    macro: str
    sizes: tuple[int, ...]
    channels: int
    positions: int
    channel_step: int
    position_step: int

    @property
    def size_bytes(self) -> int:
        """Values, one byte each."""
        return self.channels * self.positions


def emit_frame(network: Network, code: NetworkCode, request: FrameRequest) -> FrameCode:
    """Write the frame function of a head.

    Args:
        network: The head; its outputs are the crossing tensors, in the frame's order.
        code: The network's C.
        request: Cut id and tables.

    Returns:
        ``<prefix>_frame.c`` and ``.h``, and ``<prefix>_tables.c`` with tables.

    Raises:
        UnsupportedOpError: A crossing tensor that a frame of int8 in memory order cannot carry.
        ScheduleError: The tables do not belong to the network's outputs.
    """
    _check_tables(network, request.tables)
    lines = [_tensor_line(network, port, request, index) for index, port in enumerate(network.outputs)]
    if len(lines) > MAX_TENSORS:
        raise UnsupportedOpError(f"Wanted at most {MAX_TENSORS} crossing tensors, found {len(lines)}.")
    layers = request.tables.layers if request.tables else ()
    scratch = _scratch_bytes(request.tables, lines)
    latent = sum(line.size_bytes for line in lines)
    layer_count = len(layers) or 1
    given = _GIVEN[code.mode]
    buffer = FIXED_BYTES + 4 * layer_count + 8 * len(lines) + latent + len(layers) + scratch
    context: dict[str, Any] = {
        "prefix": code.prefix,
        "guard": code.prefix.upper(),
        "version": __version__,
        "cut_id": request.cut_id,
        "cut_hex": request.cut_id.hex(),
        "tensors": lines,
        "dtype": DTYPES.index("int8"),
        "layers": layers,
        "coded": request.tables is not None,
        "progressive": len(layers) > 1 and len(lines) == 1,
        "parameters": ", ".join(f"{kind}{name}" for kind, name in given),
        "given": ", ".join(name for _, name in given),
        "scratch_bytes": scratch,
        "buffer_bytes": buffer,
    }
    environment = make_environment()
    files = {
        f"{code.prefix}_frame.{kind}": environment.get_template(f"frame.{kind}.j2").render(context)
        for kind in ("c", "h")
    }
    constants = _STRUCT_BYTES * len(lines) + 8 * len(lines) + 6 * len(layers) + CUT_ID_BYTES
    if request.tables is not None:
        files[f"{code.prefix}_tables.c"] = table_source(request.tables, f"{code.prefix}_tables")
        constants += table_flash_bytes(request.tables)
    return FrameCode(request, network.outputs, files, buffer, latent, constants)


def host_frame(frame: FrameCode, outputs: Sequence[Int8s]) -> bytes:
    """The frame that the host writes for these latents, given as they lie in memory."""
    arrays = [
        np.ascontiguousarray(from_physical(data, port.view)) for port, data in zip(frame.ports, outputs, strict=True)
    ]
    number, codec = frame.request.codec
    return b"".join(encode_tensors(arrays, cut_id=frame.request.cut_id, codec=codec, code=number))


def frame_sources() -> list[Path]:
    """The hand-written C of every head: entropy coder, frame writer, and what joins them to the arena."""
    coder = Path(entropy.__file__).parent.parent / "csrc"
    names = [coder / f"ht_{part}.{kind}" for part in ("entropy", "frame") for kind in ("c", "h")]
    return [*names, *sorted((HERE / "head").glob("*.[ch]"))]


def _tensor_line(network: Network, port: Port, request: FrameRequest, index: int) -> _TensorLine:
    value, shape = network.values[port.key], port.view.shape
    sizes = shape[1:]
    if port.dtype != "int8" or not port.view.in_memory_order or shape[0] != 1 or not 1 <= len(sizes) <= MAX_RANK:
        raise UnsupportedOpError(
            f"Wanted int8 with batch 1, 1 to {MAX_RANK} sizes and channels last as a latent of a microcontroller head, "
            f"found {port.dtype} {shape} (axes {port.view.axes}) at {comment_text(port.name)}. Cut at another tensor (--list)."
        )
    last = request.tables is None or bool(request.tables.tensors[index].channel_axis)
    channels = sizes[-1] if last else sizes[0]
    positions = value.size_bytes // channels
    macro = "OUTPUT" if len(network.outputs) == 1 else f"OUTPUT_{index}"
    steps = (1, channels) if last else (positions, 1)
    return _TensorLine(comment_text(port.name), macro, sizes, channels, positions, *steps)


def _check_tables(network: Network, tables: TableSet | None) -> None:
    """Refuse tables of another network: the coder reads as many channels as they name."""
    if tables is None:
        return
    found = [port.view.shape for port in network.outputs]
    wanted = [(plan.channel_axis, plan.channels) for plan in tables.tensors]
    if len(found) != len(wanted) or any(
        len(shape) < 2 or channels != (shape[-1] if axis else shape[1])
        for shape, (axis, channels) in zip(found, wanted, strict=True)
    ):
        raise ScheduleError(
            f"Wanted tables of this head, found some for (channel axis, channels) {wanted}, while it gives {found}. "
            "Count them on this cut."
        )


def _scratch_bytes(tables: TableSet | None, lines: Sequence[_TensorLine]) -> int:
    """One byte for each block of the largest layer; 0 without variants."""
    if tables is None or tables.variants < 2:
        return 0
    return max(_blocks(tables, layer, lines) for layer in tables.layers)


def _blocks(tables: TableSet, layer: LayerPlan, lines: Sequence[_TensorLine]) -> int:
    return (layer.stop - layer.start) * -(-lines[layer.tensor].positions // tables.block)
