"""Configurations that disagree with their weights, and weights that the blocks do not have: refused by name, never cut."""

import contextlib
import json

import numpy as np
import pytest

from orchestrator.tensor_parallel.checkpoint import open_checkpoint
from orchestrator.tensor_parallel.errors import CheckpointError, TokenizerError
from tests.orchestrator.tensor_parallel.conftest import make_tiny
from tests.orchestrator.tensor_parallel.test_checkpoint import write_gguf


def configured(tiny, folder, values):
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_bytes((tiny.folder / "model.safetensors").read_bytes())
    config = json.loads((tiny.folder / "config.json").read_text()) | values
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("intermediate_size", 128, "mlp"),
        ("intermediate_size", 192, "mlp"),
        ("num_attention_heads", 3, "self_attn"),
        ("num_key_value_heads", 1, "self_attn"),
        ("vocab_size", 256, "embed_tokens|lm_head"),
        ("hidden_size", 24, "model|lm_head"),
        ("head_dim", 4, "self_attn"),
    ],
)
def test_a_config_of_other_sizes_than_its_weights_is_refused(key, value, named, tiny, tmp_path):
    with pytest.raises(CheckpointError, match=rf"Wanted \S*({named})\S* of shape .* found .* fetch both again"):
        open_checkpoint(configured(tiny, tmp_path, {"head_dim": 8, key: value}))


def test_layers_beyond_the_configs_are_passed_over_as_in_transformers_and_said(tiny, tmp_path, caplog):
    assert open_checkpoint(tiny.folder).config.layers == 3
    assert caplog.text == ""
    assert open_checkpoint(configured(tiny, tmp_path, {"num_hidden_layers": 1})).config.layers == 1
    assert f"{tmp_path} holds layers 1 to 2 beside the 1 that config.json names" in caplog.text


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma"])
def test_a_larger_ffn_than_a_ggufs_metadata_says_is_refused(family, tmp_path):
    tiny = make_tiny(family, tmp_path / "model")
    tiny.model.config.intermediate_size = 128
    write_gguf(tmp_path / "tiny.gguf", tiny, arch=family)
    with pytest.raises(CheckpointError, match=r"Wanted blk.0.ffn_\w+.weight of shape .*128.* found .*160"):
        open_checkpoint(tmp_path / "tiny.gguf")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("blk.0.attn_q.bias", (48,)),
        ("blk.2.attn_output.bias", (48,)),
        ("blk.1.attn_q_norm.weight", (8,)),
        ("blk.1.ffn_gate_exps.weight", (2, 48)),
        ("blk.3.attn_norm.weight", (48,)),  # of three layers
        ("output.bias", (320,)),
        ("rope_freqs.weight", (4,)),
        ("rope_factors_long.weight", (4,)),
    ],
)
def test_tensors_of_a_gguf_that_the_blocks_do_not_have_are_refused_by_name(name, shape, tiny, tmp_path):
    write_gguf(tmp_path / "tiny.gguf", tiny, more={name: np.ones(shape, np.float32)})
    with pytest.raises(CheckpointError, match="Rotary factors" if name.startswith("rope") else f"found {name}"):
        open_checkpoint(tmp_path / "tiny.gguf")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rope.dimension_count", 4),
        ("attention.value_length", 16),
        ("rope.scaling.factor", 4.0),
        ("rope.scale_linear", 2.0),
        ("expert_count", 4),
        ("attention.clamp_kqv", 1.0),
        ("logit_scale", 2.0),
    ],
)
def test_metadata_that_would_change_results_is_refused_by_name(key, value, tiny, tmp_path):
    write_gguf(tmp_path / "tiny.gguf", tiny, values={f"llama.{key}": value})
    with pytest.raises(CheckpointError, match=f"llama.{key}.* found|found llama.{key}"):
        open_checkpoint(tmp_path / "tiny.gguf")


def test_what_changes_nothing_in_a_gguf_is_no_error(tiny, tmp_path):
    values = {"llama.rope.dimension_count": 8, "llama.rope.scaling.factor": 1.0, "llama.expert_count": 0}
    write_gguf(tmp_path / "tiny.gguf", tiny, values=values, more={"blk.0.attn_rot_embd.weight": np.ones(4, np.float32)})
    assert open_checkpoint(tmp_path / "tiny.gguf").config.head_dim == 8


ODD = [
    None,
    0,
    -1,
    "x",
    [],
    {},
    True,
    1e400,
    float("nan"),
    3.7,
    ["a"],
    10**30,
    {"a": 1},
    [[1]],
    {"rope_type": "llama3"},
]
KEYS = [
    "architectures", "sliding_window", "rope_scaling", "rope_parameters", "rope_theta", "head_dim", "hidden_size",
    "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size", "vocab_size", "rms_norm_eps",
    "max_position_embeddings", "hidden_act", "hidden_activation", "mlp_bias", "attention_bias", "tie_word_embeddings",
]  # fmt: skip


@pytest.mark.parametrize("key", KEYS)
def test_odd_values_in_a_config_are_named_errors_or_change_nothing(key, tiny, tmp_path):
    for value in ODD:
        folder = configured(tiny, tmp_path, {key: value})
        with contextlib.suppress(CheckpointError):
            open_checkpoint(folder)


@pytest.mark.parametrize("text", ["{", "[1]", "", "[" * 100_000, "\xff"])
def test_a_config_that_is_no_json_object_is_a_named_error(text, tiny, tmp_path):
    folder = configured(tiny, tmp_path, {})
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"Wanted (a )?JSON"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("tokenizer_config.json", b'{"eos_token": {"x": 1}}'),
        ("tokenizer_config.json", b'{"eos_token": 5}'),
        ("generation_config.json", b'{"eos_token_id": "a"}'),
        ("generation_config.json", b'{"eos_token_id": [null]}'),
        ("chat_template.jinja", b"\xff"),
        ("tokenizer.json", b"\xff"),
    ],
)
def test_damaged_files_of_a_tokenizer_are_named_errors(name, data, tiny, tmp_path):
    folder = configured(tiny, tmp_path, {})
    (folder / "tokenizer.json").write_bytes((tiny.folder / "tokenizer.json").read_bytes())
    (folder / name).write_bytes(data)
    with pytest.raises(TokenizerError, match=rf"Wanted .* found .*{name}"):
        open_checkpoint(folder).tokenizer_files()
