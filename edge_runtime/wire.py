"""What travels between head and tail: request envelope, reply header and tensor frame, byte for byte as docs/wire.md.

All numbers are little-endian. Decoding is zero-copy: arrays and layers are views of the message. Given any bytes, a
decoder returns a value or raises a `WireError`; it never reads out of bounds and allocates nothing for raw tensors.
"""

import enum
import struct
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Protocol

import msgspec
import numpy as np

from device_profiles.errors import EdgeError
from edge_runtime.checksum import crc32
from edge_runtime.manifest import DTYPES, MAX_TENSORS, TensorSpec

MAGIC = b"HT"
VERSION = 1
MAX_LAYERS = 16
MAX_RANK = 3  # sizes after the batch, which is always 1
ENVELOPE_BYTES = 24
REPLY_BYTES = 40
FIXED_BYTES = 28
REQUEST_ID_BYTES = 16
CUT_ID_BYTES = 8
TABLE_SET_BYTES = 4
NO_TABLES = bytes(TABLE_SET_BYTES)

FLAG_DIRECT = 1  # the request asks for the direct data plane: its body is a public key
FLAG_TRACED = 2  # the request id is the id of a trace
_FLAGS = FLAG_DIRECT | FLAG_TRACED

CODEC_RAW = 0
CODEC_ENTROPY = 1
CODEC_IMAGE = 2

_ENVELOPE = struct.Struct("<16sIHH")  # request id, remaining budget ms, flags, reserved
_REPLY = struct.Struct("<16sBBHIIIQ")  # request id, status, flags, reserved, queue us, decode us, tail us, clock us
_FIXED = struct.Struct("<2sBB8s4sBBHII")  # magic, version, codec, cut, tables, layers, tensors, 0, payload, CRC
_TENSOR = struct.Struct("<BB3H")  # dtype, rank, sizes
_LENGTHS = tuple(struct.Struct(f"<{count}I") for count in range(MAX_LAYERS + 1))
_CODES = {name: code for code, name in enumerate(DTYPES)}
_TYPE_BY_NAME = {name: np.dtype(name).newbyteorder("<") for name in DTYPES}
_BIG_ENDIAN = sys.byteorder == "big"
_ZERO_CRC = bytes(4)
_CRC_OFFSET = 24


class WireError(EdgeError):
    """Bytes that are not what docs/wire.md says, or values that it cannot carry."""


class TruncatedError(WireError):
    """Fewer bytes than the header announces, or more."""


class FormatError(WireError):
    """Not a frame of this version: magic, version, codec, dtype or a reserved field differs."""


class DamagedError(WireError):
    """The CRC32 does not match."""


class LimitError(WireError):
    """More tensors, layers or bytes than the limits allow."""


class Status(enum.IntEnum):
    """How a request ended at the tail."""

    OK = 0
    BUSY = 1
    EXPIRED = 2
    UNKNOWN_MODEL = 3
    BAD_REQUEST = 4
    FAILED = 5


class Limits(msgspec.Struct, frozen=True):
    """What the caller's manifest allows a frame to hold, in bytes."""

    payload_bytes: int
    tensor_bytes: int  # all decoded tensors together


class TensorHead(msgspec.Struct, frozen=True):
    """dtype and full shape, batch 1 first, of one tensor in a frame, and the size of its values in bytes."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int


class Frame(msgspec.Struct, frozen=True):
    """A decoded frame; `layers` are views of the message."""

    codec: int
    cut_id: bytes
    tables: bytes
    tensors: tuple[TensorHead, ...]
    layers: tuple[memoryview, ...]


class Header(msgspec.Struct, frozen=True):
    """What a frame says of itself before its layers: codec number, route key (8 bytes), table set (4 bytes)."""

    codec: int
    cut_id: bytes
    tables: bytes = NO_TABLES


class Envelope(msgspec.Struct, frozen=True):
    """Head of a request. The budget counts from the moment that the tail receives it, in ms."""

    request_id: bytes
    budget_ms: int
    flags: int = 0


class Reply(msgspec.Struct, frozen=True):
    """Head of a reply: how it ended and where the time went, in microseconds."""

    request_id: bytes
    status: Status
    queue_us: int = 0
    decode_us: int = 0
    tail_us: int = 0
    received_us: int = 0  # the tail's own clock, of any origin, when it had the request; 0: not told


class Codec(Protocol):
    """Turns tensors into layers and back; an implementation bounds its allocations by the heads' sizes."""

    @property
    def table_id(self) -> bytes:
        """The 4 bytes that name the codec's tables, zeros where it has none."""

    def encode(self, arrays: Sequence[np.ndarray]) -> list[bytes | memoryview]:
        """At most `MAX_LAYERS` layers, the most important first."""

    def decode(self, heads: Sequence[TensorHead], layers: Sequence[memoryview]) -> list[np.ndarray]:
        """One array for each head, or a `WireError`."""


class RawCodec:
    """Codec 0: one layer, the tensors' little-endian values back to back."""

    table_id = NO_TABLES

    def encode(self, arrays: Sequence[np.ndarray]) -> list[bytes | memoryview]:
        """One layer; a single C-contiguous little-endian tensor is not copied."""
        if len(arrays) == 1:
            return [_value_bytes(arrays[0])]
        return [b"".join([_value_bytes(array) for array in arrays])]

    def decode(self, heads: Sequence[TensorHead], layers: Sequence[memoryview]) -> list[np.ndarray]:
        """Views of the layer, copied only where a tensor's start is not aligned.

        Raises:
            FormatError: Not exactly one layer, or a bool that is neither 0 nor 1.
            TruncatedError: The layer's size is not that of the tensors.
        """
        if len(layers) != 1 or not heads:
            raise FormatError(
                f"Wanted one layer and at least one tensor in a raw frame, found {len(layers)} and {len(heads)}."
            )
        layer = layers[0]
        wanted = sum([head.nbytes for head in heads])
        if wanted != len(layer):
            raise TruncatedError(f"Wanted {wanted} B of tensors in the raw layer, found {len(layer)} B.")
        arrays, offset = [], 0
        for head in heads:
            array: np.ndarray = np.ndarray(head.shape, _TYPE_BY_NAME[head.dtype], layer, offset)
            if head.dtype == "bool" and max(layer[offset : offset + head.nbytes]) > 1:
                raise FormatError("Wanted only 0 and 1 in a bool tensor, found another value.")
            # Only a tensor behind one of smaller items can lie askew; engines want it straight.
            arrays.append(array if array.flags.aligned else array.copy())
            offset += head.nbytes
        return arrays


# The entropy coder is added by whoever opens an artefact with tables: {**RAW_CODECS, CODEC_ENTROPY: ...}.
RAW_CODECS: Mapping[int, Codec] = MappingProxyType({CODEC_RAW: RawCodec()})


def limits_of(specs: Sequence[TensorSpec]) -> Limits:
    """The limits for raw or compressed frames of the manifest's tensors."""
    total = sum(spec.nbytes for spec in specs)
    # An entropy coder's escape path may cost more than raw on adversarial input, but never more than a quarter.
    return Limits(payload_bytes=total + total // 4 + 1024, tensor_bytes=total)


def pack_envelope(envelope: Envelope) -> bytes:
    """24 bytes."""
    return _ENVELOPE.pack(envelope.request_id, min(max(envelope.budget_ms, 0), 0xFFFFFFFF), envelope.flags, 0)


def unpack_envelope(data: bytes | memoryview) -> Envelope:
    """Decode the first 24 bytes of a request.

    Raises:
        TruncatedError: Fewer than 24 bytes.
        FormatError: An unknown flag or a reserved bit is set.
    """
    if len(data) < ENVELOPE_BYTES:
        raise TruncatedError(f"Wanted a request envelope of {ENVELOPE_BYTES} B, found {len(data)} B.")
    request_id, budget_ms, flags, reserved = _ENVELOPE.unpack_from(data)
    if flags & ~_FLAGS or reserved:
        raise FormatError(f"Wanted no flags but {_FLAGS:#x} in the request envelope, found {flags:#x}, {reserved:#x}.")
    return Envelope(request_id, budget_ms, flags)


def pack_reply(reply: Reply) -> bytes:
    """40 bytes."""
    times = (min(max(value, 0), 0xFFFFFFFF) for value in (reply.queue_us, reply.decode_us, reply.tail_us))
    return _REPLY.pack(reply.request_id, reply.status, 0, 0, *times, reply.received_us & 0xFFFFFFFFFFFFFFFF)


def unpack_reply(data: bytes | memoryview) -> Reply:
    """Decode the first 40 bytes of a reply.

    Raises:
        TruncatedError: Fewer than 40 bytes.
        FormatError: An unknown status, flag or reserved bit.
    """
    if len(data) < REPLY_BYTES:
        raise TruncatedError(f"Wanted a reply header of {REPLY_BYTES} B, found {len(data)} B.")
    request_id, status, flags, reserved, queue_us, decode_us, tail_us, received_us = _REPLY.unpack_from(data)
    if status > Status.FAILED or flags or reserved:
        raise FormatError(
            f"Wanted a status of 0 to {int(Status.FAILED)} and no flags, found {status}, {flags:#x}, {reserved:#x}."
        )
    return Reply(request_id, Status(status), queue_us, decode_us, tail_us, received_us)


def encode_tensors(
    arrays: Sequence[np.ndarray], *, cut_id: bytes, codec: Codec = RAW_CODECS[CODEC_RAW], code: int = CODEC_RAW
) -> list[bytes | memoryview]:
    """Frame tensors; returns pieces to be joined with the envelope or reply header in front.

    Args:
        arrays: 1 to 8 arrays with batch 1 and at most three more sizes, each below 65536.
        cut_id: 8 bytes, the route key.
        codec: Turns tensors into layers.
        code: The codec's number in the frame.

    Raises:
        FormatError: A dtype or shape that a frame cannot carry.
        LimitError: Too many tensors, or 4 GiB of payload.
    """
    heads = pack_heads(arrays)
    return frame_layers(Header(code, cut_id, codec.table_id), codec.encode(arrays), heads, len(arrays))


def pack_heads(arrays: Sequence[np.ndarray]) -> bytes:
    """What a frame says of its tensors; checked before a codec sees them.

    Raises:
        FormatError: A dtype or shape that a frame cannot carry.
        LimitError: No tensor, or more than 8.
    """
    if not 1 <= len(arrays) <= MAX_TENSORS:
        raise LimitError(f"Wanted 1 to {MAX_TENSORS} tensors in a frame, found {len(arrays)}.")
    return b"".join([_pack_head(array.dtype, array.shape) for array in arrays])


def encode_image_file(data: bytes, *, cut_id: bytes) -> list[bytes | memoryview]:
    """Frame an encoded picture (JPEG, PNG, WebP file) for a whole model on the host."""
    return frame_layers(Header(CODEC_IMAGE, cut_id), [data], b"", 0)


def decode_frame(data: bytes | memoryview, limits: Limits) -> Frame:
    """Check and take apart a frame that fills `data` exactly.

    Raises:
        TruncatedError: Too short, or bytes left over.
        FormatError: Another magic, version, dtype, or a reserved field that is set.
        LimitError: More than 8 tensors, 16 layers, or the given limits.
        DamagedError: The CRC32 differs.
    """
    view = memoryview(data)
    if len(view) < FIXED_BYTES:
        raise TruncatedError(f"Wanted a frame of at least {FIXED_BYTES} B, found {len(view)} B.")
    magic, version, codec, cut_id, tables, layers, tensors, reserved, payload, crc = _FIXED.unpack_from(view)
    if magic != MAGIC or version != VERSION or reserved:
        raise FormatError(
            f"Wanted a frame {MAGIC!r} version {VERSION}, found {magic!r} version {version} (reserved {reserved:#x}). "
            "Run the same headtail version on both sides."
        )
    if layers > MAX_LAYERS or tensors > MAX_TENSORS or payload > limits.payload_bytes:
        raise LimitError(
            f"Wanted at most {MAX_LAYERS} layers, {MAX_TENSORS} tensors and {limits.payload_bytes} B of payload, "
            f"found {layers}, {tensors} and {payload} B."
        )
    start = FIXED_BYTES + 4 * layers + _TENSOR.size * tensors
    if len(view) != start + payload:
        raise TruncatedError(f"Wanted a frame of {start + payload} B as its header says, found {len(view)} B.")
    zeroed = crc32(view[FIXED_BYTES:start], crc32(_ZERO_CRC, crc32(view[:_CRC_OFFSET], 0)))
    if crc32(view[start:], zeroed) != crc:
        raise DamagedError(
            f"Wanted CRC32 {crc:#010x} over the frame of {len(view)} B, found another: damaged on its way."
        )
    heads, total = _unpack_heads(bytes(view[FIXED_BYTES + 4 * layers : start]))
    if total > limits.tensor_bytes:
        raise LimitError(f"Wanted at most {limits.tensor_bytes} B of tensors, found {total} B announced.")
    return Frame(codec, cut_id, tables, heads, _split(view, start, layers, payload))


def decode_tensors(frame: Frame, codecs: Mapping[int, Codec] = RAW_CODECS) -> list[np.ndarray]:
    """The tensors of a decoded frame.

    Raises:
        FormatError: No such codec here.
        WireError: As the codec says.
    """
    codec = codecs.get(frame.codec)
    if codec is None:
        raise FormatError(f"Wanted a codec of {sorted(codecs)} for this model, found {frame.codec}.")
    if frame.tables != codec.table_id:
        raise FormatError(
            f"Wanted a frame coded with table set {codec.table_id.hex()}, found {frame.tables.hex()}. "
            "Deploy head and tail of the same cut."
        )
    return codec.decode(frame.tensors, frame.layers)


def frame_layers(
    header: Header, layers: list[bytes | memoryview], heads: bytes, tensors: int
) -> list[bytes | memoryview]:
    """A frame of what a codec gave, with the heads of `pack_heads`; pieces as of `encode_tensors`.

    Raises:
        LimitError: 4 GiB of payload.
    """
    lengths = [len(layer) for layer in layers]
    payload = sum(lengths)
    if len(layers) > MAX_LAYERS or payload > 0xFFFFFFFF:
        raise LimitError(f"Wanted at most {MAX_LAYERS} layers and 4 GiB in a frame, found {len(layers)}, {payload} B.")
    if len(header.cut_id) != CUT_ID_BYTES:
        raise FormatError(f"Wanted a cut id of {CUT_ID_BYTES} bytes, found {len(header.cut_id)}.")
    rest = _LENGTHS[len(layers)].pack(*lengths) + heads
    names = (header.codec, header.cut_id, header.tables)
    fixed = _FIXED.pack(MAGIC, VERSION, *names, len(layers), tensors, 0, payload, 0)
    crc = crc32(fixed + rest, 0)
    for layer in layers:
        crc = crc32(layer, crc)
    return [fixed[:_CRC_OFFSET] + crc.to_bytes(4, "little") + rest, *layers]


def _split(view: memoryview, start: int, layers: int, payload: int) -> tuple[memoryview, ...]:
    lengths = _LENGTHS[layers].unpack_from(view, FIXED_BYTES)
    if layers == 1 and lengths[0] == payload:
        return (view[start:],)
    if sum(lengths) != payload:
        raise TruncatedError(f"Wanted layers of {payload} B together, found {sum(lengths)} B announced.")
    parts, offset = [], start
    for length in lengths:
        parts.append(view[offset : offset + length])
        offset += length
    return tuple(parts)


@lru_cache(maxsize=256)
def _pack_head(dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> bytes:
    code = _CODES.get(dtype.name)
    sizes = shape[1:]
    if code is None or not shape or shape[0] != 1 or len(sizes) > MAX_RANK or not all(0 < s <= 0xFFFF for s in sizes):
        raise FormatError(
            f"Wanted one of {', '.join(DTYPES)} with batch 1 and at most {MAX_RANK} sizes of 1 to 65535, "
            f"found {dtype} {shape}. Cut the network at another tensor."
        )
    return _TENSOR.pack(code, len(sizes), *sizes, *(0,) * (MAX_RANK - len(sizes)))


@lru_cache(maxsize=256)
def _unpack_heads(data: bytes) -> tuple[tuple[TensorHead, ...], int]:
    """The tensors' heads and their size together."""
    heads = []
    for code, rank, *sizes in _TENSOR.iter_unpack(data):
        if code >= len(DTYPES) or rank > MAX_RANK or any(sizes[rank:]) or 0 in sizes[:rank]:
            raise FormatError(f"Wanted a known dtype, rank 0 to {MAX_RANK}, sizes > 0, found {code}, {rank}, {sizes}.")
        count = int(_TYPE_BY_NAME[DTYPES[code]].itemsize)
        for size in sizes[:rank]:
            count *= size
        heads.append(TensorHead(DTYPES[code], (1, *sizes[:rank]), count))
    return tuple(heads), sum([head.nbytes for head in heads])


def _value_bytes(array: np.ndarray) -> memoryview:
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")) if _BIG_ENDIAN else array
    return np.ascontiguousarray(little).data.cast("B")
