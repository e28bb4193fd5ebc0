"""What the timed parts of bench_llm stand on: models and shard sets that are kept, hosts with links, limits, programs.

Models and sets lie in $HEADTAIL_BENCH_CACHE or ~/.cache/headtail/bench-llm and are made once (`prepare`), so that a run that is
timed does nothing else.
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch

from benchmarks.cgroup import Cgroup, evict
from benchmarks.llm_programs import OursSpec
from benchmarks.netlab.lab import NetLab, access_of
from benchmarks.rows import ROOT
from device_profiles.errors import EdgeError
from device_profiles.link import parse_link
from orchestrator.demo.processes import edge_agent
from orchestrator.tensor_parallel.checkpoint import Checkpoint, open_checkpoint
from orchestrator.tensor_parallel.config import Encoding, ModelConfig
from orchestrator.tensor_parallel.loads import rank_loads
from orchestrator.tensor_parallel.memory import TYPICAL_BASE_BYTES, MemoryPlan, plan_memory
from orchestrator.tensor_parallel.nodes import Node
from orchestrator.tensor_parallel.partition import attention_parameters, cut
from orchestrator.tensor_parallel.protocol import RunSettings
from orchestrator.tensor_parallel.secure import write_key_file
from orchestrator.tensor_parallel.sharding import shard_checkpoint

CACHE = Path(os.environ.get("HEADTAIL_BENCH_CACHE") or Path.home() / ".cache" / "headtail" / "bench-llm")
LINK = "300mbit/2ms"  # of each pair of hosts: 1 ms one way
SETTINGS = {"slots": 1, "context": 256, "step_tokens": 32, "deadline_s": 120.0}
BIG = {"hidden": 2048, "layers": 8, "ffn": 5632, "heads": 32, "kv_heads": 8, "vocabulary": 49152}  # 562 M
STREAMED = {"hidden": 2048, "layers": 22, "ffn": 5632, "heads": 32, "kv_heads": 4, "vocabulary": 32000}  # 1.1 B
WORKER_PORT = 7070


class RigError(EdgeError):
    """A program of a benchmark ended, or did not answer."""


def random_checkpoint(name: str, sizes: Mapping[str, int]) -> Path:
    """A Llama with random weights, written tensor by tensor once."""
    from safetensors.torch import save_file

    folder = CACHE / name
    if (folder / "config.json").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(3)
    hidden, ffn, size = sizes["hidden"], sizes["ffn"], sizes["hidden"] // sizes["heads"]
    kv = sizes["kv_heads"] * size
    outside = {"model.embed_tokens": (sizes["vocabulary"], hidden), "lm_head": (sizes["vocabulary"], hidden)}
    inside = {
        "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (kv, hidden), "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, hidden), "mlp.gate_proj": (ffn, hidden), "mlp.up_proj": (ffn, hidden),
        "mlp.down_proj": (hidden, ffn),
    }  # fmt: skip
    groups = [{f"{key}.weight": shape for key, shape in outside.items()} | {"model.norm.weight": (hidden,)}]
    for layer in range(sizes["layers"]):
        start = f"model.layers.{layer}."
        group: dict[str, tuple[int, ...]] = {f"{start}{key}.weight": shape for key, shape in inside.items()}
        norms = ("input_layernorm", "post_attention_layernorm")
        groups.append(group | {f"{start}{key}.weight": (hidden,) for key in norms})
    index = {}
    for number, group in enumerate(groups):
        file = f"model-{number:03d}.safetensors"
        made = {k: torch.ones(s) if len(s) == 1 else torch.randn(s) * 0.02 for k, s in group.items()}
        save_file(made, folder / file, metadata={"format": "pt"})
        index.update(dict.fromkeys(group, file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": sizes["layers"], "hidden_size": hidden,
        "intermediate_size": ffn, "num_attention_heads": sizes["heads"], "num_key_value_heads": sizes["kv_heads"],
        "vocab_size": sizes["vocabulary"], "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "hidden_act": "silu", "tie_word_embeddings": False, "torch_dtype": "float32",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def hugging_face_folder(source: Checkpoint) -> Path:
    """SmolLM2 as transformers and Accelerate read it, float32."""
    from benchmarks.bench_llm import reference_model

    folder = CACHE / "smollm2-hf"
    if not (folder / "config.json").is_file():
        reference_model(source).save_pretrained(folder)
    return folder


def shards(
    source: Checkpoint, name: str, *, weights: Encoding = "float32", capabilities: Sequence[float] = (1, 1)
) -> Path:
    """A shard set for two ranks, kept."""
    uneven = "" if len(set(capabilities)) == 1 else "-uneven"
    folder = CACHE / f"{name}-{len(capabilities)}-{weights}{uneven}"
    if not (folder / "set.json").is_file():
        nodes = [
            Node(name=f"n{rank}", address=None if rank == 0 else "127.0.0.1:1", capability=capability)
            for rank, capability in enumerate(capabilities)
        ]
        shard_checkpoint(source, nodes, folder, spares=0, weights=weights)
    return folder


def streamed_shards(folder: Path) -> Path:
    """The set of `stream_big`: the master, which also reads lm_head, computes so much less of the layers that both read the same."""
    source = open_checkpoint(folder)
    config = source.config
    layers = config.layers * (config.kv_heads * attention_parameters(config) + 3 * config.ffn * config.hidden)
    head = config.vocabulary * config.hidden
    return shards(source, folder.name, capabilities=(layers - head, layers + head))


def key_file() -> Path:
    """A key for clusters of benchmarks."""
    path = CACHE / "cluster.pem"
    if not path.is_file():
        write_key_file(path)
    return path


class Program:
    """A child that answers lines with JSON."""

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self._name = name
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True
        )
        self._read()

    def ask(self, line: str) -> dict[str, Any]:
        """Send a line; its answer."""
        self.tell(line)
        return self._read()

    def tell(self, line: str) -> None:
        """Send a line."""
        assert self._child.stdin is not None
        self._child.stdin.write(line + "\n")
        self._child.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """The next line."""
        return self._read()

    def close(self) -> None:
        """End it."""
        self._child.kill()
        self._child.wait()

    def _read(self) -> dict[str, Any]:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            raise RigError(f"Wanted an answer of {self._name}, found that it ended with {self._child.wait()}.")
        values: dict[str, Any] = json.loads(line)
        return values


def python(program: str, argument: str) -> list[str]:
    """The command line of one of `llm_programs`."""
    return [sys.executable, "-m", "benchmarks.llm_programs", program, argument]


@contextlib.contextmanager
def lab(*names: str) -> Iterator[NetLab]:
    """Hosts of which each pair has the link of the benchmarks."""
    half = access_of(parse_link(LINK))
    access = _half(half)
    with NetLab(dict.fromkeys(names, access)) as made:
        yield made


def _half(access: Any) -> Any:
    """Half of the delay on each side: a way between two hosts takes both."""
    from dataclasses import replace

    return replace(access, delay_ms=access.delay_ms / 2)


@dataclass(frozen=True)
class Limits:
    """What a rank may take; null is no limit."""

    promised: int | None = None  # `--memory-limit`
    enforced: int | None = None  # of the control group
    read_mb_per_s: float | None = None


@contextlib.contextmanager
def ours(
    net: NetLab, folder: Path, port: int, limits: Sequence[Limits], **settings: Any
) -> Iterator[tuple[Program, list[Cgroup]]]:
    """A cluster of two on hosts `a` and `b`: the master's program, and the control groups there are."""
    evict(folder)
    with contextlib.ExitStack() as stack:
        groups = []

        def limited(rank: int, command: list[str]) -> list[str]:
            one = limits[rank]
            if one.enforced is None:
                return command
            group = Cgroup(f"{port}-{rank}", memory_bytes=one.enforced, read_mb_per_s=one.read_mb_per_s, folder=folder)
            stack.callback(group.close)
            groups.append(group)
            return group.command(command)

        listen = f"{net['b'].address}:{port}"
        worker = net["b"].popen(
            limited(1, edge_agent("llm-worker", "--listen", listen, "--key", str(key_file()), "--store", str(folder), "--threads", "1")),
            stderr=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True,
        )  # fmt: skip
        stack.callback(worker.wait)
        stack.callback(worker.kill)
        while "listens on" not in (line := worker.stderr.readline()):
            if not line:
                raise RigError(f"Wanted a worker, found that it ended with {worker.wait()}.")
        spec = OursSpec(
            str(folder), str(key_file()), (listen,), {**SETTINGS, **settings},
            tuple(None if one.promised is None else str(one.promised) for one in limits), net["a"].address,
        )  # fmt: skip
        command = limited(0, python("ours", msgspec.json.encode(spec).decode()))
        master = Program(f"the master of {folder.name}", net["a"].command(command))
        stack.callback(master.close)
        groups.reverse()  # the master's first
        yield master, groups


def plans(config: ModelConfig, *, paper: bool = False, ranks: int = 2) -> list[MemoryPlan]:
    """What each rank takes with all its weights in memory."""
    settings = RunSettings(**SETTINGS, paper=paper)
    found = []
    for rank, share in enumerate(cut(config, [1.0] * ranks)):
        loads = rank_loads(config, share, share, master=rank == 0, paper=paper)
        found.append(
            plan_memory(config, share, loads, settings, ranks=ranks, master=rank == 0, limit=None, base=TYPICAL_BASE_BYTES)
        )  # fmt: skip
    return found


def interleaved(programs: Mapping[str, Program], *, rounds: int, tokens: int) -> dict[str, dict[str, Any]]:
    """Ask each for tokens in turn, round after round; the first is not counted. Median of all tokens' milliseconds."""
    times: dict[str, list[float]] = {name: [] for name in programs}
    last: dict[str, dict[str, Any]] = {}
    for number in range(rounds + 1):
        for name, program in programs.items():
            last[name] = program.ask(str(tokens if number else 1))
            if number:
                times[name].append(statistics.median(last[name]["ms"]))
        if number:
            print("  ".join(f"{name} {times[name][-1]:.1f} ms" for name in programs), flush=True)
    return {name: {**last[name], "median": statistics.median(times[name])} for name in programs}


def prepare(source: Checkpoint, parts: Sequence[str]) -> None:
    """Make what the parts need."""
    from benchmarks import bench_llm_memory as memory  # it uses this module

    needed: dict[str, Callable[[], object]] = {
        "float32": lambda: shards(source, "smollm2"),
        "int4": lambda: shards(source, "smollm2", weights="int4"),
        "hf": lambda: hugging_face_folder(source),
        "big": lambda: shards(open_checkpoint(random_checkpoint("random-562m", BIG)), "random-562m"),
        "big4": lambda: shards(open_checkpoint(random_checkpoint("random-562m", BIG)), "random-562m", weights="int4"),
        "streamed": lambda: streamed_shards(random_checkpoint("random-1b", STREAMED)),
        "70b": lambda: memory.prepare("float32"),
        "70b4": lambda: memory.prepare("int4"),
    }
    wanted = {
        "allreduce": (), "paper_ratio": ("float32",), "accelerate": ("float32", "hf"), "one_device": ("float32", "hf"),
        "low_bit": ("float32", "int4"), "low_bit_big": ("big", "big4"), "stream_big": ("streamed",),
        "mem_70b_fp32": ("70b",), "mem_70b_q4": ("70b4",),
    }  # fmt: skip
    for name in dict.fromkeys(one for part in parts for one in wanted.get(part, ())):
        print(f"preparing {name}", flush=True)
        needed[name]()
    key_file()
