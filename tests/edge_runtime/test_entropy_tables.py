"""Tables: exact normalisation, canonical bytes, and refusal of everything else."""

import contextlib
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.entropy import CountOptions, EntropyError, TableError, count_tables, join_tables, parse_tables
from edge_runtime.entropy.baked import COST_UNIT, PRECISION, bake, symbol_cost
from edge_runtime.entropy.counting import build_table, code_lengths, normalise
from edge_runtime.entropy.tables import SCALE, LayerPlan, Table, TableSet, TensorPlan


def latents(seed, shape=(1, 4, 6, 6), dtype=np.int8, spread=2.0):
    values = np.random.default_rng(seed).laplace(0, spread, shape).round()
    return np.clip(values, -128, 127).astype(np.int8).view(dtype)


def cost(counts, frequencies):
    return -sum(c * math.log2(f / SCALE) for c, f in zip(counts, frequencies, strict=True))


@given(st.lists(st.integers(0, 100000), min_size=1, max_size=256))
@settings(max_examples=40, deadline=None)
def test_frequencies_sum_to_the_scale_and_no_move_of_one_slot_is_cheaper(counts):
    frequencies = normalise(counts)
    assert sum(frequencies) == SCALE
    assert min(frequencies) >= 1
    if any(counts):
        gain = max(c * math.log2((f + 1) / f) for c, f in zip(counts, frequencies, strict=True))
        givers = [(c, f) for c, f in zip(counts, frequencies, strict=True) if f > 1]
        loss = min((c * math.log2(f / (f - 1)) for c, f in givers), default=math.inf)
        assert gain <= loss + 1e-9 * max(1.0, gain)


def test_normalisation_equals_an_exhaustive_search_on_three_symbols():
    counts = (1, 70, 4000)
    best = min(cost(counts, (a, b, SCALE - a - b)) for a, b in itertools.product(range(1, 200), range(1, 200)))
    assert cost(counts, normalise(counts)) == pytest.approx(best, rel=1e-12)


def test_a_far_outlier_is_escaped_instead_of_widening_the_range():
    histogram = np.zeros(256, np.int64)
    histogram[120:137] = 500
    histogram[3] = 1
    table = build_table(histogram)
    assert table.low > 3
    assert code_lengths(table)[3] == symbol_cost(table.frequencies[-1]) + 8 * COST_UNIT


def test_all_256_codes_in_use_cost_their_eight_bits():
    assert code_lengths(build_table(np.full(256, 10, np.int64))).mean() <= 8.05 * COST_UNIT


def test_costs_are_far_enough_from_a_tie_to_round_alike_everywhere():
    exact = [COST_UNIT * (PRECISION - math.log2(f)) for f in range(1, SCALE + 1)]
    assert min(abs(value % 1 - 0.5) for value in exact) > 1e-7


def test_parsing_gives_back_the_set_and_the_id_is_the_hash_of_its_bytes():
    tables = count_tables([latents(1), latents(2)], CountOptions(layers=(1, 4), variants=2, block=32, fill=-3))
    assert parse_tables(tables.data) == tables
    assert parse_tables(tables.data).id == tables.id
    assert len(tables.id) == 4
    assert tables.tensors[0].fill == 125


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_changed_set_is_refused_or_is_another_valid_set(data):
    good = bytearray(count_tables([latents(3)], CountOptions(layers=(2, 4))).data)
    at = data.draw(st.integers(0, len(good) - 1))
    good[at] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.integers(0, len(good)))
    for changed in (bytes(good), bytes(good[:cut])):
        with contextlib.suppress(TableError):
            assert parse_tables(changed).data == changed


@given(st.binary(max_size=200))
def test_any_bytes_are_a_set_or_a_named_error(junk):
    for data in (junk, b"HTTS\x01" + junk):
        with contextlib.suppress(TableError):
            assert parse_tables(data).data == data


def test_trailing_bytes_are_refused():
    with pytest.raises(TableError, match="canonical"):
        parse_tables(count_tables([latents(1)]).data + b"\0")


@pytest.mark.parametrize(
    "build",
    [
        lambda t: TableSet((TensorPlan((1,)),), (LayerPlan(0, 0, 1),), (t,)),
        lambda t: TableSet((TensorPlan((0, 0)),), (LayerPlan(0, 0, 1),), (t,)),
        lambda t: TableSet((TensorPlan((0, 0)),), (LayerPlan(0, 1, 2), LayerPlan(0, 0, 1)), (t,)),
        lambda t: TableSet((TensorPlan((0,)),), (LayerPlan(0, 0, 1), LayerPlan(1, 0, 1)), (t,)),
        lambda t: TableSet((TensorPlan((0,), 2),), (LayerPlan(0, 0, 1),), (t,)),
        lambda t: TableSet((TensorPlan((0,)),), (LayerPlan(0, 0, 1),), (t,), 1, 32),
        lambda t: TableSet((TensorPlan((0,)),), (LayerPlan(0, 0, 1),), (t, t, t), 2, 33),
        lambda t: TableSet((), (), (t,)),
        lambda t: Table(0, (SCALE,)),
        lambda t: Table(0, (SCALE, 0)),
        lambda t: Table(250, (1,) * 10 + (SCALE - 10,)),
        lambda t: count_tables([]),
        lambda t: count_tables([latents(1)], CountOptions(variants=2)),
    ],
)
def test_impossible_plans_are_named(build):
    with pytest.raises(TableError, match="Wanted"):
        build(Table(0, (1, SCALE - 1)))


def test_counting_refuses_floats_by_name():
    with pytest.raises(EntropyError, match="int8 or uint8"):
        count_tables([np.zeros((1, 4, 2), np.float32)])


def test_more_channels_than_tables_share_tables():
    tables = count_tables([latents(5, (1, 200, 3, 3))])
    assert len(tables.tables) <= 64
    assert tables.tensors[0].channels == 200


def test_sets_of_two_tensors_join():
    joined = join_tables([count_tables([latents(1)]), count_tables([latents(2, (1, 5, 2, 2))])])
    assert [plan.channels for plan in joined.tensors] == [4, 5]
    assert [layer.tensor for layer in joined.layers] == [0, 1]
    assert parse_tables(joined.data) == joined


def test_reciprocals_divide_exactly_for_every_frequency():
    # x < frequency * 2^20 is what the encoder's renormalisation guarantees.
    for f in range(1, SCALE):
        reciprocal = ((1 << 44) + f - 1) // f
        for x in ((f << 20) - 1, (f << 20) - f, (f << 20) - f - 1, f << 4, 65536):
            if x < f << 20:
                assert x * reciprocal >> 44 == x // f
                assert x * reciprocal < 1 << 64
    assert bake(count_tables([latents(1)])).reciprocal.dtype == np.uint64
