"""Placement: layouts are valid, meet the brute-force optimum, and the bound is a bound."""

import tracemalloc
from itertools import product

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from split.arena import NO_CONFLICT, Item, live_bound, place, place_around, separations


@st.composite
def items(draw, most=4, rows=4):
    found = []
    for key in range(draw(st.integers(1, most))):
        count = draw(st.integers(1, rows))
        births = np.array(draw(st.lists(st.integers(-1, 8), min_size=count, max_size=count)), dtype=np.int64)
        lengths = np.array(draw(st.lists(st.integers(-1, 8), min_size=count, max_size=count)), dtype=np.int64)
        found.append(Item(key, draw(st.integers(1, 6)), births, births + lengths))
    return found


def rows_of(item, offset):
    """(start, end, birth, death) of every row that is ever used."""
    for index, (birth, death) in enumerate(zip(item.births.tolist(), item.deaths.tolist(), strict=True)):
        if birth <= death:
            start = offset + index * item.row_bytes
            yield start, start + item.row_bytes, birth, death


def collide(first, second):
    return first[0] < second[1] and second[0] < first[1] and first[2] <= second[3] and second[2] <= first[3]


def is_valid(found, offsets):
    for a in found:
        for b in found:
            if a.key < b.key and any(
                collide(x, y) for x, y in product(rows_of(a, offsets[a.key]), rows_of(b, offsets[b.key]))
            ):
                return False
    return True


@given(found=items(most=8), alignment=st.sampled_from([1, 4]))
def test_no_two_rows_that_live_together_share_a_byte(found, alignment):
    placement = place(found, alignment)
    assert is_valid(found, placement.offsets)
    assert all(offset % alignment == 0 and offset >= 0 for offset in placement.offsets.values())
    assert placement.size_bytes == max(placement.offsets[i.key] + i.size_bytes for i in found)
    assert placement.size_bytes >= live_bound(found)


@settings(max_examples=40, deadline=None)
@given(found=items(most=3, rows=2))
def test_three_buffers_are_placed_as_well_as_by_trying_every_ordered_layout(found):
    """Brute force over all offsets in which every pair keeps its separation."""
    gaps = separations(found, 1)
    top = sum(item.size_bytes for item in found)
    best = top
    for offsets in product(range(top), repeat=len(found)):
        size = max(o + i.size_bytes for o, i in zip(offsets, found, strict=True))
        if size >= best:
            continue
        pairs = [(u, v) for u in range(len(found)) for v in range(u)]
        apart = all(
            gaps[u, v] == NO_CONFLICT or offsets[v] - offsets[u] >= gaps[u, v] or offsets[u] - offsets[v] >= gaps[v, u]
            for u, v in pairs
        )
        best = size if apart else best
    assert place(found, 1).size_bytes == best


@given(found=items(most=2))
def test_a_separation_is_the_least_distance_that_is_safe_from_there_on(found):
    if len(found) < 2:
        return
    under, over = found
    gap = int(separations(found, 1)[0, 1])
    reach = under.size_bytes + over.size_bytes
    if gap == NO_CONFLICT:
        assert all(is_valid(found, {0: 0, 1: distance}) for distance in range(-reach, reach))
    else:
        assert all(is_valid(found, {0: 0, 1: distance}) for distance in range(gap, reach + 1))
        assert not is_valid(found, {0: 0, 1: gap - 1})


@given(found=items(most=5, rows=9), alignment=st.sampled_from([1, 4]))
def test_separations_are_the_largest_over_all_pairs_of_rows_that_live_together(found, alignment):
    gaps = separations(found, alignment)
    for u, under in enumerate(found):
        for v, over in enumerate(found):
            needed = [
                end - start
                for _, end, birth, death in rows_of(under, 0)
                for start, _, other_birth, other_death in rows_of(over, 0)
                if birth <= other_death and other_birth <= death
            ]
            assert gaps[u, v] == (-(-max(needed) // alignment) * alignment if needed else NO_CONFLICT)


def test_memory_grows_with_the_rows_not_with_their_square():
    """4000 rows that stream through two buffers: tables of all pairs of rows would take 1 GB."""
    step = np.arange(4000)
    tracemalloc.start()
    try:
        placement = place([Item(0, 8, step, step + 40), Item(1, 8, step + 1, step + 90)])
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert placement.size_bytes == (4000 + 40) * 8
    assert most < 8_000_000


@given(found=items(most=5), data=st.data())
def test_placing_around_fixed_buffers_leaves_them_and_collides_with_none(found, data):
    alone = place(found, 1)
    key = data.draw(st.sampled_from(sorted(alone.offsets)))
    fixed = {key: alone.offsets[key]}
    limit = alone.size_bytes + data.draw(st.integers(0, 20))
    high = data.draw(st.sets(st.sampled_from(sorted(alone.offsets))))
    around = place_around(found, fixed, limit, alignment=1, high=high)
    if around is not None:
        assert around.offsets[key] == fixed[key]
        assert around.size_bytes <= limit
        assert is_valid(found, around.offsets)


def test_an_output_written_while_its_input_dies_needs_one_more_row():
    height = 10
    source = Item(0, 8, np.full(height, -1), np.arange(height))
    target = Item(1, 8, np.arange(height), np.full(height, 1 << 30))
    placement = place([source, target])
    assert placement.size_bytes == (height + 1) * 8 == live_bound([source, target])
    assert placement.exact
