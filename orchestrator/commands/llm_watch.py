"""`headtail llm trace`, `top`, `kernels` and `nodes`: look at what a cluster and its machines do."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from orchestrator.commands.llm import cluster_nodes, need_torch, run_settings
from orchestrator.commands.output import format_bytes, print_json, print_table
from orchestrator.commands.serving import until_stopped

if TYPE_CHECKING:
    from edge_runtime.llm_messages import LlmNode


def trace(
    shards: Path,
    *,
    nodes: Path | None = None,
    key: Path | None = None,
    out: Path = Path("trace.json"),
    prompt: str = "Hello",
    memory_limit: str | None = None,
    threads: int | None = None,
) -> None:
    """Compute one token and write what every rank did: a Chrome trace (chrome://tracing, ui.perfetto.dev).

    Args:
        shards: The set of `headtail llm shard`.
        nodes: Nodes file with the addresses of the workers; not needed for a set of one node.
        key: The cluster's key file.
        out: The trace.
        prompt: Text in front of the token.
        memory_limit: Of the master, as in 512MB.
        threads: Of torch.
    """
    need_torch()
    import torch

    from orchestrator.tensor_parallel.engine import Engine, EngineOptions, Piece
    from orchestrator.tensor_parallel.text import Text
    from orchestrator.tensor_parallel.trace import write_trace

    if threads is not None:
        torch.set_num_threads(threads)
    settings = run_settings("auto", "float32", paper=False, window=2, context=256, slots=1, deadline_s=10.0)
    tokens = tuple(Text(shards).encode(prompt))[:200]
    engine = Engine(EngineOptions(shards, cluster_nodes(shards, nodes, memory_limit), key, settings))
    try:
        first = engine.step([Piece(0, 0, tokens, 1)])[0]
        engine.step([Piece(0, len(tokens), (int(first[0].argmax()),), 1)])
        write_trace(out, engine.trace())
        times = engine.times
    finally:
        engine.close()
    sys.stdout.write(
        f"wrote {out}: a token took {1e3 * times.total_s:.1f} ms, {1e3 * times.communicated_s:.1f} ms of it communication, "
        f"{1e3 * times.waited_s:.1f} ms waiting for weights\n"
    )


def top(url: str = "http://127.0.0.1:8000", *, every_s: float = 1.0, once: bool = False, json: bool = False) -> None:
    """Show the nodes of a running server, again and again until Ctrl-C.

    Args:
        url: Of `headtail llm serve`.
        every_s: Seconds between two looks.
        once: Look once.
        json: Print what the server says, once.
    """
    if json:
        print_json(_health(url))
        return
    with Live(_node_table(_health(url)), console=Console(), auto_refresh=False) as live, until_stopped():
        while not once:
            time.sleep(every_s)
            live.update(_node_table(_health(url)), refresh=True)


def _health(url: str) -> dict[str, Any]:
    import json
    import urllib.error
    import urllib.request

    from orchestrator.tensor_parallel.errors import PeerError

    address = f"{url.rstrip('/').removesuffix('/v1')}/health"
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            found: dict[str, Any] = json.loads(answer.read())
    except urllib.error.HTTPError as error:  # 503 while none can answer: it says so itself
        found = json.loads(error.read())
    except (OSError, ValueError) as error:
        raise PeerError(f"Wanted a server of `headtail llm serve`, found {error} at {address}.") from error
    return found


def _node_table(health: dict[str, Any]) -> Table:
    table = Table(title=f"{health['status']}: {health['running']} running, {health['waiting']} waiting")
    for column in ("rank", "node", "state", "KV heads", "FFN columns", "memory", "read a token"):
        table.add_column(column)
    for node in health["nodes"]:
        cells = [str(node.get(key, "")) for key in ("kv_heads", "columns")]
        cells += [format_bytes(node.get(key)) or "" for key in ("memory_bytes", "streamed_bytes")]
        table.add_row(str(node["rank"]), node["name"], "alive" if node["alive"] else "lost", *cells)
    return table


def kernels(*, again: bool = False, threads: int | None = None, json: bool = False) -> None:
    """Show which kernels multiply on this machine: the outcome of a short race, kept until processor, torch or kernels change.

    Args:
        again: Race again, say after the machine was busy.
        threads: Of torch.
        json: Print JSON.
    """
    need_torch()
    import msgspec
    import torch

    from orchestrator.tensor_parallel.kernels import kernel_profile, profile_path
    from orchestrator.tensor_parallel.speed import measured_read_mb_per_s

    if threads is not None:
        torch.set_num_threads(threads)
    path = profile_path(torch.get_num_threads())
    if again:
        path.unlink(missing_ok=True)
    found = kernel_profile()
    if found is None:
        sys.stdout.write("torch multiplies: there is no C compiler, or HEADTAIL_NO_C is set\n")
        sys.stdout.write(f"in a nodes file:\n{_speed_lines(measured_read_mb_per_s())}")
        return
    if json:
        print_json(msgspec.to_builtins(found))
        return
    races = (
        ("float32, one token", found.float32_one),
        ("float32, 2 to 16 tokens", found.float32_few),
        ("int8", found.int8),
        ("int4", found.int4),
    )
    rows = [(title, one.chosen, f"{one.c_us:.0f}", f"{one.torch_us:.0f}") for title, one in races]
    title = f"C for {found.target}, {found.threads} threads ({path})"
    print_table(title, ("weights", "chosen", "C us", "torch us"), rows, numbers=True)
    sys.stdout.write(f"in a nodes file:\n{_speed_lines(measured_read_mb_per_s())}")


def nodes(*, broker: str, tenant: str = "default", seconds: float = 2.0, json: bool = False) -> None:
    """List the workers that announce themselves at a broker, and print a nodes file for them.

    Args:
        broker: URL of the MQTT broker.
        tenant: Of the announcements.
        seconds: How long to listen.
        json: Print JSON.
    """
    need_torch()
    import msgspec

    from orchestrator.tensor_parallel.control import Directory
    from orchestrator.tensor_parallel.speed import measured_read_mb_per_s

    directory = Directory(broker, tenant)
    try:
        time.sleep(seconds)  # what is retained comes at once, but nothing says that it was all
        found = dict(sorted(directory.nodes.items()))
    finally:
        directory.close()
    if json:
        print_json({name: msgspec.to_builtins(node) for name, node in found.items()})
        return
    rows = [
        (name, one.address, one.state, one.epoch, format_bytes(one.resident_bytes), format_bytes(one.memory_limit),
         one.read_mb_per_s or "-")
        for name, one in found.items()
    ]  # fmt: skip
    print_table(f"workers of {tenant}", ("node", "address", "state", "epoch", "weights", "limit", "MB/s"), rows)
    sys.stdout.write("\n" + _node_tables(found, measured_read_mb_per_s()))


def _node_tables(found: "dict[str, LlmNode]", own_mb_per_s: float) -> str:
    """A nodes file: this machine as the master, and what the workers announced."""
    tables = [f'[[node]]\nname = "master"\n{_speed_lines(own_mb_per_s)}']
    for name, one in found.items():
        limit = f'memory_limit = "{one.memory_limit}"\n' if one.memory_limit else ""
        rate = _speed_lines(one.read_mb_per_s) if one.read_mb_per_s else ""
        tables.append(f'[[node]]\nname = "{name}"\naddress = "{one.address}"\n{limit}{rate}')
    return "\n".join(tables)


def _speed_lines(read_mb_per_s: float) -> str:
    """Lines of a nodes file; capabilities are relative, so GB/s will do."""
    return f"capability = {read_mb_per_s / 1e3:.2g}\nread_mb_per_s = {read_mb_per_s:.0f}\n"
