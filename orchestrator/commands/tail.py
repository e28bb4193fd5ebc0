"""`headtail tail serve`: answer the requests of heads over MQTT."""

import sys
import threading
from pathlib import Path

import msgspec

from edge_runtime.artefact import open_artefact
from edge_runtime.mqtt import hide_password
from orchestrator.commands.output import print_json
from orchestrator.commands.serving import until_stopped
from orchestrator.tail_server import Served, ServeError, ServerOptions, TailServer, serve_artefact


def serve(
    *artefacts: Path,
    broker: str = "mqtt://127.0.0.1:1883",
    workers: int = 1,
    threads: int | None = None,
    queue_limit: int = 64,
    shared: bool = True,
    qos: int = 1,
    json: bool = False,
) -> None:
    """Answer the requests of heads, or of devices that send whole pictures, until Ctrl-C.

    Args:
        artefacts: Tails and whole models; each answers under its own keys.
        broker: URL of the MQTT broker.
        workers: Threads that run models; one model runs one request at a time.
        threads: Of the engine; the manifest's number when not given.
        queue_limit: Requests that may wait; one more makes the least urgent one "busy".
        shared: Share the requests with other servers of the same model.
        qos: Largest QoS of requests; 0 with the embedded broker, which raises a request's QoS to this one.
        json: Print JSON.
    """
    if not artefacts:
        raise ServeError("Wanted at least one tail or whole model to serve, found none. Give its folder or .zip.")
    models = [serve_artefact(open_artefact(path), threads=threads) for path in artefacts]
    options = ServerOptions(workers=workers, queue_limit=queue_limit, group="tails" if shared else None, qos=qos)
    with TailServer(broker, models, options) as server:
        with until_stopped():
            _announce(models, broker, json=json)
            threading.Event().wait()
        if json:
            print_json(msgspec.to_builtins(server.counters))
        else:
            sys.stdout.write(f"{server.counters}\n")


def _announce(models: list[Served], broker: str, *, json: bool) -> None:
    if json:
        print_json(
            {
                "serving": [{"model": model.name, "keys": list(model.keys)} for model in models],
                "broker": hide_password(broker),
            }
        )
    else:
        for model in models:
            sys.stdout.write(f"serving {model.name} as {', '.join(model.keys)} through {hide_password(broker)}\n")
    sys.stdout.flush()
