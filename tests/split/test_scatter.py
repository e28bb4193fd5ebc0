"""Rows with addresses of their own: valid, within the bound, and as good as the bound where all rows are equal."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from split.arena import Item, Row, live_bound
from split.scatter import scatter

NO_LIMIT = 1 << 40


@st.composite
def row_lists(draw, sizes):
    found = []
    for index in range(draw(st.integers(1, 25))):
        birth = draw(st.integers(0, 20))
        found.append(Row(index % 3, index, birth, birth + draw(st.integers(0, 6)), draw(sizes)))
    return found


@st.composite
def items(draw):
    found = []
    for key in range(100, 100 + draw(st.integers(0, 3))):
        births = np.array(draw(st.lists(st.integers(-1, 15), min_size=1, max_size=4)), dtype=np.int64)
        found.append(Item(key, draw(st.integers(1, 9)), births, births + draw(st.integers(0, 12))))
    return found


def spans(found, rows, placement):
    """(start, end, birth, death) of everything."""
    for item in found:
        for index, (birth, death) in enumerate(zip(item.births.tolist(), item.deaths.tolist(), strict=True)):
            start = placement.offsets[item.key] + index * item.row_bytes
            yield start, start + item.row_bytes, birth, death
    for row in rows:
        start = placement.rows[row.tensor, row.row]
        yield start, start + row.size_bytes, row.birth, row.death


@given(found=items(), rows=row_lists(st.integers(1, 12)), alignment=st.sampled_from([4, 8]), enough=st.integers(0, 80))
def test_nothing_that_lives_together_shares_a_byte(found, rows, alignment, enough):
    placement = scatter(found, rows, alignment, enough=enough)
    placed = list(spans(found, rows, placement))
    for index, a in enumerate(placed):
        for b in placed[:index]:
            assert a[1] <= b[0] or b[1] <= a[0] or a[3] < b[2] or b[3] < a[2]
    assert live_bound(found, rows) <= placement.size_bytes
    assert max(end for _, end, _, _ in placed) <= placement.size_bytes
    assert all(offset % alignment == 0 for offset in [*placement.rows.values(), *placement.offsets.values()])


@given(rows=row_lists(st.just(8)))
def test_equal_rows_meet_the_bound(rows):
    placement = scatter([], rows, 8, enough=0)
    assert placement.size_bytes == live_bound([], rows)


@given(found=items(), rows=row_lists(st.integers(1, 12)), offset=st.integers(0, 10))
def test_fixed_buffers_stay_and_the_limit_holds(found, rows, offset):
    if not found:
        return
    fixed = {found[0].key: 4 * offset}
    placement = scatter(found, rows, 4, enough=200, fixed=fixed)
    if placement is not None:
        assert placement.offsets[found[0].key] == 4 * offset
        assert placement.size_bytes <= 200
        placed = list(spans(found, rows, placement))
        for index, a in enumerate(placed):
            for b in placed[:index]:
                assert a[1] <= b[0] or b[1] <= a[0] or a[3] < b[2] or b[3] < a[2]
