"""Tiny random models with transformers as the reference, workers on threads, and a byte-level tokenizer."""

import contextlib
import json
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from orchestrator.tensor_parallel.checkpoint import open_checkpoint
from orchestrator.tensor_parallel.engine import Engine, EngineOptions
from orchestrator.tensor_parallel.nodes import Node
from orchestrator.tensor_parallel.protocol import RunSettings
from orchestrator.tensor_parallel.secure import write_key_file
from orchestrator.tensor_parallel.sharding import shard_checkpoint
from orchestrator.tensor_parallel.worker import Worker, WorkerOptions

SIZES = {
    "vocab_size": 320, "hidden_size": 48, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 3, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
}  # fmt: skip
TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}<assistant>"


@dataclass
class Tiny:
    """A checkpoint on disk and the same model in transformers."""

    folder: Path
    model: Any


def write_tokenizer(folder: Path) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<end>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>", "chat_template": TEMPLATE}))


def make_tiny(family: str, folder: Path, **changes: Any) -> Tiny:
    from transformers import AutoModelForCausalLM, GemmaConfig, LlamaConfig, Qwen2Config, Qwen3Config

    kinds = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config, "gemma": GemmaConfig}
    torch.manual_seed(5)
    extra = {"head_dim": 8} if family in ("qwen3", "gemma") else {}
    config = kinds[family](**{**SIZES, **extra, "eos_token_id": 256, **changes})
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if "norm" in name or "bias" in name:
                weights.add_(torch.randn_like(weights) * 0.1)
            else:
                weights.mul_(6)  # logits that differ enough for argmax to mean something
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return Tiny(folder, model)


def wait_until(happened, timeout_s: float = 20.0) -> None:
    end = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Tiny:
    return make_tiny("llama", tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(scope="session")
def key_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("key") / "cluster.pem"
    write_key_file(path)
    return path


@dataclass
class Running:
    """A sharded model with its workers on threads."""

    engine: Engine
    workers: list[Worker]
    shards: Path


@contextlib.contextmanager
def running_cluster(
    checkpoint: Path,
    work: Path,
    key: Path,
    *,
    ranks: int,
    spares: int = 1,
    capabilities=None,
    limit=None,
    weights="float32",
    **settings,
):
    """Cut for `ranks` nodes, start ranks - 1 workers and an engine."""
    workers, threads, nodes = [], [], []
    capabilities = capabilities or [1.0] * ranks
    for rank in range(ranks):
        address = None
        if rank:
            worker = Worker(WorkerOptions("127.0.0.1", 0, key, work / f"store{rank}"))
            threads.append(threading.Thread(target=worker.run, daemon=True))
            threads[-1].start()
            workers.append(worker)
            address = f"127.0.0.1:{worker.port}"
        nodes.append(Node(name=f"n{rank}", address=address, capability=capabilities[rank], memory_limit=limit))
    shard_checkpoint(open_checkpoint(checkpoint), nodes, work / "shards", spares=spares, weights=weights)
    options = RunSettings(**{"context": 128, "slots": 4, "step_tokens": 32, **settings})
    engine = None
    try:
        engine = Engine(EngineOptions(work / "shards", tuple(nodes), key, options))
        yield Running(engine, workers, work / "shards")
    finally:
        if engine is not None:
            engine.close()
        for worker in workers:
            worker.stop()
        for thread in threads:
            thread.join()


@pytest.fixture
def cluster(tmp_path, key_file):
    """`cluster(checkpoint, ranks=3, ...)` for the length of a test."""
    with contextlib.ExitStack() as stack:
        counter = iter(range(100))

        def start(checkpoint: Path, **options: Any) -> Running:
            return stack.enter_context(running_cluster(checkpoint, tmp_path / str(next(counter)), key_file, **options))

        yield start
