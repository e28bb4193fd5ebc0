"""A table set in the arrays that both implementations read: entries, reciprocals, costs and decoder slots."""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from edge_runtime.entropy.tables import SCALE, Table, TableSet

PRECISION = 12
RAW_BITS = 8  # an escaped code travels as it is
COST_UNIT = 256  # costs are in 1/256 bit
RECIPROCAL_SHIFT = 44

U8 = npt.NDArray[np.uint8]
U16 = npt.NDArray[np.uint16]
U32 = npt.NDArray[np.uint32]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Walk:
    """One table as the NumPy decoder's loop reads it: plain Python values, which it fetches faster than array items."""

    symbol: bytes  # of each of the 4096 slots
    spans: tuple[tuple[int, int], ...]  # 4096 - frequency, and first slot, of each symbol


@dataclass(frozen=True)
class Baked:
    """Arrays over all tables; entry `offset[t] + symbol`, the escape at symbol `count[t]`."""

    frequency: U32
    first: U32  # first slot of each entry
    reciprocal: U64  # ceil(2^44 / frequency)
    cost: U16  # 1/256 bit
    slot: U32  # (tables, 4096): frequency | (slot - first) << 12 | symbol << 24
    walks: tuple["Walk", ...]  # of each table
    steps: tuple[
        tuple[int, int, int, int], ...
    ]  # of each entry, then of the 256 raw codes, then the one that does nothing
    offset: U16
    low: U8
    count: U8

    @property
    def entry(self) -> U32:
        """Frequency | first << 16, as the C coder reads it."""
        packed: U32 = self.frequency | (self.first << np.uint32(16))
        return packed


@lru_cache(maxsize=16)
def bake(tables: TableSet) -> Baked:
    """The arrays of a set: 20 KiB and a little for each table, kept for the sets used last."""
    frequency = np.concatenate([np.array(table.frequencies, np.uint32) for table in tables.tables])
    sizes = np.array([table.count + 1 for table in tables.tables])
    first = np.concatenate([_first(table) for table in tables.tables])
    cost = np.array([symbol_cost(int(value)) for value in frequency], np.uint16)
    cost[np.cumsum(sizes) - 1] += RAW_BITS * COST_UNIT
    wide = frequency.astype(np.uint64)
    slot = np.stack([_slots(table) for table in tables.tables])
    return Baked(
        frequency=frequency,
        first=first,
        reciprocal=(np.uint64(1 << RECIPROCAL_SHIFT) + wide - np.uint64(1)) // wide,
        cost=cost,
        slot=slot,
        steps=_steps(frequency.tolist(), first.tolist()),
        walks=tuple(_walk(table, row) for table, row in zip(tables.tables, slot, strict=True)),
        offset=(np.cumsum(sizes) - sizes).astype(np.uint16),
        low=np.array([table.low for table in tables.tables], np.uint8),
        count=np.array([table.count for table in tables.tables], np.uint8),
    )


def symbol_cost(frequency: int) -> int:
    """Length of a symbol's code in 1/256 bit, rounded; never near a tie, so that every machine rounds alike."""
    return round(COST_UNIT * (PRECISION - math.log2(frequency)))


def _first(table: Table) -> U32:
    frequencies = np.array(table.frequencies, np.uint32)
    return (np.cumsum(frequencies) - frequencies).astype(np.uint32)


def _walk(table: Table, slots: U32) -> Walk:
    spans = zip((SCALE - value for value in table.frequencies), _first(table).tolist(), strict=True)
    return Walk((slots >> 24).astype(np.uint8).tobytes(), tuple(spans))


def _steps(frequencies: list[int], firsts: list[int]) -> tuple[tuple[int, int, int, int], ...]:
    """Limit of the state, frequency, 4096 - frequency and first slot, as the NumPy encoder's loop reads them."""
    raw = SCALE >> RAW_BITS
    pairs = [*zip(frequencies, firsts, strict=True), *((raw, code * raw) for code in range(1 << RAW_BITS)), (SCALE, 0)]
    return tuple((frequency << 20, frequency, SCALE - frequency, first) for frequency, first in pairs)


def _slots(table: Table) -> U32:
    frequencies = np.array(table.frequencies, np.uint32)
    symbol = np.repeat(np.arange(len(frequencies), dtype=np.uint32), frequencies)
    bias = np.arange(SCALE, dtype=np.uint32) - _first(table)[symbol]
    packed: U32 = frequencies[symbol] | (bias << np.uint32(12)) | (symbol << np.uint32(24))
    return packed
