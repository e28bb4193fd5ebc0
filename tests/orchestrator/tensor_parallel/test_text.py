"""Text of a shard set: prompts whole, whatever a tokenizer.json, a template or a client brings."""

import pytest
from tokenizers import Tokenizer

from orchestrator.tensor_parallel.checkpoint import open_checkpoint
from orchestrator.tensor_parallel.errors import ContextLengthError, PromptError, TokenizerError
from orchestrator.tensor_parallel.nodes import Node
from orchestrator.tensor_parallel.sharding import shard_checkpoint
from orchestrator.tensor_parallel.text import Text


def sharded(tiny, folder):
    shard_checkpoint(open_checkpoint(tiny.folder), (Node(name="a"),), folder)
    return folder


def test_truncation_and_padding_that_a_training_script_stored_are_not_applied(tiny, tmp_path):
    plain = Text(sharded(tiny, tmp_path))
    stored = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    stored.enable_truncation(8)
    stored.enable_padding(length=8, pad_id=3)
    stored.save(str(tmp_path / "tokenizer.json"))
    text = Text(tmp_path)
    for prompt in ("ab", "a prompt of more than eight tokens"):
        assert text.encode(prompt) == plain.encode(prompt)


def counting(text):
    """The tokenizer, which notes the characters that it is given."""
    inner, seen = text._tokenizer, []

    class Counting:
        def encode(self, piece, **options):
            seen.append(len(piece))
            return inner.encode(piece, **options)

    text._tokenizer = Counting()
    return seen


@pytest.mark.parametrize("given", [None, 64])
@pytest.mark.parametrize("prompt", ["words that never end ", "\N{GRINNING FACE}", "x"])
def test_a_text_far_beyond_the_context_is_refused_before_it_is_tokenised_whole(prompt, given, tiny, tmp_path):
    text = Text(sharded(tiny, tmp_path), context=given)
    seen = counting(text)
    for ask in (text.encode, lambda content: text.chat([{"role": "user", "content": content}])):
        with pytest.raises(ContextLengthError, match=f"1 to {(given or 256) - 1} tokens, found far more"):
            ask(prompt * (4 << 20))
    assert sum(seen) < 1 << 16


def test_long_texts_that_fit_are_tokenised_whole(tiny, tmp_path):
    text = Text(sharded(tiny, tmp_path), context=40_000)
    prompt = "abc " * 9_000
    assert text.encode(prompt) == text._tokenizer.encode(prompt).ids
    assert len(text.encode("x" * 50_000)) == 50_000  # a little too long: the exact limit is the generator's


@pytest.mark.parametrize(
    "template",
    [
        "{{ 1 / 0 }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "{{ [1][3] + 1 }}",
        "{{ messages[0].content.format() }}",
        "{{ messages[0].content.nothing() }}",
        "{% for i in range(10 ** 12) %}x{% endfor %}",
        "{% endfor %}",
    ],
)
def test_a_chat_template_that_fails_is_a_named_error(template, tiny, tmp_path):
    (sharded(tiny, tmp_path) / "chat_template.jinja").write_text(template)
    with pytest.raises(PromptError, match="chat template takes, found: "):
        Text(tmp_path).chat([{"role": "user", "content": "{0}{1}"}])


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("chat_template.jinja", b"\xff"),
        ("tokenizer.json", b"{}"),
        ("special_tokens.json", b"[]"),
        ("special_tokens.json", b'{"end_ids": [[1]]}'),
    ],
)
def test_a_damaged_tokenizer_of_a_set_is_a_named_error(name, data, tiny, tmp_path):
    (sharded(tiny, tmp_path) / name).write_bytes(data)
    with pytest.raises(TokenizerError, match=r"Wanted a tokenizer, found .* Shard the checkpoint again"):
        Text(tmp_path)
