"""`headtail deploy ARTEFACT --to DEVICE`: send an artefact to a device and activate it there."""

import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from edge_runtime.artefact import Artefact
from edge_runtime.broker_url import is_loopback
from orchestrator import deploy as deployment
from orchestrator.agent_bundle import open_any
from orchestrator.artefact_server import ArtefactServer
from orchestrator.commands.fleet_add import add_and_roll_out
from orchestrator.commands.output import format_bytes, print_json
from orchestrator.fleet.errors import ConflictError
from orchestrator.fleet.fleet_file import find_broker, read_fleet_file


def deploy(
    artefact: Path,
    *more: Path,
    to: str,
    broker: str | None = None,
    tenant: str = "default",
    window: int = 8,
    timeout: float = 120.0,
    over: Literal["http", "mqtt"] | None = None,
    serve: str = "127.0.0.1",
    budget_ms: float | None = None,
    probation: float | None = None,
    folder: Path | None = None,
    json: bool = False,
) -> None:
    """Send a head or a whole model to a device; done when it has verified and activated it.

    Where `headtail fleet up` runs this broker, it goes through the registry, as a rollout in stages: then `to` may be a group
    or a selector as well.

    The device runs it on probation at first, and goes back by itself when it does not answer.

    Args:
        artefact: A folder or .zip that `headtail export` or `headtail split` wrote.
        more: Its tail, and the whole model for when the tail is out of reach, as one version with it; where a fleet runs.
        to: The device's name, as its `edge-agent run --device` says.
        broker: URL of the MQTT broker; that of `headtail fleet up`, else mqtt://127.0.0.1:1883, when not given.
        tenant: The device's tenant.
        window: Blocks of 64 KiB that may be on their way.
        timeout: Give up after so many seconds without progress.
        over: Whether the device fetches over HTTP or is sent blocks over MQTT; by default HTTP where the broker is on this
            machine. A device that cannot reach the server gets the blocks over MQTT.
        serve: Address of this machine under which the device fetches over HTTP.
        budget_ms: Refuse it there when a golden run takes longer.
        probation: Seconds that the device watches it; its own choice when not given.
        folder: Of `headtail fleet up`, where it is not the usual one.
        json: Print JSON.
    """
    fleet = read_fleet_file(folder)
    if fleet is not None and over is None and (folder is not None or broker in (None, fleet.broker)):
        add_and_roll_out((artefact, *more), to=to, probation=probation, folder=folder, json=json)
        return
    if more:
        raise deployment.DeployError(
            "Wanted one artefact for one device, found several and no fleet. Start one (headtail fleet up), or serve the tail: "
            "headtail tail serve."
        )
    broker = broker or find_broker(folder)
    opened = open_any(artefact)
    if not isinstance(opened, Artefact):
        raise ConflictError(f"Wanted a model in {artefact}, found an agent: that is rolled out by `headtail fleet up`.")
    options = deployment.DeployOptions(
        tenant=tenant, window=window, timeout_s=timeout, budget_ms=budget_ms, probation_s=probation
    )
    show = None if json or not sys.stderr.isatty() else _show
    http = is_loopback(broker) if over is None else over == "http"
    with _server(serve) if http else contextlib.nullcontext() as server:
        status = deployment.deploy(broker, to, opened, options=options, progress=show, server=server)
    if show is not None:
        sys.stderr.write("\r\x1b[K")
    if json:
        print_json({"device": to, "artefact": opened.id, "state": status.state})
    else:
        sys.stdout.write(f"{to} runs {opened.manifest.role} {opened.id[:16]}.. ({opened.manifest.model.name})\n")


@contextlib.contextmanager
def _server(host: str) -> Iterator[ArtefactServer]:
    with (
        tempfile.TemporaryDirectory(prefix="headtail-serve.") as folder,
        ArtefactServer(Path(folder), host=host) as server,
    ):
        yield server


def _show(done: int, total: int) -> None:
    sys.stderr.write(f"\r{format_bytes(done)} of {format_bytes(total)}")
    sys.stderr.flush()
