"""The function computed is transformers' own, whatever the family, the cut, the collective or the window."""

import copy

import pytest
import torch

from orchestrator.tensor_parallel import loads
from orchestrator.tensor_parallel.engine import Piece
from tests.orchestrator.tensor_parallel.conftest import make_tiny

PROMPT = [int(t) for t in torch.randint(0, 256, (40,), generator=torch.Generator().manual_seed(1))]


def reference(model, tokens):
    with torch.inference_mode():
        return model(torch.tensor([tokens])).logits[0]


def stepwise(engine, tokens, sizes=(17, 1, 1, 5, 16)):
    """Logits of all tokens, run in pieces."""
    rows, start = [], 0
    for size in sizes:
        piece = tuple(tokens[start : start + size])
        rows.append(engine.step([Piece(1, start, piece, len(piece))])[0])
        start += size
    return torch.cat(rows)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma"])
def test_every_family_gives_the_logits_of_transformers_over_three_uneven_ranks(family, cluster, tmp_path):
    tiny = make_tiny(family, tmp_path / "model")
    running = cluster(tiny.folder, ranks=3, capabilities=[1.0, 2.5, 0.5])
    found = stepwise(running.engine, PROMPT)
    torch.testing.assert_close(found, reference(tiny.model, PROMPT), atol=2e-4, rtol=1e-4)


def test_llama3_rope_scaling_is_that_of_transformers(cluster, tmp_path):
    rope = {
        "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }  # fmt: skip
    tiny = make_tiny("llama", tmp_path / "model", rope_parameters=rope)
    running = cluster(tiny.folder, ranks=1)
    torch.testing.assert_close(stepwise(running.engine, PROMPT), reference(tiny.model, PROMPT), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("ranks", [1, 2, 5])
@pytest.mark.parametrize("collective", ["mesh", "star", "paper"])
def test_the_number_of_ranks_and_the_collective_change_nothing(ranks, collective, cluster, tiny):
    running = cluster(tiny.folder, ranks=ranks, collective=collective, paper=collective == "paper")
    found = stepwise(running.engine, PROMPT)
    torch.testing.assert_close(found, reference(tiny.model, PROMPT), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("weights", ["float32", "int4"])
def test_blocks_that_are_loaded_in_pieces_give_what_whole_ones_do(weights, cluster, tmp_path, monkeypatch):
    sizes = {"hidden_size": 64, "intermediate_size": 224, "num_attention_heads": 4, "num_key_value_heads": 2}
    tiny = make_tiny("qwen2", tmp_path / "model", head_dim=32, **sizes)
    whole = cluster(tiny.folder, ranks=2, capabilities=[1.0, 2.0], weights=weights).engine
    before = stepwise(whole, PROMPT)
    block = whole.runner.task.loads.cycle[1].nbytes
    monkeypatch.setattr(loads, "PIECE_BYTES", block // 2)
    pieces = cluster(tiny.folder, ranks=2, capabilities=[1.0, 2.0], weights=weights).engine
    assert pieces.runner.task.loads.ffn_pieces > 1
    assert pieces.runner.task.loads.cycle[2].nbytes < block  # behind attention in two loads
    torch.testing.assert_close(stepwise(pieces, PROMPT), before, atol=2e-4, rtol=1e-4)


def test_two_runs_of_the_same_cut_are_equal_bit_for_bit_in_mesh_and_star(cluster, tiny):
    mesh = stepwise(cluster(tiny.folder, ranks=3, collective="mesh").engine, PROMPT)
    star = stepwise(cluster(tiny.folder, ranks=3, collective="star").engine, PROMPT)
    assert torch.equal(mesh, star)


def test_sequences_that_share_a_step_do_not_see_each_other(cluster, tiny):
    engine = cluster(tiny.folder, ranks=2).engine
    first, second = PROMPT[:12], PROMPT[20:31]
    engine.step([Piece(0, 0, tuple(first[:10]), 0), Piece(3, 0, tuple(second[:7]), 0)])
    found = engine.step([Piece(3, 7, tuple(second[7:]), 1), Piece(0, 10, tuple(first[10:]), 2)])
    torch.testing.assert_close(found[0][0], reference(tiny.model, second)[-1], atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(found[1], reference(tiny.model, first)[-2:], atol=2e-4, rtol=1e-4)


def test_weights_in_bfloat16_are_widened_exactly(cluster, tiny, tmp_path):
    from transformers import AutoModelForCausalLM

    copy.deepcopy(tiny.model).to(torch.bfloat16).save_pretrained(tmp_path / "half")
    half = AutoModelForCausalLM.from_pretrained(tmp_path / "half", dtype=torch.float32)
    found = stepwise(cluster(tmp_path / "half", ranks=2).engine, PROMPT)
    torch.testing.assert_close(found, reference(half, PROMPT), atol=2e-4, rtol=1e-4)
