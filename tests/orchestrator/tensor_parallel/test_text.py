"""Text of a shard set: prompts whole, whatever a tokenizer.json, a template or a client brings."""

from tokenizers import Tokenizer

from orchestrator.tensor_parallel.checkpoint import open_checkpoint
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
