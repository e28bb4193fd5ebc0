"""Static integer tables of the entropy coder, their canonical bytes and their id (docs/codec.md)."""

import hashlib
import struct
from dataclasses import dataclass, field
from itertools import pairwise

from edge_runtime.entropy.errors import TableError

SCALE = 4096  # the frequencies of every table sum to this
MAX_COUNT = 255  # values in the range of one table
MAX_TABLES = 255
MAX_LAYERS = 16
MAX_TENSORS = 8
MAX_CHANNELS = 0xFFFF
BLOCK_STEP = 32  # a block is a multiple of this many positions
MAX_SET_BYTES = 1 << 20

_MAGIC = b"HTTS"
_VERSION = 1
_HEAD = struct.Struct("<4sBBBBBBH")  # magic, version, tensors, layers, tables, variants, reserved, block
_TENSOR = struct.Struct("<BBH")  # channel axis, fill, channels
_LAYER = struct.Struct("<BBHH")  # tensor, reserved, start, stop
_TABLE = struct.Struct("<BB")  # low, count


@dataclass(frozen=True)
class Table:
    """Frequencies of the codes `low` to `low + len - 2`, the escape's last; a code is the value with int8's sign flipped."""

    low: int
    frequencies: tuple[int, ...]

    def __post_init__(self) -> None:
        """Check the table.

        Raises:
            TableError: With what is wrong.
        """
        found = self.frequencies
        if not 2 <= len(found) <= MAX_COUNT + 1 or not 0 <= self.low <= 256 - self.count:
            raise TableError(
                f"Wanted a table of 1 to {MAX_COUNT} codes within 0 to 255, found {self.count} from {self.low}."
            )
        if min(found) < 1 or sum(found) != SCALE:
            raise TableError(
                f"Wanted frequencies of at least 1 that sum to {SCALE}, found a minimum of {min(found)} and a sum of "
                f"{sum(found)}. Build tables with count_tables."
            )

    @property
    def count(self) -> int:
        """Codes in the range, the escape not counted."""
        return len(self.frequencies) - 1


@dataclass(frozen=True)
class TensorPlan:
    """How one tensor is coded: axis of its channels after the batch (0 first, 1 last) and the first table of each."""

    base: tuple[int, ...]
    channel_axis: int = 0
    fill: int = 128  # code that stands in for a channel whose layer has not arrived: the zero point

    @property
    def channels(self) -> int:
        """Number of channels."""
        return len(self.base)


@dataclass(frozen=True)
class LayerPlan:
    """The channels [start, stop) of one tensor travel in one layer."""

    tensor: int
    start: int
    stop: int


@dataclass(frozen=True)
class TableSet:
    """All that encoder and decoder must agree on. With `variants` > 1 the last table codes the index of each block."""

    tensors: tuple[TensorPlan, ...]
    layers: tuple[LayerPlan, ...]
    tables: tuple[Table, ...]
    variants: int = 1
    block: int = 0
    data: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check the set and make its canonical bytes.

        Raises:
            TableError: With what is wrong.
        """
        _check_sizes(self)
        _check_blocks(self)
        _check_layers(self)
        object.__setattr__(self, "data", _serialise(self))

    def __hash__(self) -> int:
        """That of the canonical bytes, which Python computes once."""
        return hash(self.data)

    @property
    def id(self) -> bytes:
        """The 4 bytes that name the set in a frame."""
        return hashlib.sha256(self.data).digest()[:4]


def parse_tables(data: bytes | memoryview) -> TableSet:
    """Read a table set; only the canonical form is accepted.

    Raises:
        TableError: Truncated, trailing bytes, another version, or values that make no valid set.
    """
    data = bytes(data)
    if len(data) > MAX_SET_BYTES:
        raise TableError(f"Wanted a table set of at most {MAX_SET_BYTES} B, found {len(data)} B.")
    try:
        tables = _parse(data)
    except struct.error as error:
        raise TableError(f"Wanted a whole table set, found {len(data)} B that end too early.") from error
    if tables.data != data:
        raise TableError(
            f"Wanted a table set in canonical form, found {len(data)} B of which {len(tables.data)} mean it."
        )
    return tables


def _check_sizes(tables: TableSet) -> None:
    sizes = (len(tables.tensors), len(tables.layers), len(tables.tables))
    limits = (MAX_TENSORS, MAX_LAYERS, MAX_TABLES)
    if any(not 1 <= size <= limit for size, limit in zip(sizes, limits, strict=True)):
        raise TableError(f"Wanted 1 to {limits} tensors, layers and tables in a table set, found {sizes}.")
    for number, tensor in enumerate(tables.tensors):
        if not 1 <= tensor.channels <= MAX_CHANNELS or tensor.channel_axis not in (0, 1) or not 0 <= tensor.fill <= 255:
            raise TableError(
                f"Wanted 1 to {MAX_CHANNELS} channels on axis 0 or 1 and a fill code of 0 to 255 in tensor {number}, "
                f"found {tensor.channels}, {tensor.channel_axis} and {tensor.fill}."
            )


def _check_blocks(tables: TableSet) -> None:
    symbols = len(tables.tables)
    if tables.variants == 1:
        if tables.block:
            raise TableError(f"Wanted no blocks in a table set without variants, found blocks of {tables.block}.")
    else:
        index = tables.tables[-1]
        symbols -= 1
        if not 2 <= tables.variants <= MAX_COUNT or not 0 < tables.block <= 0xFFFF or tables.block % BLOCK_STEP:
            raise TableError(
                f"Wanted 2 to {MAX_COUNT} variants and blocks of a multiple of {BLOCK_STEP} positions, "
                f"found {tables.variants} and {tables.block}."
            )
        if index.low or index.count != tables.variants:
            raise TableError(
                f"Wanted an index table of {tables.variants} codes from 0, found {index.count} from {index.low}."
            )
    for number, tensor in enumerate(tables.tensors):
        if min(tensor.base) < 0 or max(tensor.base) + tables.variants > symbols:
            raise TableError(
                f"Wanted tables 0 to {symbols - tables.variants} as the first of a channel of tensor {number}, "
                f"found {min(tensor.base)} to {max(tensor.base)}."
            )


def _check_layers(tables: TableSet) -> None:
    for number, tensor in enumerate(tables.tensors):
        spans = [(layer.start, layer.stop) for layer in tables.layers if layer.tensor == number]
        joints = [0, *(stop for _, stop in spans)]
        if [start for start, _ in spans] != joints[:-1] or joints[-1] != tensor.channels or _falls(joints):
            raise TableError(
                f"Wanted layers that cover the {tensor.channels} channels of tensor {number} once and in order, "
                f"found {spans}."
            )
    if any(not 0 <= layer.tensor < len(tables.tensors) for layer in tables.layers):
        raise TableError(f"Wanted layers of {len(tables.tensors)} tensors, found {tables.layers}.")


def _falls(joints: list[int]) -> bool:
    return any(second <= first for first, second in pairwise(joints))


def _serialise(tables: TableSet) -> bytes:
    sizes = (len(tables.tensors), len(tables.layers), len(tables.tables))
    parts = [_HEAD.pack(_MAGIC, _VERSION, *sizes, tables.variants, 0, tables.block)]
    for tensor in tables.tensors:
        parts += (_TENSOR.pack(tensor.channel_axis, tensor.fill, tensor.channels), bytes(tensor.base))
    parts += [_LAYER.pack(layer.tensor, 0, layer.start, layer.stop) for layer in tables.layers]
    for table in tables.tables:
        parts += (_TABLE.pack(table.low, table.count), struct.pack(f"<{table.count + 1}H", *table.frequencies))
    return b"".join(parts)


def _parse(data: bytes) -> TableSet:
    magic, version, tensors, layers, tables, variants, _, block = _HEAD.unpack_from(data)
    if magic != _MAGIC or version != _VERSION:
        raise TableError(f"Wanted a table set {_MAGIC!r} version {_VERSION}, found {magic!r} version {version}.")
    at = _HEAD.size
    tensor_plans, layer_plans, found = [], [], []
    for _ in range(tensors):
        axis, fill, channels = _TENSOR.unpack_from(data, at)
        at += _TENSOR.size + channels
        tensor_plans.append(TensorPlan(struct.unpack_from(f"{channels}B", data, at - channels), axis, fill))
    for _ in range(layers):
        tensor, _, start, stop = _LAYER.unpack_from(data, at)
        at += _LAYER.size
        layer_plans.append(LayerPlan(tensor, start, stop))
    for _ in range(tables):
        low, count = _TABLE.unpack_from(data, at)
        at += _TABLE.size
        found.append(Table(low, struct.unpack_from(f"<{count + 1}H", data, at)))
        at += 2 * (count + 1)
    return TableSet(tuple(tensor_plans), tuple(layer_plans), tuple(found), variants, block)
