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
_SLOT_MASK = SCALE - 1


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
    rows, escapes = _rows(baked, layout, codes, index)
    states, words = _push(baked, rows)
    mode = MODE_ESCAPES if escapes else MODE_CODED
    coded = bytes([mode]) + np.array(states, "<u4").tobytes() + words.astype("<u2").tobytes()
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


def _rows(baked: Baked, layout: Layout, codes: U8, index: U8 | None) -> tuple[I64, bool]:
    """Step of each lane in all rows, (rows, lanes), and whether any code is escaped; steps as in `Baked.steps`."""
    lanes, raw_step = layout.lanes, len(baked.frequency)
    idle = raw_step + 256
    table = np.broadcast_to(np.array(layout.base, np.int64)[:, None], codes.shape)
    parts = []
    if index is not None:
        entry = int(baked.offset[-1]) + index.reshape(1, -1).astype(np.int64)
        parts.append(_fold(entry, lanes, idle))
        table = table + np.repeat(index, layout.block, axis=1)[:, : layout.positions]
    symbol = _symbols(baked, table, codes)
    rows = _fold(baked.offset[table].astype(np.int64) + symbol, lanes, idle)
    escaped = symbol == baked.count[table]
    any_escaped = bool(escaped.any())
    if any_escaped:
        raw = np.where(_fold(escaped, lanes, 0), _fold(codes, lanes, 0) + raw_step, idle)
        at = np.flatnonzero((raw != idle).any(1))
        rows = np.insert(rows, at + 1, raw[at], axis=0)
    return np.concatenate([*parts, rows]), any_escaped


def _fold(values: npt.NDArray[np.generic], lanes: int, filler: int) -> I64:
    """(channels, n) -> (channels * rows, lanes), every channel from a fresh row on."""
    rows = -(-values.shape[1] // lanes)
    folded = np.full((values.shape[0], rows * lanes), filler, np.int64)
    folded[:, : values.shape[1]] = values
    return folded.reshape(-1, lanes)


def _push(baked: Baked, rows: I64) -> tuple[list[int], U16]:
    """Run each lane backwards over its steps: final states, and the words in reading order.

    Lanes are independent until their words are put in order. A step is a few operations on one number, which Python's
    integers do for all lanes in less time than NumPy needs to be called for 16 of them at once.
    """
    count, lanes = rows.shape
    states, words, places = [], [], []
    step_of = baked.steps.__getitem__
    for lane, column in enumerate(rows[::-1].T.tolist()):
        x = _LOWER
        place_of_steps = range((count - 1) * lanes + lane, -1, -lanes)
        for (limit, frequency, gain, first), place in zip(map(step_of, column), place_of_steps, strict=True):
            if x >= limit:
                words.append(x & 0xFFFF)
                places.append(place)
                x >>= 16
            x += x // frequency * gain + first
        states.append(x)
    order = np.argsort(np.array(places, np.int64))
    return states, np.array(words, np.uint16)[order]


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
        self._x: list[int] = np.frombuffer(data, "<u4", layout.lanes, 1).tolist()
        self._count, self._odd = divmod(len(data) - head, 2)
        self._words = iter(np.frombuffer(data, "<u2", self._count, head).tolist())
        self._next_word = self._words.__next__
        self._escaped = False
        if min(self._x) < _LOWER:
            raise EntropyCorruptError(f"Wanted lane states of at least {_LOWER}, found {min(self._x)}.")

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
        try:
            symbols, raw = self._walk(tables.tolist(), widths.tolist(), escapes=escapes)
        except StopIteration:
            raise EntropyTruncatedError(f"Wanted more words than the {self._count} of this layer.") from None
        found = np.frombuffer(symbols, np.uint8).reshape(len(tables), self._layout.lanes)
        used = np.arange(self._layout.lanes) < widths[:, None]
        if not escapes and bool(((found == baked.count[tables][:, None]) & used).any()):
            raise EntropyCorruptError("Wanted no escapes in this part of a layer, found one.")
        codes: U8 = found + baked.low[tables][:, None]
        for place, value in raw:
            codes.flat[place] = value
        return codes

    def _walk(self, tables: list[int], widths: list[int], *, escapes: bool) -> tuple[bytes, list[tuple[int, int]]]:
        """The symbols of all rows, and place and code of what was escaped. StopIteration: no word is left."""
        state, next_word, lanes = self._x, self._next_word, len(self._x)
        walks, counts = self._baked.walks, self._baked.count.tolist()
        mask, precision, lower = _SLOT_MASK, PRECISION, _LOWER
        symbols: list[int] = []
        raw: list[tuple[int, int]] = []
        for table, width in zip(tables, widths, strict=True):
            symbol_of, spans = walks[table].symbol, walks[table].spans
            row = []
            for lane, x in enumerate(state if width == lanes else state[:width]):
                symbol = symbol_of[x & mask]
                loss, first = spans[symbol]
                following = x - (x >> precision) * loss - first
                state[lane] = following if following >= lower else following << 16 | next_word()
                row.append(symbol)
            if escapes and counts[table] in row:
                raw += [
                    (len(symbols) + lane, self._read_raw(lane)) for lane in range(width) if row[lane] == counts[table]
                ]
            symbols += row
            symbols += [0] * (lanes - width)
        return bytes(symbols), raw

    def check_end(self) -> None:
        """All bytes used, every lane back at its start, escapes found if announced."""
        left = 2 * len(list(self._words)) + self._odd
        if left:
            raise EntropyTrailingError(f"Wanted a layer of {self._bytes - left} B, found {left} B behind it.")
        if any(x != _LOWER for x in self._x) or (self.mode == MODE_ESCAPES) != self._escaped:
            raise EntropyCorruptError(
                f"Wanted all {len(self._x)} lanes of a layer to end where they began, found other states: the layer is "
                "damaged or coded with other tables."
            )

    def _read_raw(self, lane: int) -> int:
        """The code behind an escape."""
        self._escaped = True
        x = self._x[lane]
        rest = _RAW * (x >> PRECISION) + x % _RAW
        self._x[lane] = rest if rest >= _LOWER else rest << 16 | self._next_word()
        return (x & _SLOT_MASK) // _RAW
