"""The entropy coder in NumPy: the readable twin of csrc/ht_entropy.c, same bytes (docs/codec.md).

A layer is a list of rows, one symbol of one table for each lane. Every lane is a rANS state in [2^16, 2^32); the encoder
walks the rows backwards, the decoder forwards. A lane without a symbol has frequency 4096, which leaves its state alone.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge_runtime.entropy.baked import I64, PRECISION, U8, U16, Baked
from edge_runtime.entropy.errors import EntropyCorruptError, EntropyTrailingError, EntropyTruncatedError
from edge_runtime.entropy.tables import SCALE

MAX_LANES = 16
SYMBOLS_PER_LANE = 1024
MODE_STORED, MODE_CODED, MODE_ESCAPES = 0, 1, 2
_LOWER = 1 << 16
_RAW = 16  # frequency of each raw code behind an escape
_SLOT_MASK, _PRECISION = np.array(SCALE - 1), np.array(PRECISION)  # arrays: NumPy converts a number on every call


@dataclass(frozen=True)
class Layout:
    """Size and tables of one layer; `base` is the first table of each channel."""

    base: tuple[int, ...]
    positions: int
    variants: int = 1
    block: int = 0

    @property
    def symbols(self) -> int:
        """Values in the layer."""
        return len(self.base) * self.positions

    @property
    def lanes(self) -> int:
        """The largest power of two that is at most 16, positions, and symbols / 1024."""
        lanes = 1
        while 2 * lanes <= min(MAX_LANES, self.positions) and 2 * lanes * SYMBOLS_PER_LANE <= self.symbols:
            lanes *= 2
        return lanes

    @property
    def blocks(self) -> int:
        """Blocks of one channel; 0 without variants."""
        return -(-self.positions // self.block) if self.variants > 1 else 0


def encode(baked: Baked, layout: Layout, codes: U8) -> bytes:
    """Code (channels, positions) uint8 codes as one layer of at most `symbols` + 1 bytes."""
    index = _choose(baked, layout, codes) if layout.blocks else None
    frequency, first, escapes = _rows(baked, layout, codes, index)
    state, words = _push(frequency, first, layout.lanes)
    mode = MODE_ESCAPES if escapes else MODE_CODED
    coded = bytes([mode]) + state.astype("<u4").tobytes() + words.astype("<u2").tobytes()
    return coded if len(coded) <= layout.symbols else bytes([MODE_STORED]) + codes.tobytes()


def decode(baked: Baked, layout: Layout, data: bytes | memoryview) -> U8:
    """The (channels, positions) codes of a layer.

    Raises:
        EntropyTruncatedError: The layer ends too early.
        EntropyTrailingError: Bytes are left over.
        EntropyCorruptError: An unknown mode, an impossible state or index.
    """
    if not len(data):
        raise EntropyTruncatedError(f"Wanted a layer of {layout.symbols} symbols, found no bytes.")
    if data[0] == MODE_STORED:
        return _load_stored(layout, data)
    reader = _Reader(baked, layout, data)
    base = np.array(layout.base, np.int64)
    rows = -(-layout.positions // layout.lanes)
    if layout.blocks:
        index = reader.read_index()
        blocks = np.arange(rows) * layout.lanes // layout.block
        row_tables = (base[:, None] + index[:, blocks]).reshape(-1)
    else:
        row_tables = np.repeat(base, rows)
    widths = np.full(rows, layout.lanes)
    widths[-1] = layout.positions - (rows - 1) * layout.lanes
    codes = reader.read(row_tables, np.tile(widths, len(base)), escapes=reader.mode == MODE_ESCAPES)
    reader.check_end()
    grid = codes.reshape(len(base), rows * layout.lanes)
    return np.ascontiguousarray(grid[:, : layout.positions])


def _load_stored(layout: Layout, data: bytes | memoryview) -> U8:
    found = len(data) - 1
    if found < layout.symbols:
        raise EntropyTruncatedError(f"Wanted {layout.symbols} B of stored codes, found {found} B.")
    if found > layout.symbols:
        raise EntropyTrailingError(f"Wanted {layout.symbols} B of stored codes, found {found} B.")
    return np.frombuffer(data, np.uint8, offset=1).reshape(len(layout.base), layout.positions)


def _choose(baked: Baked, layout: Layout, codes: U8) -> U8:
    """The cheapest variant of each block, its index included: (channels, blocks)."""
    pad = layout.blocks * layout.block - layout.positions
    costs = np.empty((layout.variants, len(layout.base), layout.blocks), np.int64)
    base = np.array(layout.base, np.int64)[:, None]
    index_table = len(baked.offset) - 1
    for variant in range(layout.variants):
        table = base + variant
        cost = baked.cost[baked.offset[table] + _symbols(baked, table, codes)].astype(np.int64)
        costs[variant] = np.pad(cost, ((0, 0), (0, pad))).reshape(len(base), layout.blocks, -1).sum(2)
        costs[variant] += int(baked.cost[int(baked.offset[index_table]) + variant])
    index: U8 = costs.argmin(0).astype(np.uint8)
    return index


def _symbols(baked: Baked, table: I64, codes: U8) -> U16:
    """Symbol of each code in its table; the escape is the table's count."""
    symbol = codes - baked.low[table]  # wraps: codes below the range become large
    bounded: U16 = np.minimum(symbol, baked.count[table]).astype(np.uint16)
    return bounded


def _rows(baked: Baked, layout: Layout, codes: U8, index: U8 | None) -> tuple[I64, I64, bool]:
    """Frequency and first slot of all rows, (rows, lanes) each, and whether any code is escaped."""
    lanes = layout.lanes
    table = np.broadcast_to(np.array(layout.base, np.int64)[:, None], codes.shape)
    parts_frequency, parts_first = [], []
    if index is not None:
        index_table = np.full((1, index.size), len(baked.offset) - 1)
        entry = baked.offset[index_table].astype(np.int64) + index.reshape(1, -1)
        parts_frequency.append(_fold(baked.frequency[entry], lanes, SCALE))
        parts_first.append(_fold(baked.first[entry], lanes, 0))
        table = table + np.repeat(index, layout.block, axis=1)[:, : layout.positions]
    symbol = _symbols(baked, table, codes)
    entry = baked.offset[table].astype(np.int64) + symbol
    frequency, first = _fold(baked.frequency[entry], lanes, SCALE), _fold(baked.first[entry], lanes, 0)
    escaped = symbol == baked.count[table]
    any_escaped = bool(escaped.any())
    if any_escaped:
        mask = _fold(escaped, lanes, 0).astype(bool)
        raw = _fold(codes, lanes, 0) * _RAW
        at = np.flatnonzero(mask.any(1))
        order = np.argsort(np.concatenate([np.arange(len(frequency)) * 2, at * 2 + 1]), kind="stable")
        frequency = np.concatenate([frequency, np.where(mask[at], _RAW, SCALE)])[order]
        first = np.concatenate([first, np.where(mask[at], raw[at], 0)])[order]
    return np.concatenate([*parts_frequency, frequency]), np.concatenate([*parts_first, first]), any_escaped


def _fold(values: npt.NDArray[np.generic], lanes: int, filler: int) -> I64:
    """(channels, n) -> (channels * rows, lanes), every channel from a fresh row on."""
    rows = -(-values.shape[1] // lanes)
    folded = np.full((values.shape[0], rows * lanes), filler, np.int64)
    folded[:, : values.shape[1]] = values
    return folded.reshape(-1, lanes)


def _push(frequency: I64, first: I64, lanes: int) -> tuple[I64, I64]:
    """Run the lanes backwards over the rows: final states, and the words in reading order."""
    limit = (frequency << 20) - 1
    gain = SCALE - frequency
    before = np.empty_like(frequency)
    emits = np.empty(frequency.shape, bool)
    x = np.full(lanes, _LOWER, np.int64)
    quotient = np.empty_like(x)
    steps = (frequency[::-1], limit[::-1], gain[::-1], first[::-1], before[::-1], emits[::-1])
    for freq, most, grow, start, keep, emit in zip(*steps, strict=True):
        np.copyto(keep, x)
        np.greater(x, most, out=emit)
        np.right_shift(x, 16, out=x, where=emit)
        np.floor_divide(x, freq, out=quotient)
        np.multiply(quotient, grow, out=quotient)
        np.add(x, quotient, out=x)
        np.add(x, start, out=x)
    return x, before[emits] & 0xFFFF


class _Reader:
    """Lanes that walk forwards over the words of one layer."""

    def __init__(self, baked: Baked, layout: Layout, data: bytes | memoryview) -> None:
        self.mode = data[0]
        head = 1 + 4 * layout.lanes
        if self.mode not in (MODE_CODED, MODE_ESCAPES):
            raise EntropyCorruptError(f"Wanted a layer's mode of 0 to {MODE_ESCAPES}, found {self.mode}.")
        if len(data) < head:
            raise EntropyTruncatedError(f"Wanted {head} B of mode and lanes in a layer, found {len(data)} B.")
        self._baked, self._layout, self._bytes = baked, layout, len(data)
        self._x = np.frombuffer(data, "<u4", layout.lanes, 1).astype(np.int64)
        self._count, self._odd = divmod(len(data) - head, 2)
        self._words = iter(np.frombuffer(data, "<u2", self._count, head).tolist())
        self._escaped = False
        if self._x.min() < _LOWER:
            raise EntropyCorruptError(f"Wanted lane states of at least {_LOWER}, found {self._x.min()}.")

    def read_index(self) -> I64:
        """The variant of each block, (channels, blocks)."""
        layout = self._layout
        total = len(layout.base) * layout.blocks
        rows = -(-total // layout.lanes)
        widths = np.full(rows, layout.lanes)
        widths[-1] = total - (rows - 1) * layout.lanes
        index = self.read(np.full(rows, len(self._baked.offset) - 1), widths, escapes=False).reshape(-1)[:total]
        return index.astype(np.int64).reshape(len(layout.base), layout.blocks)

    def read(self, tables: I64, widths: I64, *, escapes: bool) -> U8:
        """One row of codes for each table number; `widths` lanes of it are used."""
        baked = self._baked
        slots = np.zeros((len(tables), self._layout.lanes), np.int64)
        try:
            raw = self._walk(tables.tolist(), widths.tolist(), slots, escapes=escapes)
        except StopIteration:
            raise EntropyTruncatedError(f"Wanted more words than the {self._count} of this layer.") from None
        found = baked.slot_symbol[tables[:, None], slots]
        used = np.arange(self._layout.lanes) < widths[:, None]
        if not escapes and bool(((found == baked.count[tables][:, None]) & used).any()):
            raise EntropyCorruptError("Wanted no escapes in this part of a layer, found one.")
        codes: U8 = found + baked.low[tables][:, None]
        for row, lanes, values in raw:
            codes[row, lanes] = values
        return codes

    def _walk(
        self, tables: list[int], widths: list[int], slots: I64, *, escapes: bool
    ) -> list[tuple[int, I64, list[int]]]:
        """Fill `slots` row by row; returns row, lanes and codes of what was escaped. StopIteration: no word is left."""
        baked, next_word = self._baked, self._words.__next__
        frequency, bias, symbol = list(baked.slot_frequency), list(baked.slot_bias), list(baked.slot_symbol)
        raw: list[tuple[int, I64, list[int]]] = []
        for row, (table, width) in enumerate(zip(tables, widths, strict=True)):
            x, slot = self._x[:width], slots[row, :width]
            np.bitwise_and(x, _SLOT_MASK, slot)
            np.right_shift(x, _PRECISION, x)
            np.multiply(x, frequency[table].take(slot), x)
            np.add(x, bias[table].take(slot), x)
            for lane, value in enumerate(x.tolist()):  # few lanes need a word: faster than masks and indices
                if value < _LOWER:
                    x[lane] = value << 16 | next_word()
            if escapes:
                lanes = np.flatnonzero(symbol[table].take(slot) == baked.count[table])
                if lanes.size:
                    raw.append((row, lanes, self._read_raw(lanes.tolist())))
        return raw

    def check_end(self) -> None:
        """All bytes used, every lane back at its start, escapes found if announced."""
        left = 2 * len(list(self._words)) + self._odd
        if left:
            raise EntropyTrailingError(f"Wanted a layer of {self._bytes - left} B, found {left} B behind it.")
        if (self._x != _LOWER).any() or (self.mode == MODE_ESCAPES) != self._escaped:
            raise EntropyCorruptError(
                f"Wanted all {len(self._x)} lanes of a layer to end where they began, found other states: the layer is "
                "damaged or coded with other tables."
            )

    def _read_raw(self, lanes: list[int]) -> list[int]:
        """The codes behind the escapes of a row."""
        self._escaped = True
        codes = []
        for lane in lanes:
            x = self._x.item(lane)
            codes.append((x & (SCALE - 1)) // _RAW)
            x = _RAW * (x >> PRECISION) + x % _RAW
            self._x[lane] = x if x >= _LOWER else x << 16 | next(self._words)
        return codes
