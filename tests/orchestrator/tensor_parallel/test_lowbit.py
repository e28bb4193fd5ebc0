"""Packed weights: what rounding may cost, and that every kernel, cut and window computes the same."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.tensor_parallel import lowbit, native
from orchestrator.tensor_parallel.checkpoint import open_checkpoint
from orchestrator.tensor_parallel.config import ModelConfig
from orchestrator.tensor_parallel.errors import CheckpointError, MemoryLimitError, ShardError
from orchestrator.tensor_parallel.layout import file_bytes, rank_blocks
from orchestrator.tensor_parallel.partition import held_shares
from tests.orchestrator.tensor_parallel.conftest import make_tiny
from tests.orchestrator.tensor_parallel.test_equality import PROMPT, stepwise

SIZES = {"hidden_size": 64, "head_dim": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
STEPS = {"int8": 254, "int4": 14}  # of a row's range


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A model of whole tiles."""
    return make_tiny("llama", tmp_path_factory.mktemp("tiles"), **SIZES)


def matrix(rows: int, columns: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


@settings(max_examples=20)
@given(
    rows=st.sampled_from([16, 48]), columns=st.sampled_from([32, 96]), encoding=st.sampled_from(["int8", "int4"]),
    by_column=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_packing_keeps_size_and_place_and_is_off_by_a_step_at_most(rows, columns, encoding, by_column, seed):
    values = matrix(rows, columns, seed)
    packed = lowbit.pack(values, encoding, by_column=by_column)
    found = lowbit.unpack(packed, (rows, columns), encoding, by_column=by_column)
    assert packed.nbytes == lowbit.encoded_bytes(encoding, values.size)
    span = 2 * np.abs(values).max()
    assert np.abs(found - values).max() <= 1.2 * span / STEPS[encoding]
    again = lowbit.pack(found, encoding, by_column=by_column)
    np.testing.assert_allclose(
        lowbit.unpack(again, (rows, columns), encoding, by_column=by_column), found, atol=span / 500
    )


@pytest.mark.parametrize("encoding", ["int8", "int4"])
@pytest.mark.parametrize("by_column", [False, True])
def test_a_share_of_packed_bytes_is_the_packed_share(encoding, by_column):
    values = matrix(64, 96, 1)
    packed = lowbit.pack(values, encoding, by_column=by_column)
    part = values[:, 32:96] if by_column else values[16:64]
    skip = lowbit.encoded_bytes(encoding, values.size - part.size)
    np.testing.assert_array_equal(packed[skip:], lowbit.pack(np.ascontiguousarray(part), encoding, by_column=by_column))


@pytest.mark.parametrize("encoding", ["int8", "int4"])
@pytest.mark.parametrize("by_column", [False, True])
@pytest.mark.parametrize("count", [1, 7])
def test_c_and_torch_agree_within_the_rounding_of_activations(encoding, by_column, count):
    library = native.library()
    assert library is not None, "the project's set-up installs a compiler"
    packed = torch.from_numpy(lowbit.pack(matrix(64, 96, 2), encoding, by_column=by_column))
    weights = lowbit.Packed(packed, 64, 96, encoding, by_column)
    x = torch.from_numpy(matrix(count, 96, 3))
    exact, fast = lowbit.by_torch(weights, x), lowbit.by_c(library, weights, x)
    bound = (x.abs().max() / 254) * torch.from_numpy(lowbit.unpack(packed.numpy(), (64, 96), encoding, by_column=by_column)).abs().sum(1)  # fmt: skip
    assert ((fast - exact).abs() <= 1.001 * bound + 1e-5).all()
    alone = torch.cat([lowbit.by_c(library, weights, x[i : i + 1]) for i in range(count)])
    assert torch.equal(alone, fast), "a token's result depends on how many share the call"


@pytest.mark.parametrize("encoding", ["int8", "int4"])
def test_ranks_and_windows_change_packed_results_by_rounding_only(encoding, cluster, whole, monkeypatch):
    monkeypatch.setattr(native, "library", lambda: None)  # torch does not round activations
    alone = stepwise(cluster(whole.folder, ranks=1, weights=encoding).engine, PROMPT)
    three = cluster(whole.folder, ranks=3, weights=encoding, capabilities=[1.0, 2.5, 0.5])
    torch.testing.assert_close(stepwise(three.engine, PROMPT), alone, atol=2e-4, rtol=1e-4)
    with pytest.raises(MemoryLimitError) as refused:
        cluster(whole.folder, ranks=1, weights=encoding, limit="1MB")
    least = str(refused.value).split("--memory-limit ")[1].split("MB")[0]
    small = cluster(whole.folder, ranks=1, weights=encoding, limit=f"{least}MB")
    torch.testing.assert_close(stepwise(small.engine, PROMPT), alone, atol=1e-5, rtol=1e-5)


def test_packed_logits_stay_near_those_of_float32(cluster, whole):
    exact = stepwise(cluster(whole.folder, ranks=2).engine, PROMPT)
    found = stepwise(cluster(whole.folder, ranks=2, weights="int8").engine, PROMPT)
    assert torch.nn.functional.cosine_similarity(found, exact).min() > 0.99


def test_sizes_that_are_no_whole_tiles_and_the_papers_mode_are_refused(cluster, tiny, whole):
    with pytest.raises(CheckpointError, match="found hidden 48, head_dim 8"):
        cluster(tiny.folder, ranks=1, weights="int4")
    with pytest.raises(ShardError, match="Wanted float32 weights"):
        cluster(whole.folder, ranks=1, weights="int4", collective="paper", paper=True)


def test_a_4_bit_set_is_a_fifth_of_float32(whole):
    config: ModelConfig = open_checkpoint(whole.folder).config
    sizes = {}
    for weights in ("float32", "int4"):
        encoded = config.encoded(weights)
        share = held_shares(encoded, [1.0], spares=0)[0]
        sizes[weights] = file_bytes(
            [block for block in rank_blocks(encoded, share, master=True) if block.kind != "embedding"]
        )
    assert sizes["int4"] < 0.3 * sizes["float32"]
