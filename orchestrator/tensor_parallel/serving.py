"""`headtail llm serve` and `edge-agent llm-worker`: everything put together, from options to a running process."""

import contextlib
import math
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import torch
import uvicorn

from edge_runtime.ending import when_told_to_end
from edge_runtime.messages import Topics
from orchestrator.tensor_parallel.cluster import Progress
from orchestrator.tensor_parallel.connections import http_config
from orchestrator.tensor_parallel.control import Announcer, Directory, own_address, with_addresses
from orchestrator.tensor_parallel.engine import Engine, EngineOptions
from orchestrator.tensor_parallel.errors import PartitionError, PeerError, ShardError
from orchestrator.tensor_parallel.generation import Generator
from orchestrator.tensor_parallel.kernels import kernel_profile
from orchestrator.tensor_parallel.memory import resident_peak
from orchestrator.tensor_parallel.nodes import Node, parse_size
from orchestrator.tensor_parallel.protocol import RunSettings
from orchestrator.tensor_parallel.server import Service, build_app
from orchestrator.tensor_parallel.shard_set import read_index, read_set, verify_file
from orchestrator.tensor_parallel.speed import read_mb_per_s_of_a_child
from orchestrator.tensor_parallel.text import Text
from orchestrator.tensor_parallel.worker import Worker, WorkerOptions

_MOST_SLOTS = 1024
_ANNOUNCE_S = 10.0  # to wait for nodes that announce themselves


@dataclass(frozen=True)
class Announce:
    """Where a worker announces itself, and as whom."""

    broker: str
    name: str
    tenant: str = "default"
    address: str | None = None  # host:port for others; null: this machine's on its way to the broker


@dataclass(frozen=True)
class ServeOptions:
    """What `headtail llm serve` was asked for."""

    shards: Path
    nodes: tuple[Node, ...]
    key_file: Path | None = None
    settings: RunSettings = field(default_factory=RunSettings)
    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    lookup: int = 8
    drafts: int = 2
    queue: int = 64
    broker: str | None = None
    tenant: str = "default"
    allow_missing: bool = False
    threads: int | None = None


@contextlib.contextmanager
def service(options: ServeOptions, *, progress: Progress | None = None) -> Iterator[Service]:
    """Verify the master's file, connect to the nodes, and be ready to answer.

    Raises:
        EdgeError: Whatever is wrong with the set, the key, a node or a limit.
    """
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    shard_set = read_set(options.shards)
    verify_file(options.shards / "rank0.bin", read_index(options.shards, 0, shard_set))
    context = min(options.settings.context, shard_set.config.context)  # beyond it the model was never trained
    text = Text(options.shards, context=context)
    settings = msgspec.structs.replace(options.settings, context=context)
    with contextlib.ExitStack() as stack:
        directory, nodes = None, options.nodes
        kernel_profile()  # a first race takes memory for a moment
        if options.broker is not None:
            directory = Directory(options.broker, options.tenant, master=nodes[0].name)
            stack.callback(directory.close)
            nodes = with_addresses(nodes, directory, timeout_s=_ANNOUNCE_S)
        engine = Engine(
            EngineOptions(
                options.shards, nodes, options.key_file, settings, options.allow_missing, directory, resident_peak()
            ),
            progress=progress,
        )
        stack.callback(engine.close)
        generator = Generator(engine, text, queue=options.queue)
        stack.callback(generator.close)
        yield Service(engine, generator, text, options.lookup, options.drafts, options.api_key, directory)


def serve_until_stopped(
    options: ServeOptions, *, progress: Progress | None = None, announce: Callable[[str], object]
) -> None:
    """Answer HTTP until Ctrl-C or SIGTERM.

    Raises:
        EdgeError: As `service`, or the port is in use.
    """
    _check(options)
    listening = _listen(options.host, options.port)
    with listening, service(options, progress=progress) as ready:
        port = listening.getsockname()[1]
        config = http_config(build_app(ready), requests=options.settings.slots + options.queue)
        nodes = ", ".join(member.name for member in ready.engine.epoch.members)
        announce(f"serving {ready.model} over {nodes} at http://{options.host}:{port}/v1")
        sys.stdout.flush()
        uvicorn.Server(config).run(sockets=[listening])


def _check(options: ServeOptions) -> None:
    for name, value, least in (
        ("queue", options.queue, 0),
        ("lookup", options.lookup, 0),
        ("drafts", options.drafts, 1),
        ("threads", 1 if options.threads is None else options.threads, 1),
        ("slots", options.settings.slots, 1),
    ):
        if value < least:
            raise PartitionError(f"Wanted --{name} of at least {least}, found {value}.")
    if options.settings.slots > _MOST_SLOTS:
        raise PartitionError(f"Wanted --slots of at most {_MOST_SLOTS}, found {options.settings.slots}.")
    deadline_s = options.settings.deadline_s
    if not (math.isfinite(deadline_s) and deadline_s > 0):
        raise PartitionError(f"Wanted a --deadline-s above 0, found {deadline_s}.")


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:  # OverflowError: no port has this number
        raise PeerError(f"Wanted to answer at {host}:{port}, found {error}. Choose another --port.") from error


def run_worker(
    *,
    listen: str,
    key_file: Path,
    store: Path,
    memory_limit: str | None,
    threads: int | None,
    release_s: float = 30.0,
    announce: Announce | None = None,
) -> None:
    """Be one rank until Ctrl-C or SIGTERM.

    Args:
        listen: host:port.
        key_file: The cluster's.
        store: Where weights are kept; a copy of the shard set may stand there.
        memory_limit: As in 512MB; the nodes file may give a lower one.
        threads: Of torch.
        release_s: Weights are kept so long for a master that comes back.
        announce: Where to say that it is there.

    Raises:
        EdgeError: The key file, the address or the limit is not valid.
    """
    host, colon, port = listen.rpartition(":")
    if not (colon and host and port.isdigit()):
        raise PartitionError(f"Wanted --listen host:port, found {listen!r}.")
    if threads is not None and threads < 1:
        raise PartitionError(f"Wanted --threads of at least 1, found {threads}.")
    if threads is not None:
        torch.set_num_threads(threads)
    limit = None if memory_limit is None else parse_size(memory_limit)
    try:
        store.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ShardError(f"Wanted a folder for weights, found {error}. Give another --store.") from error
    announcer: list[Announcer] = []

    def say(computing: bool, epoch: int, resident: int) -> None:
        for one in announcer:
            one.say(computing=computing, epoch=epoch, resident_bytes=resident)

    kernel_profile()  # before the worker: a first race takes memory for a moment
    rate = None if announce is None else read_mb_per_s_of_a_child(threads)
    worker = Worker(WorkerOptions(host.strip("[]"), int(port), key_file, store, limit, release_s, say, resident_peak()))
    if announce is not None:
        address = announce.address or own_address(announce.broker, worker.port)
        topics = Topics(announce.tenant, announce.name)
        announcer.append(Announcer(announce.broker, topics, address, limit, read_mb_per_s=round(rate or 0)))

    when_told_to_end(worker.stop)
    sys.stderr.write(f"llm-worker listens on {host}:{worker.port}\n")
    sys.stderr.flush()
    try:
        worker.run()
    finally:
        for one in announcer:
            one.close()
