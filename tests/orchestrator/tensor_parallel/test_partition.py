import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.tensor_parallel.config import ModelConfig
from orchestrator.tensor_parallel.errors import PartitionError
from orchestrator.tensor_parallel.loads import choose_resident, rank_loads
from orchestrator.tensor_parallel.partition import FFN_UNIT, Share, cut, held_shares, largest_remainder

weights = st.lists(st.floats(0.1, 10), min_size=1, max_size=6)


def model(kv_heads=3, group=3, ffn=1536):
    return ModelConfig(
        family="llama", layers=4, hidden=64, ffn=ffn, heads=kv_heads * group, kv_heads=kv_heads, head_dim=16,
        vocabulary=100, context=256, norm_eps=1e-5, rope_base=1e4,
    )  # fmt: skip


@given(total=st.integers(0, 500), parts=weights)
def test_largest_remainder_gives_every_unit_once_and_each_within_one_of_its_due(total, parts):
    units = largest_remainder(total, parts)
    assert sum(units) == total
    assert all(abs(unit - total * part / sum(parts)) < 1 for unit, part in zip(units, parts, strict=True))


@given(parts=weights, kv_heads=st.integers(1, 8), ffn=st.integers(1, 400))
def test_shares_cover_all_heads_and_columns_once_for_any_number_of_ranks(parts, kv_heads, ffn):
    shares = cut(model(kv_heads, ffn=ffn), parts)
    assert [share.kv_start for share in shares[1:]] == [share.kv_stop for share in shares[:-1]]
    assert [share.ffn_start for share in shares[1:]] == [share.ffn_stop for share in shares[:-1]]
    assert (shares[0].kv_start, shares[-1].kv_stop) == (0, kv_heads)
    assert (shares[0].ffn_start, shares[-1].ffn_stop) == (0, ffn)
    assert all(share.ffn_start % FFN_UNIT == 0 or share.columns == 0 for share in shares)


def test_columns_balance_what_heads_cannot():
    config = model(kv_heads=3)
    shares = cut(config, [1, 1, 1, 1])
    assert [share.kv_heads for share in shares] == [1, 1, 1, 0]
    assert shares[3].columns > shares[0].columns


@given(parts=st.lists(st.floats(0.5, 4), min_size=2, max_size=5), data=st.data())
def test_with_spares_any_lost_nodes_leave_the_whole_model(parts, data):
    config = model()
    spares = data.draw(st.integers(1, len(parts) - 1))
    gone = data.draw(st.sets(st.integers(1, len(parts) - 1), max_size=spares))
    held = held_shares(config, parts, spares=spares)
    left = [rank for rank in range(len(parts)) if rank not in gone]
    for rank, share in zip(left, cut(config, [parts[r] for r in left]), strict=True):
        assert held[rank].covers(share)


@pytest.mark.parametrize("parts", [[], [0.0], [1.0, -1.0], [float("nan")]])
def test_capabilities_without_a_meaning_are_refused(parts):
    with pytest.raises(PartitionError, match="capabilities"):
        largest_remainder(3, parts)


@given(budget=st.integers(0, 2_000_000))
def test_resident_blocks_and_buffers_stay_within_any_budget_that_holds_the_window(budget):
    config = model()
    share = Share(kv_start=0, kv_stop=3, ffn_start=0, ffn_stop=1536)
    cycle = rank_loads(config, share, share, master=True, paper=False).cycle
    window = 2 * max(load.nbytes for load in cycle)
    kept, buffers = choose_resident(cycle, budget, window=2)
    resident = sum(cycle[index].nbytes for index in kept)
    assert resident + buffers <= max(budget, window)
    assert len(kept) == len(cycle) or buffers == window
