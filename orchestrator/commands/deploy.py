"""`headtail deploy ARTEFACT --to DEVICE`: send an artefact to a device and activate it there."""

import sys
from pathlib import Path

from edge_runtime.artefact import open_artefact
from orchestrator import deploy as deployment
from orchestrator.commands.output import format_bytes, print_json


def deploy(
    artefact: Path,
    *,
    to: str,
    broker: str = "mqtt://127.0.0.1:1883",
    tenant: str = "default",
    window: int = 8,
    timeout: float = 120.0,
    json: bool = False,
) -> None:
    """Send a head or a whole model to a device; done when it has verified and activated it.

    Args:
        artefact: A folder or .zip that `headtail export` or `headtail split` wrote.
        to: The device's name, as its `edge-agent run --device` says.
        broker: URL of the MQTT broker.
        tenant: The device's tenant.
        window: Blocks of 64 KiB that may be on their way.
        timeout: Give up after so many seconds without progress.
        json: Print JSON.
    """
    opened = open_artefact(artefact)
    options = deployment.DeployOptions(tenant=tenant, window=window, timeout_s=timeout)
    show = None if json or not sys.stderr.isatty() else _show
    status = deployment.deploy(broker, to, opened, options=options, progress=show)
    if show is not None:
        sys.stderr.write("\r\x1b[K")
    if json:
        print_json({"device": to, "artefact": opened.id, "state": status.state})
    else:
        sys.stdout.write(f"{to} runs {opened.manifest.role} {opened.id[:16]}.. ({opened.manifest.model.name})\n")


def _show(done: int, total: int) -> None:
    sys.stderr.write(f"\r{format_bytes(done)} of {format_bytes(total)}")
    sys.stderr.flush()
