import json

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from orchestrator.tensor_parallel.checkpoint import open_checkpoint
from orchestrator.tensor_parallel.errors import CheckpointError, PromptError, ShardError, TokenizerError
from orchestrator.tensor_parallel.gguf_tokenizer import tokenizer_from_metadata
from orchestrator.tensor_parallel.nodes import Node
from orchestrator.tensor_parallel.shard_set import read_index, read_set, verify_file
from orchestrator.tensor_parallel.sharding import shard_checkpoint
from orchestrator.tensor_parallel.text import Text, TextStream
from tests.orchestrator.tensor_parallel.conftest import make_tiny
from tests.orchestrator.tensor_parallel.test_equality import PROMPT, reference, stepwise

NODES = (Node(name="a"), Node(name="b", address="127.0.0.1:1"))
_GGUF = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
}  # fmt: skip


def write_gguf(path, tiny, *, kind=None, pre="gpt-2", arch="llama", raw=None, more=None, values=None):
    """The tiny model as llama.cpp's converter writes it: llama's q and k with interleaved rotary rows, Gemma's norms with their 1."""
    config = tiny.model.config
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if getattr(config, "head_dim", None):
        writer.add_key_length(config.head_dim)
    alphabet = json.loads((tiny.folder / "tokenizer.json").read_text())["model"]["vocab"]
    tokens = [*alphabet, "<end>", "ab"]
    tokens += [f"<unused{i}>" for i in range(config.vocab_size - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 256 + [3, 1] + [3] * (len(tokens) - 258))
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(256)
    for key, value in (values or {}).items():
        writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
    for name, values in {**gguf_tensors(tiny.model, arch), **(more or {})}.items():
        if raw is not None and name in raw:
            writer.add_tensor(name, raw[name][1], raw_dtype=raw[name][0])
        elif kind is not None and values.ndim == 2 and values.shape[1] % 32 == 0:
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_tensors(model, arch):
    """Names and values as llama.cpp's converter writes them."""
    config, found = model.config, {}
    outside = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    heads = {"self_attn.q_proj": config.num_attention_heads, "self_attn.k_proj": config.num_key_value_heads}
    for full, tensor in model.state_dict().items():
        name, _, kind = full.rpartition(".")
        values = tensor.numpy()
        if name == "lm_head" and config.tie_word_embeddings:
            continue
        if name not in outside:
            _, _, layer, name = name.split(".", 3)
        target = outside.get(name) or f"blk.{layer}.{_GGUF[name]}"
        if arch == "llama" and name in heads:
            shape = values.shape
            values = (
                values.reshape(heads[name], 2, shape[0] // heads[name] // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)
            )
        if arch == "gemma" and target.endswith("norm"):
            values = values + 1
        found[f"{target}.{kind}"] = np.ascontiguousarray(values)
    return found


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma"])
def test_a_gguf_of_every_family_gives_the_logits_of_transformers(family, cluster, tmp_path):
    tiny = make_tiny(family, tmp_path / "model")
    write_gguf(tmp_path / "tiny.gguf", tiny, arch=family)
    running = cluster(tmp_path / "tiny.gguf", ranks=2)
    torch.testing.assert_close(stepwise(running.engine, PROMPT), reference(tiny.model, PROMPT), atol=2e-4, rtol=1e-4)


def k_quants(shape, kind, random):
    """Random blocks whose scales are of a size that weights have, and the values that they stand for."""
    block, nbytes = gguf.GGML_QUANT_SIZES[kind]
    data = random.integers(0, 256, (shape[0], shape[1] // block, nbytes), dtype=np.uint8)
    scale = np.frombuffer(np.float16(2e-4).tobytes(), np.uint8)
    places = (208,) if kind is gguf.GGMLQuantizationType.Q6_K else (0, 2)
    for place in places:
        data[:, :, place : place + 2] = scale
    data = data.reshape(shape[0], -1)
    return data, gguf.quants.dequantize(data, kind)


@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_k_quants_run_as_their_dequantised_weights(weights, cluster, tmp_path):
    tiny = make_tiny(
        "qwen2", tmp_path / "model", hidden_size=256, intermediate_size=256, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    random, raw, kinds = np.random.default_rng(3), {}, gguf.GGMLQuantizationType
    state = tiny.model.state_dict()
    for name, tensor in state.items():
        if tensor.ndim == 2:
            kind = kinds.Q6_K if name.endswith(("down_proj.weight", "embed_tokens.weight")) else kinds.Q4_K
            data, values = k_quants(tensor.shape, kind, random)
            state[name] = torch.from_numpy(values)
            part = name.removeprefix("model.").removesuffix(".weight").removeprefix("layers.0.")
            raw[
                {"embed_tokens": "token_embd.weight", "lm_head": "output.weight"}.get(part)
                or f"blk.0.{_GGUF[part]}.weight"
            ] = kind, data
    tiny.model.load_state_dict(state)
    write_gguf(tmp_path / "tiny.gguf", tiny, arch="qwen2", raw=raw)
    assert len(raw) == 9
    found = stepwise(cluster(tmp_path / "tiny.gguf", ranks=2, weights=weights).engine, PROMPT)
    wanted = reference(tiny.model, PROMPT)
    scale = float(wanted.abs().max())
    torch.testing.assert_close(found, wanted, atol=scale * (1e-4 if weights == "float32" else 0.05), rtol=1e-4)


def test_gguf_and_safetensors_of_one_model_give_equal_slices(tiny, tmp_path):
    write_gguf(tmp_path / "tiny.gguf", tiny)
    ours, theirs = open_checkpoint(tmp_path / "tiny.gguf"), open_checkpoint(tiny.folder)
    assert ours.config == theirs.config
    for name, layer, stop in (("q", 0, 24), ("k", 2, 16), ("v", 1, 16), ("up", 0, 96), ("embedding", -1, 300)):
        np.testing.assert_array_equal(ours.rows(name, layer, 8, stop), theirs.rows(name, layer, 8, stop))
    for name in ("o", "down"):
        np.testing.assert_array_equal(ours.columns(name, 1, 16, 48), theirs.columns(name, 1, 16, 48))


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "F16"])
def test_quantised_ggufs_run_as_their_dequantised_weights(kind, tmp_path):
    tiny = make_tiny("llama", tmp_path / "model", hidden_size=64, num_attention_heads=4, num_key_value_heads=2)
    kind = gguf.GGMLQuantizationType[kind]
    write_gguf(tmp_path / "tiny.gguf", tiny, kind=kind)
    weights = tiny.model.state_dict()["model.layers.1.mlp.down_proj.weight"].numpy()
    wanted = gguf.quants.dequantize(gguf.quants.quantize(weights, kind), kind)
    found = open_checkpoint(tmp_path / "tiny.gguf").columns("down", 1, 32, 96)
    np.testing.assert_array_equal(found, wanted[:, 32:96].T)


def test_a_gguf_brings_its_tokenizer(tiny, tmp_path):
    write_gguf(tmp_path / "tiny.gguf", tiny)
    shard_checkpoint(open_checkpoint(tmp_path / "tiny.gguf"), NODES, tmp_path / "out")
    text = Text(tmp_path / "out")
    assert text.decode(text.encode("héllo ab 12")) == "héllo ab 12"
    assert text.encode("ab") == [257]
    assert text.end_ids == {256}


SENTENCEPIECE = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *"\u2581abc", "ab", "\u2581a", "bc"],
    "tokenizer.ggml.scores": [0.0] * 259 + [-9.0] * 4 + [-2.0, -1.0, -3.0],
    "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * 7,
    "tokenizer.ggml.bos_token_id": 1,
}  # fmt: skip


@pytest.mark.parametrize("prefix", [True, False])
def test_a_sentencepiece_vocabulary_joins_by_score_and_writes_unknown_characters_as_bytes(prefix):
    metadata = SENTENCEPIECE | {"tokenizer.ggml.add_space_prefix": prefix}
    tokenizer = Tokenizer.from_str(tokenizer_from_metadata(metadata, "model.gguf")["tokenizer.json"])
    found = tokenizer.encode("abc é")
    beginning = ["\u2581a", "bc"] if prefix else ["ab", "c"]  # the highest score first
    assert found.tokens == ["<s>", *beginning, "\u2581", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(found.ids) == "abc é"
    assert 2 in tokenizer.encode("a</s>b").ids


def test_a_tokenizer_beside_a_gguf_goes_before_its_metadata(tiny, tmp_path):
    write_gguf(tmp_path / "tiny.gguf", tiny, pre="tekken")
    (tmp_path / "tokenizer.json").write_bytes((tiny.folder / "tokenizer.json").read_bytes())
    files = open_checkpoint(tmp_path / "tiny.gguf").tokenizer_files()
    assert files["tokenizer.json"] == (tiny.folder / "tokenizer.json").read_text()


@pytest.mark.parametrize(("add", "first"), [(True, ["<end>"]), (False, [])])
def test_a_gguf_says_whether_texts_begin_with_a_token(add, first):
    metadata = {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a", "b", "<end>"], "tokenizer.ggml.merges": [],
        "tokenizer.ggml.token_type": [1, 1, 3], "tokenizer.ggml.bos_token_id": 2, "tokenizer.ggml.add_bos_token": add,
    }  # fmt: skip
    tokenizer = Tokenizer.from_str(tokenizer_from_metadata(metadata, "model.gguf")["tokenizer.json"])
    assert tokenizer.encode("ab").tokens == [*first, "a", "b"]
    assert tokenizer.encode("ab", add_special_tokens=False).tokens == ["a", "b"]


def test_of_several_chat_templates_the_default_is_taken(tiny, tmp_path):
    (tmp_path / "config.json").write_bytes((tiny.folder / "config.json").read_bytes())
    for name in ("model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_bytes((tiny.folder / name).read_bytes())
    several = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": several}))
    assert open_checkpoint(tmp_path).tokenizer_files()["chat_template.jinja"] == "D"


def test_chat_templates_may_ask_for_fields_that_are_not_there(tiny, tmp_path):
    shard_checkpoint(open_checkpoint(tiny.folder), NODES, tmp_path)
    (tmp_path / "chat_template.jinja").write_text(
        "{% for m in messages %}{% if m.role == 'assistant' and not m.tool_calls %}A{% elif documents %}D{% else %}U{% endif %}"
        "{{ m.content }}{% endfor %}{{ strftime_now('%Y')[:2] }}"
    )
    text = Text(tmp_path)
    found = text.chat([{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}])
    assert text.decode(found) == "UxAy20"


def test_a_chat_template_that_refuses_messages_or_reaches_out_is_named(tiny, tmp_path):
    shard_checkpoint(open_checkpoint(tiny.folder), NODES, tmp_path)
    for template, message in (
        ("{{ raise_exception('no system role') }}", "no system role"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
    ):
        (tmp_path / "chat_template.jinja").write_text(template)
        with pytest.raises(PromptError, match=message):
            Text(tmp_path).chat([{"role": "user", "content": "x"}])


@pytest.mark.parametrize(("change", "message"), [({"arch": "mamba"}, "found architecture mamba")])
def test_other_architectures_in_a_gguf_are_refused_by_name(change, message, tiny, tmp_path):
    write_gguf(tmp_path / "tiny.gguf", tiny, **change)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path / "tiny.gguf")


def test_an_unknown_pre_tokenizer_is_refused_by_name(tiny, tmp_path):
    write_gguf(tmp_path / "tiny.gguf", tiny, pre="tekken")
    with pytest.raises(TokenizerError, match="found tekken"):
        open_checkpoint(tmp_path / "tiny.gguf").tokenizer_files()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"architectures": ["MixtralForCausalLM"]}, "MixtralForCausalLM"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "found yarn"),
        ({"hidden_act": "relu"}, "found relu"),
        ({"num_hidden_layers": None}, "complete config.json"),
        ({"num_key_value_heads": 4}, "whole groups"),
        ({"mlp_bias": True}, "mlp_bias"),
    ],
)
def test_what_would_change_results_is_refused_by_name(values, message, tiny, tmp_path):
    config = json.loads((tiny.folder / "config.json").read_text()) | values
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path)


def broken(tiny, folder, change):
    tensors = load_file(tiny.folder / "model.safetensors")
    change(tensors)
    (folder / "config.json").write_bytes((tiny.folder / "config.json").read_bytes())
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.layers.1.mlp.up_proj.weight"), "model.layers.1.mlp.up_proj.weight"),
        (lambda t: t.update({"model.norm.weight": torch.full((48,), torch.nan)}), "NaN"),
        (
            lambda t: t.update({"model.layers.0.mlp.gate_proj.weight": torch.zeros(8, 48)}),
            r"Wanted .*gate_proj.weight of shape \(160, 48\) .* found \(8, 48\)",
        ),
        (lambda t: t.update({"model.norm.weight": torch.zeros(48, dtype=torch.int32)}), "int32"),
    ],
)
def test_missing_short_and_strange_tensors_are_named(change, message, tiny, tmp_path):
    with pytest.raises(CheckpointError, match=message):
        shard_checkpoint(open_checkpoint(broken(tiny, tmp_path, change)), NODES, tmp_path / "out")


@pytest.mark.parametrize("name", ["model.safetensors", "tiny.gguf"])
def test_truncated_files_are_named_errors(name, tiny, tmp_path):
    write_gguf(tmp_path / "tiny.gguf", tiny)
    (tmp_path / "config.json").write_bytes((tiny.folder / "config.json").read_bytes())
    source = (tiny.folder if name.startswith("model") else tmp_path) / name
    data = source.read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match=r"Wanted a (safetensors|GGUF) file"):
        open_checkpoint(tmp_path if name.startswith("model") else tmp_path / name)


def test_an_interrupted_run_goes_on_and_gives_the_same_bytes(tiny, tmp_path):
    whole = shard_checkpoint(open_checkpoint(tiny.folder), NODES, tmp_path / "whole")

    class Stop(Exception):
        pass

    def stop(done, total):
        if done > total * 0.7:
            raise Stop

    with pytest.raises(Stop):
        shard_checkpoint(open_checkpoint(tiny.folder), NODES, tmp_path / "two", progress=stop)
    assert not (tmp_path / "two" / "set.json").exists()
    source = open_checkpoint(tiny.folder)
    read = []
    rows = source.rows
    source.rows = lambda name, layer, *span: read.append((name, layer)) or rows(name, layer, *span)
    again = shard_checkpoint(source, NODES, tmp_path / "two")
    assert again == whole
    assert ("embedding", -1) not in read  # rank 0 was complete
    for rank in (0, 1):
        assert (tmp_path / "two" / f"rank{rank}.bin").read_bytes() == (
            tmp_path / "whole" / f"rank{rank}.bin"
        ).read_bytes()


def test_a_changed_byte_is_found_and_its_block_named_and_so_is_a_short_or_missing_file(tiny, tmp_path):
    made = shard_checkpoint(open_checkpoint(tiny.folder), NODES, tmp_path)
    index = read_index(tmp_path, 1, made)
    entry = index.blocks[3]
    with (tmp_path / "rank1.bin").open("r+b") as stream:
        stream.seek(entry.offset + 5)
        stream.write(b"\xff\xfe")
    with pytest.raises(ShardError, match=entry.name):
        verify_file(tmp_path / "rank1.bin", index)
    with (tmp_path / "rank1.bin").open("r+b") as stream:
        stream.truncate(entry.offset)
    with pytest.raises(ShardError, match=rf"found {entry.offset} at .*Delete it"):
        verify_file(tmp_path / "rank1.bin", index)
    (tmp_path / "rank1.bin").unlink()
    with pytest.raises(ShardError, match="Shard the checkpoint again"):
        verify_file(tmp_path / "rank1.bin", index)


def test_a_folder_with_another_set_is_not_written_over(tiny, tmp_path):
    shard_checkpoint(open_checkpoint(tiny.folder), NODES, tmp_path)
    with pytest.raises(ShardError, match="another set"):
        shard_checkpoint(open_checkpoint(tiny.folder), (Node(name="alone"),), tmp_path)
    assert len(read_set(tmp_path).nodes) == 2


def test_an_index_of_another_set_is_refused(tiny, tmp_path):
    made = shard_checkpoint(open_checkpoint(tiny.folder), NODES, tmp_path / "two")
    shard_checkpoint(open_checkpoint(tiny.folder), (*NODES, Node(name="c", address="h:1")), tmp_path / "three")
    (tmp_path / "two" / "rank1.json").write_bytes((tmp_path / "three" / "rank1.json").read_bytes())
    with pytest.raises(ShardError, match="found another"):
        read_index(tmp_path / "two", 1, made)


def test_a_set_without_a_tokenizer_is_named(tiny, tmp_path):
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        Text(tmp_path)


@pytest.mark.parametrize(("stops", "wanted"), [((), "añ b stop c"), (("stop",), "añ b "), (("zzz", "b s"), "añ ")])
def test_streamed_text_keeps_characters_whole_and_nothing_behind_a_stop(stops, wanted, tiny, tmp_path):
    shard_checkpoint(open_checkpoint(tiny.folder), NODES, tmp_path)
    text = Text(tmp_path)
    stream = TextStream(text, stops)
    pieces = []
    for token in text.encode("añ b stop c"):
        pieces.append(stream.add(token))
        if stream.stopped:
            break
    pieces.append(stream.finish())
    assert "".join(pieces) == wanted
    assert not any("\ufffd" in piece for piece in pieces)
