"""`headtail tail serve`: answer the requests of heads over MQTT."""

import contextlib
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import msgspec
from cyclopts import Parameter

from edge_runtime.artefact import open_artefact
from edge_runtime.broker_url import hide_password
from orchestrator.commands.output import print_json
from orchestrator.commands.serving import until_stopped
from orchestrator.serving.fleet_tails import FleetTails
from orchestrator.serving.served import ServeError, serve_artefact
from orchestrator.serving.service import TailService
from orchestrator.serving.worker import WorkerOrder
from orchestrator.tail_server import ServerOptions, TailServer

_RESCAN_S = 1.0


@Parameter(name="*")
@dataclass(frozen=True)
class ServeOptions:
    """How requests are served."""

    processes: int = 0
    """Worker processes that share the requests and are started again when they die; 0 serves in this process."""

    folder: Path | None = None
    """Serve every artefact in this folder, and follow its changes without losing a request (worker processes)."""

    registry: str | None = None
    """Serve the tails of a fleet's versions, old and new while a rollout moves devices: URL of its database, or its folder."""

    workers: int = 1
    """Threads of each process that run models; one model runs one request or batch at a time."""

    threads: int | None = None
    """Of the engine; the manifest's number when not given."""

    queue_limit: int = 64
    """Requests that may wait in a process; one more makes the least urgent one "busy"."""

    batch: int = 1
    """Run up to so many requests together, where the model's golden vectors prove that it changes no answer."""

    batch_wait_ms: float = 0.0
    """How long a batch may wait for more requests; deadlines go first."""

    device_rate: float = 0.0
    """Requests a second that one device may send; more are "busy". 0: any number."""

    device_burst: int = 16
    """Requests that a device may send at once."""

    direct: str | None = None
    """Address on which devices reach a direct data plane for large tensors (worker processes; needs pyzmq)."""

    group: str = "tails"
    """Servers of one group share the requests; each group gets every request, and a device takes the first answer."""

    shared: bool = True
    """Share the requests with other servers of the same model."""

    traces: str | None = None
    """Where spans of requests that devices trace go: otlp:http://host:4318/v1/traces, or file:PATH (worker processes)."""

    qos: int = 1
    """Largest QoS of requests; 0 with the embedded broker, which raises a request's QoS to this one."""


_DEFAULTS = ServeOptions()


def serve(
    *artefacts: Path, broker: str = "mqtt://127.0.0.1:1883", options: ServeOptions = _DEFAULTS, json: bool = False
) -> None:
    """Answer the requests of heads, or of devices that send whole pictures, until Ctrl-C.

    Args:
        artefacts: Tails and whole models; each answers under its own keys.
        broker: URL of the MQTT broker.
        options: How.
        json: Print JSON.
    """
    server = ServerOptions(
        workers=options.workers,
        queue_limit=options.queue_limit,
        group=options.group if options.shared else None,
        qos=options.qos,
        batch_wait_ms=options.batch_wait_ms,
        # Requests of a device are spread over the processes.
        device_rate=options.device_rate / max(1, options.processes),
        device_burst=options.device_burst,
    )
    if options.folder is None and options.registry is None and not artefacts:
        raise ServeError("Wanted at least one tail or whole model to serve, found none. Give its folder or .zip.")
    in_processes = (options.folder, options.registry, options.direct, options.traces) != (None, None, None, None)
    if options.processes or in_processes:
        _serve_in_processes(artefacts, broker, server, options, json=json)
    else:
        _serve_here(artefacts, broker, server, options, json=json)


def _serve_here(
    artefacts: tuple[Path, ...], broker: str, server: ServerOptions, options: ServeOptions, *, json: bool
) -> None:
    models = [serve_artefact(open_artefact(path), threads=options.threads, batch=options.batch) for path in artefacts]
    with TailServer(broker, models, server) as running:
        with until_stopped():
            _announce([(model.name, model.keys) for model in models], broker, json=json)
            threading.Event().wait()
        if json:
            print_json(msgspec.to_builtins(running.counters))
        else:
            sys.stdout.write(f"{running.counters}\n")


def _serve_in_processes(
    artefacts: tuple[Path, ...], broker: str, server: ServerOptions, options: ServeOptions, *, json: bool
) -> None:
    tails = FleetTails(options.registry) if options.registry is not None else None
    found = _scan(artefacts, options.folder, tails)
    order = WorkerOrder(
        name="tail",
        broker=broker,
        artefacts=found,
        server=server,
        threads=options.threads,
        batch=options.batch,
        direct_host=options.direct,
        traces=options.traces,
    )
    with until_stopped(), contextlib.ExitStack() as stack:
        service = stack.enter_context(TailService(order, max(1, options.processes)))
        if tails is not None:
            stack.callback(tails.close)
            tails.announce(service.serving)
        _announce(service.serving, broker, json=json)
        stopped = threading.Event()
        while not stopped.wait(_RESCAN_S):
            if (now := _scan(artefacts, options.folder, tails)) != found:
                _follow(service, now, broker, json=json)
                found = now
            if tails is not None:
                tails.announce(service.serving)


def _scan(artefacts: tuple[Path, ...], folder: Path | None, tails: FleetTails | None) -> tuple[str, ...]:
    """The artefacts to serve now; what lies in the folder counts once its manifest or .zip is there."""
    given = [str(path) for path in artefacts]
    if tails is not None:
        given += map(str, tails.wanted())
    if folder is None:
        return tuple(given)
    if not folder.is_dir():
        raise ServeError(f"Wanted a folder of artefacts, found none at {folder}.")
    inside = sorted(path for path in folder.iterdir() if (path / "manifest.json").is_file() or path.suffix == ".zip")
    return (*given, *map(str, inside))


def _follow(service: TailService, artefacts: tuple[str, ...], broker: str, *, json: bool) -> None:
    try:
        service.replace(artefacts)
    except ServeError as error:  # what ran goes on
        sys.stderr.write(f"ServeError: {error}\n")
        return
    _announce(service.serving, broker, json=json)


def _announce(
    models: "list[tuple[str, tuple[str, ...]]] | tuple[tuple[str, tuple[str, ...]], ...]", broker: str, *, json: bool
) -> None:
    if json:
        serving = [{"model": name, "keys": list(keys)} for name, keys in models]
        print_json({"serving": serving, "broker": hide_password(broker)})
    else:
        for name, keys in models:
            sys.stdout.write(f"serving {name} as {', '.join(keys)} through {hide_password(broker)}\n")
        if not models:
            sys.stdout.write(f"serving nothing yet through {hide_password(broker)}\n")
    sys.stdout.flush()
