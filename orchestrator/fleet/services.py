"""The programs that make up a running fleet: each is `python -m MODULE` with the same options, and says "ready" when it is.

A service takes `--store URL --broker URL --folder DIR` and, when it listens, `--host ADDRESS --port NUMBER`; it prints one line
that holds "ready" (and its address) on standard output, runs until SIGTERM, and may be killed at any time.
"""

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path

from orchestrator.pki import ONLINE_KEY


@dataclass(frozen=True)
class Service:
    """One program of the fleet. `port` is null for one that does not listen."""

    name: str
    module: str
    port: int | None = None
    optional: bool = False  # left out where its module, or what it needs, is not installed
    needs: tuple[str, ...] = ()  # distributions' modules beyond the orchestrator's own
    for_devices: bool = False  # listens where devices reach it, with the fleet's certificates where there are any


@dataclass(frozen=True)
class Secured:
    """A fleet with certificates: where they are, and how devices reach this host."""

    pki: Path
    host: str  # address that services for devices listen on
    public_host: str
    device_port: int
    service_port: int
    trust: Path | None = None  # the key set that devices get when they enrol
    tuf: Path | None = None  # folder of the TUF repository whose root devices get as well


@dataclass(frozen=True)
class Settings:
    """What every service is told."""

    store: str
    broker: str
    folder: Path
    host: str = "127.0.0.1"
    secured: Secured | None = None
    home_assistant: bool = False


ENROLMENT, ENROLMENT_PORT = "enrolment", 8885
FRESHNESS = "freshness"
TAILS = "tails"
_HEADTAIL = "from orchestrator.cli import main; main()"
_WEB = ("starlette", "uvicorn", "prometheus_client", "jinja2")
SERVICES = (
    Service("ingest", "orchestrator.fleet.ingest"),
    Service("orchestrator", "orchestrator.fleet.brain"),
    Service("samples", "orchestrator.fleet.samples"),
    Service("files", "orchestrator.fleet.files", port=8081, for_devices=True),
    Service("dashboard", "orchestrator.dashboard.serve", port=8080, optional=True, needs=_WEB),
)


def is_installed(service: Service) -> bool:
    """Whether its module and what it needs can be imported."""
    for name in (service.module, *service.needs):
        try:
            if importlib.util.find_spec(name) is None:
                return False
        except ModuleNotFoundError:
            return False
    return True


def command_of(service: Service, settings: Settings, *, port: int | None = None) -> list[str]:
    """The command line of a service; `port` instead of its usual one."""
    command = [sys.executable, "-m", service.module, "--store", settings.store, "--broker", settings.broker]
    command += ["--folder", str(settings.folder)]
    secured = settings.secured if service.for_devices else None
    if service.port is not None:
        host = settings.host if secured is None else secured.host
        command += ["--host", host, "--port", str(service.port if port is None else port)]
    if secured is not None:
        command += ["--pki", str(secured.pki), "--advertise", secured.public_host]
    if service.name == "dashboard" and settings.home_assistant:
        command.append("--home-assistant")
    return command


def freshness_command(tuf: Path, secured: Secured, folder: Path) -> list[str]:
    """The command line of the service that signs the TUF repository's snapshot and timestamp."""
    command = [sys.executable, "-m", "orchestrator.fleet.freshness", "--source", str(tuf), "--folder", str(folder)]
    return [*command, "--key", str(secured.pki / ONLINE_KEY)]


def tails_command(store: str, broker: str, *, processes: int, qos: int = 1) -> list[str]:
    """The command line of the worker processes that serve the tails of the fleet's versions."""
    command = [sys.executable, "-c", _HEADTAIL, "tail", "serve", "--registry", store, "--broker", broker]
    return [*command, "--processes", str(processes), "--qos", str(qos)]


def enrolment_command(secured: Secured, store: str, *, port: int, files_port: int) -> list[str]:
    """The command line of the server where devices enrol."""
    command = [sys.executable, "-c", _HEADTAIL, "pki", "serve", str(secured.pki), "--store", store]
    command += ["--public-host", secured.public_host, "--host", secured.host, "--port", str(port)]
    command += ["--device-port", str(secured.device_port), "--service-port", str(secured.service_port)]
    if secured.trust is not None:
        command += ["--trust", str(secured.trust)]
    if secured.tuf is not None:
        command += ["--tuf", str(secured.tuf), "--tuf-url", f"https://{secured.public_host}:{files_port}/tuf"]
    return command
