"""Placement of single rows: a ring's slots hold rows only part of the time, so other rows may use them meanwhile.

A chain of k x k layers needs k rows of a ring only while its own layer runs, and k - stride of them otherwise. Giving
every row its own address (one table entry per row) lets all rings share the rest. Buffers that must stay contiguous are
placed first; then rows are taken in the order of their birth and put into a gap that is free for their whole life.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, permutations

import numpy as np

from split.arena import NO_CONFLICT, Item, Placement, Row, align_up, separations

TRIALS = 24  # orders of the contiguous buffers that are tried
WORK = 20_000  # rows placed per search, about; bounds the number of layouts for large blocks,
LAYOUTS = 4  # but not below this


Busy = tuple[int, int, int]  # start, end, death


def scatter(
    items: Sequence[Item], rows: Sequence[Row], alignment: int, *, enough: int, fixed: Mapping[int, int] | None = None
) -> Placement | None:
    """Place contiguous items and single rows.

    Args:
        items: Buffers that stay contiguous.
        rows: Rows of all other buffers.
        alignment: Offsets are multiples of it.
        enough: Stop as soon as the size is not above this.
        fixed: Offsets of items that must stay where they are; then only layouts within ``enough`` count (not None).

    Returns:
        The best placement found, with an address for every row; None if ``fixed`` is given and allows none.
    """
    ordered = sorted(rows, key=lambda r: (r.birth, -r.death))
    best: Placement | None = None
    most = enough + 1 if fixed is not None else 1 << 62
    for offsets in islice(_whole_layouts(items, alignment, enough, fixed or {}), max(LAYOUTS, WORK // len(rows))):
        for tight in (False, True):
            found = _fill(items, offsets, ordered, (alignment, tight, most))
            if found is not None:
                best, most = found, found.size_bytes
                if most <= enough:
                    return best
    return best


def _whole_layouts(
    items: Sequence[Item], alignment: int, limit: int, fixed: Mapping[int, int]
) -> Iterator[dict[int, int]]:
    """Offsets of the contiguous items: stacked from 0 in several orders, and hung from ``limit``."""
    if not items:
        yield {}
        return
    gaps: list[list[int]] = separations(items, alignment).tolist()
    for order in islice(permutations(range(len(items))), TRIALS):
        for hung in range(len(items) + 1):
            offsets = _stack_and_hang(items, gaps, (order, hung), (limit, alignment, fixed))
            if offsets is not None:
                yield offsets


def _stack_and_hang(
    items: Sequence[Item],
    gaps: list[list[int]],
    arrangement: tuple[tuple[int, ...], int],
    bounds: tuple[int, int, Mapping[int, int]],
) -> dict[int, int] | None:
    """The last ``hung`` items of the order hang from the top, the others stand on 0; None if they do not fit so."""
    order, hung = arrangement
    limit, alignment, fixed = bounds
    offsets: dict[int, int] = {}
    standing, hanging = order[: len(order) - hung], order[len(order) - hung :]
    for position, item in enumerate(standing):
        lowest = max([0, *(offsets[below] + gaps[below][item] for below in standing[:position])])
        offsets[item] = fixed.get(items[item].key, lowest)
    for position in range(len(hanging) - 1, -1, -1):
        item = hanging[position]
        above = [offsets[other] - gaps[item][other] for other in hanging[position + 1 :]]
        highest = min([limit - items[item].size_bytes, *above]) // alignment * alignment
        offsets[item] = fixed.get(items[item].key, highest)
    for below_position, below in enumerate(order):
        for over in order[below_position + 1 :]:
            gap = gaps[below][over]
            if gap != NO_CONFLICT and offsets[over] - offsets[below] < gap:
                return None
    return None if min(offsets.values()) < 0 else {items[i].key: offset for i, offset in offsets.items()}


def _fill(
    items: Sequence[Item], offsets: dict[int, int], rows: Sequence[Row], how: tuple[int, bool, int]
) -> Placement | None:
    """Put every row into a gap, the lowest or (tight) the smallest that will do; None if not below ``most``."""
    alignment, tight, most = how
    size = max([0, *(offsets[item.key] + item.size_bytes for item in items)])
    active: list[Busy] = []  # rows placed so far that may still live, ascending
    places: dict[tuple[int, int], int] = {}
    for row in rows:
        active = [busy for busy in active if busy[2] >= row.birth]
        taken = list(active)
        for item in items:
            taken += _busy(item, offsets[item.key], row)
        taken.sort()
        offset = _gap(taken, row.size_bytes, alignment, tight)
        size = max(size, offset + row.size_bytes)
        if size >= most:
            return None
        insort(active, (offset, offset + row.size_bytes, row.death))
        places[row.tensor, row.row] = offset
    return Placement(dict(offsets), size, False, places)


def _busy(item: Item, offset: int, row: Row) -> list[Busy]:
    """Parts of a contiguous item that are alive at any time in a row's life."""
    alive = np.flatnonzero((item.births <= row.death) & (item.deaths >= row.birth) & (item.births <= item.deaths))
    if not alive.size:
        return []
    breaks = np.flatnonzero(np.diff(alive) > 1)
    starts = [int(alive[0]), *alive[breaks + 1].tolist()]
    ends = [*alive[breaks].tolist(), int(alive[-1])]
    size = item.row_bytes
    return [(offset + a * size, offset + (b + 1) * size, row.death) for a, b in zip(starts, ends, strict=True)]


def _gap(taken: Sequence[Busy], size: int, alignment: int, tight: bool) -> int:
    """Offset of a free gap of at least ``size`` bytes; ``taken`` is ascending by start."""
    free = 0
    best: tuple[int, int] | None = None
    for start, end, _ in taken:
        if start - free >= size:
            if not tight:
                return free
            if best is None or (start - free, free) < best:
                best = (start - free, free)
        if end > free:
            free = align_up(end, alignment)
    return free if best is None else best[1]
