"""Placement of buffers in one arena, where two buffers may overlap as far as their rows never live together.

A buffer is a stack of rows (or ring slots), each alive from the step that first writes it to the step that last reads
it. If buffer U lies below buffer V, only pairs of rows that are alive at the same time must not touch; so there is one
least distance ``separation(U, V)`` between their offsets, from NO_CONFLICT (never alive together) to U's size (all rows
conflict). An output that is written while its input is consumed thus needs little more than the larger of the two.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

NO_CONFLICT = -(1 << 40)
EXACT_ITEMS = 6  # all orders of up to this many buffers are tried
SWAP_ROUNDS = 3  # rounds of pairwise exchange for more buffers,
SWAP_WORK = 100_000  # but at most about this many pairs of buffers looked at


@dataclass(frozen=True, eq=False)
class Item:
    """One buffer to place.

    Attributes:
        key: Caller's identifier.
        row_bytes: Bytes of one row; the buffer has ``len(births)`` rows.
        births: Step that first writes each row, int64, shape (rows,); -1: exists before.
        deaths: Step that last reads each row, int64, shape (rows,); below the birth: the row is never used.
    """

    key: int
    row_bytes: int
    births: NDArray[np.int64]
    deaths: NDArray[np.int64]

    @property
    def size_bytes(self) -> int:
        """Bytes occupied."""
        return self.row_bytes * len(self.births)


@dataclass(frozen=True)
class Placement:
    """Offset per item key, the bytes used, whether no order of the items gives less, and addresses of single rows."""

    offsets: dict[int, int]
    size_bytes: int
    exact: bool
    rows: dict[tuple[int, int], int] = field(default_factory=dict)  # (tensor, row) -> offset, see split.scatter


def align_up(value: int, alignment: int) -> int:
    """Return the smallest multiple of ``alignment`` that is not below ``value``."""
    return -(-value // alignment) * alignment


def separations(items: Sequence[Item], alignment: int) -> NDArray[np.int64]:
    """Return the least distances between offsets.

    Rows i of U and j of V that live at the same step need (i + 1) * row_bytes(U) <= distance + j * row_bytes(V).

    Returns:
        int64 of shape (items, items): element [u, v] is the least offset(v) - offset(u) with which v may lie above u,
        rounded up to ``alignment``; NO_CONFLICT if no two rows ever live together.
    """
    ends, starts = _reaches(items)
    most = np.stack([(ends[under] + starts).max(axis=1, initial=NO_CONFLICT) for under in range(len(items))])
    aligned = -(-most // alignment) * alignment
    return np.where(most < NO_CONFLICT // 2, NO_CONFLICT, aligned)


def _reaches(items: Sequence[Item]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the end of each item's highest live row, and minus the start of its lowest, at every step of a birth.

    Two rows live together exactly if they do at the birth of the later one, so that these steps suffice. NO_CONFLICT
    where no row lives. Two arrays of shape (items, steps): memory grows with rows * items, not with rows * rows.
    """
    births = np.concatenate([item.births for item in items])
    deaths = np.concatenate([item.deaths for item in items])
    starts = np.concatenate([np.arange(len(item.births)) * item.row_bytes for item in items])
    lengths = np.concatenate([np.full(len(item.births), item.row_bytes) for item in items])
    owners = np.repeat(np.arange(len(items)), [len(item.births) for item in items])
    used = births <= deaths
    births, deaths, starts, lengths, owners = (a[used] for a in (births, deaths, starts, lengths, owners))
    steps = np.unique(births)
    lives = (np.searchsorted(steps, births, "left"), np.searchsorted(steps, deaths, "right"))
    shape = (len(items), len(steps))
    return _most_over(lives, owners, starts + lengths, shape), _most_over(lives, owners, -starts, shape)


def _most_over(
    lives: tuple[NDArray[np.int64], NDArray[np.int64]],
    owners: NDArray[np.int64],
    values: NDArray[np.int64],
    shape: tuple[int, int],
) -> NDArray[np.int64]:
    """Return the largest value among each owner's intervals [first, stop) that hold a step, (owners, steps).

    An interval is two overlapping runs of 2**k steps. Runs go into the table from the longest on, and each round halves
    what the table holds: an entry stands for 2**k steps from its place on.
    """
    first, stop = lives
    table = np.full(shape, NO_CONFLICT, np.int64)
    powers = np.frexp(stop - first)[1] - 1  # floor(log2(length))
    for power in range(int(powers.max(initial=0)), -1, -1):
        chosen, half = powers == power, 1 << power >> 1
        for place in (first[chosen], stop[chosen] - (1 << power)):
            np.maximum.at(table, (owners[chosen], place), values[chosen])
        if half:
            table[:, half:] = np.maximum(table[:, half:], table[:, :-half])
    return table


@dataclass(frozen=True)
class Row:
    """One row that has an address of its own: alive in steps [birth, death]."""

    tensor: int
    row: int
    birth: int
    death: int
    size_bytes: int


def live_bound(items: Iterable[Item], rows: Iterable[Row] = ()) -> int:
    """Return the most bytes that live at one step: no placement can be smaller."""
    lives = [(row.birth, row.death, row.size_bytes) for row in rows]
    for item in items:
        lives += [
            (birth, death, item.row_bytes)
            for birth, death in zip(item.births.tolist(), item.deaths.tolist(), strict=True)
            if birth <= death
        ]
    changes: dict[int, int] = {}
    for birth, death, size in lives:
        changes[birth] = changes.get(birth, 0) + size
        changes[death + 1] = changes.get(death + 1, 0) - size
    most = live = 0
    for step in sorted(changes):
        live += changes[step]
        most = max(most, live)
    return most


def fullest_step(items: Sequence[Item]) -> tuple[int, list[tuple[int, int]]]:
    """Return the step at which most bytes live, and (key, live bytes) of every item alive then, largest first."""
    steps = sorted({birth for item in items for birth in item.births.tolist()})

    def alive(step: int) -> list[tuple[int, int]]:
        sizes = [(i.key, int(((i.births <= step) & (step <= i.deaths)).sum()) * i.row_bytes) for i in items]
        return sorted((pair for pair in sizes if pair[1]), key=lambda pair: -pair[1])

    best = max(steps, key=lambda step: sum(size for _, size in alive(step)))
    return best, alive(best)


def place(items: Sequence[Item], alignment: int = 4, *, enough: int = 0) -> Placement:
    """Place items from address 0 so that the highest end is low.

    Every layout orders its items from low to high, and stacking them in that order, each as low as it goes, is never
    worse; so trying all orders is exact. With more than EXACT_ITEMS items good orders are tried, then improved by
    exchanging pairs; the result is exact if it meets the bound of bytes that live at one step.

    Args:
        items: Buffers with different keys.
        alignment: Offsets are multiples of it.
        enough: Stop as soon as the size is not above this.
    """
    if not items:
        return Placement({}, 0, True)
    search = _Search(items, alignment, {}, None)
    search.enough = max(search.bound, enough)
    if len(items) <= EXACT_ITEMS:
        for order in permutations(range(len(items))):
            search.try_stack(order)
    else:
        search.improve()
    return search.result(len(items) <= EXACT_ITEMS)


def place_around(
    items: Sequence[Item], fixed: Mapping[int, int], limit: int, *, alignment: int = 4, high: Iterable[int] = ()
) -> Placement | None:
    """Place items around some that already have addresses, below ``limit``.

    Args:
        items: All buffers.
        fixed: Offset per key of the items that must stay where they are.
        limit: Bytes of the arena.
        alignment: Offsets are multiples of it.
        high: Keys of items that should lie as high as possible.

    Returns:
        A placement that fits, or None if none was found.
    """
    search = _Search(items, alignment, fixed, limit)
    search.high = {index for index, item in enumerate(items) if item.key in set(high)}
    search.improve()
    found = search.result(False)
    return found if found.size_bytes <= limit else None


class _Search:
    """Keeps the best layout while orders are tried."""

    def __init__(self, items: Sequence[Item], alignment: int, fixed: Mapping[int, int], limit: int | None) -> None:
        self.items = items
        self.sizes = [item.size_bytes for item in items]
        self.gaps: list[list[int]] = separations(items, alignment).tolist()
        self.alignment = alignment
        self.fixed = {i: fixed[item.key] for i, item in enumerate(items) if item.key in fixed}
        self.limit = limit
        self.high: set[int] = set()
        self.bound = live_bound(items) if limit is None else limit
        self.enough = self.bound
        self.best: tuple[int, list[int]] | None = None

    def result(self, exhausted: bool) -> Placement:
        assert self.best is not None
        size, offsets = self.best
        keys = [item.key for item in self.items]
        return Placement(dict(zip(keys, offsets, strict=True)), size, exhausted or size <= self.bound)

    def done(self) -> bool:
        return self.best is not None and self.best[0] <= self.enough

    def _keep(self, offsets: list[int]) -> int:
        size = max(offset + length for offset, length in zip(offsets, self.sizes, strict=True))
        if self.best is None or size < self.best[0]:
            self.best = (size, offsets)
        return size

    def try_stack(self, order: Sequence[int]) -> None:
        """Stack the items in this order from low to high."""
        if self.done():
            return
        offsets = [0] * len(order)
        for position, item in enumerate(order):
            offsets[item] = max([0, *(offsets[below] + self.gaps[below][item] for below in order[:position])])
        self._keep(offsets)

    def first_fit(self, order: Sequence[int]) -> int:
        """Give each item in this order the lowest (or highest) free offset; return the size."""
        placed = dict(self.fixed)
        for item in order:
            if item not in placed:
                placed[item] = self._free_offset(item, placed)
        return self._keep([placed[i] for i in range(len(self.items))])

    def _free_offset(self, item: int, placed: Mapping[int, int]) -> int:
        blocked = []
        for other, offset in placed.items():
            low, high = offset - self.gaps[item][other], offset + self.gaps[other][item]
            if self.gaps[other][item] != NO_CONFLICT and low < high:
                blocked.append((low, high))  # offsets strictly between are not allowed
        if item in self.high and self.limit is not None:
            top = (self.limit - self.sizes[item]) // self.alignment * self.alignment
            for low, high in sorted(blocked, key=lambda pair: -pair[1]):
                if low < top < high:
                    top = low // self.alignment * self.alignment
            if top >= 0:
                return top
        lowest = 0
        for low, high in sorted(blocked):
            if low < lowest < high:
                lowest = high
        return align_up(lowest, self.alignment)

    def improve(self) -> None:
        """Try good orders, then exchange pairs as long as that helps."""
        orders = _good_orders(self.items)
        scored = sorted((self.first_fit(order), order) for order in orders)
        size, order = scored[0]
        left = SWAP_WORK // (len(order) * len(order))
        for _ in range(SWAP_ROUNDS):
            before = size
            for i in range(len(order)):
                for j in range(i + 1, len(order)):
                    left -= 1
                    if self.done() or left < 0:
                        return
                    swapped = list(order)
                    swapped[i], swapped[j] = swapped[j], swapped[i]
                    other = self.first_fit(swapped)
                    if other < size:
                        size, order = other, tuple(swapped)
            if size == before:
                return


def _good_orders(items: Sequence[Item]) -> list[tuple[int, ...]]:
    """Orders by size, by first step, by last step and by length of life, both ways."""
    facts = [
        (-item.size_bytes, int(item.births.min()), int(item.deaths.max()), int(item.births.min() - item.deaths.max()))
        for item in items
    ]
    index = range(len(items))
    orders = [tuple(i for _, i in sorted((facts[i][column], i) for i in index)) for column in range(4)]
    return orders + [tuple(reversed(order)) for order in orders]
