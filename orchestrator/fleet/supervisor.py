"""Keep a fleet's programs running: broker and services are started, watched, and started again when they end."""

import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from orchestrator.broker import BrokerOptions, MosquittoBroker, start_broker
from orchestrator.fleet.errors import FleetError
from orchestrator.fleet.fleet_file import FLEET_FILE, FleetFile
from orchestrator.fleet.leash import Leash
from orchestrator.fleet.registry import NewArtefact, register_artefact, register_version
from orchestrator.fleet.services import SERVICES, Settings, command_of, is_installed
from orchestrator.fleet.store import Store, default_url, now_ms

log = logging.getLogger(__name__)
_PAUSE_S = 0.5
DEMO_VERSIONS = ("demo@1", "demo@2", "demo@bad")


@dataclass
class _Running:
    name: str
    command: list[str]
    process: subprocess.Popen[bytes]
    started: float = field(default_factory=time.monotonic)
    starts: int = 1


class Supervisor:
    """Everything that `headtail fleet up` starts; ends with `close`.

    Args:
        folder: Database, logs and the file that commands read.
        store: URL of the database; a file in the folder when null.
        broker: URL of a broker that runs already; null starts one.
        options: Of the broker that is started.
        ports: Of services by name, instead of their usual ones.
        demo: So many simulated devices, and versions to roll out to them.
    """

    def __init__(
        self,
        folder: Path,
        *,
        store: str | None = None,
        broker: str | None = None,
        options: BrokerOptions | None = None,
        ports: dict[str, int] | None = None,
        demo: int = 0,
    ) -> None:
        self._folder = folder
        self._logs = folder / "logs"
        self._logs.mkdir(parents=True, exist_ok=True)
        self.store = store or default_url(folder)
        opened = Store(self.store)
        self._running: list[_Running] = []
        self._broker = start_broker(options) if broker is None else None
        self._leash = Leash()
        self.broker = broker or (self._broker.url if self._broker else "")
        settings = Settings(store=self.store, broker=self.broker, folder=folder)
        wanted = ports or {}
        self.services = [service for service in SERVICES if not service.optional or is_installed(service)]
        try:
            for service in self.services:
                self._start(service.name, command_of(service, settings, port=wanted.get(service.name)))
            if demo:
                register_demo(opened)
                self._start("devices", _demo_command(self.broker, folder, demo))
            self._hold()
        except BaseException:
            self.close()
            raise
        used = {service.name: wanted.get(service.name, service.port) for service in self.services}
        self.ports = {name: port for name, port in used.items() if port is not None}
        described = FleetFile(store=self.store, broker=self.broker, pid=os.getpid(), ports=self.ports)
        (folder / FLEET_FILE).write_bytes(msgspec.json.encode(described))
        opened.close()

    @property
    def broker_pid(self) -> int | None:
        """Process id of the broker that was started."""
        return self._broker.pid if isinstance(self._broker, MosquittoBroker) else None

    def watch(self) -> None:
        """Start again what has ended; call it every now and then."""
        if isinstance(self._broker, MosquittoBroker) and not self._broker.alive:
            log.warning("the broker has ended; starting it again")
            self._broker.stop()
            self._broker.start()
        for one in self._running:
            status = one.process.poll()
            if status is not None and time.monotonic() - one.started > min(30, 2**one.starts * _PAUSE_S):
                log.warning("%s has ended with status %s; starting it again", one.name, status)
                one.process, one.started, one.starts = (
                    self._spawn(one.name, one.command),
                    time.monotonic(),
                    one.starts + 1,
                )
        self._hold()

    def pid(self, name: str) -> int:
        """Process id of a service.

        Raises:
            FleetError: No such service runs.
        """
        for one in self._running:
            if one.name == name:
                return one.process.pid
        raise FleetError(f"Wanted a service {name!r}, found {', '.join(one.name for one in self._running)}.")

    def close(self) -> None:
        """End everything, politely at first."""
        for one in self._running:
            if one.process.poll() is None:
                one.process.send_signal(signal.SIGTERM)
        for one in self._running:
            try:
                one.process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                one.process.kill()
                one.process.wait()
        if self._broker is not None:
            self._broker.close()
        self._leash.close()
        (self._folder / FLEET_FILE).unlink(missing_ok=True)

    def __enter__(self) -> "Supervisor":
        """Runs already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def _hold(self) -> None:
        """What runs ends when this process is killed."""
        pids = [one.process.pid for one in self._running if one.process.poll() is None]
        self._leash.hold([*pids, *([self.broker_pid] if self.broker_pid is not None else [])])

    def _start(self, name: str, command: list[str]) -> None:
        self._running.append(_Running(name, command, self._spawn(name, command)))

    def _spawn(self, name: str, command: list[str]) -> subprocess.Popen[bytes]:
        with (self._logs / f"{name}.log").open("ab") as output:
            return subprocess.Popen(
                command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, start_new_session=True
            )


def register_demo(store: Store) -> None:
    """Versions for simulated devices: `demo@bad` fails on all of them. There is no model behind them."""
    with store.write() as session:
        for index, name in enumerate(DEMO_VERSIONS):
            artefact = NewArtefact(
                id=f"{index + 1:064x}",
                role="whole",
                model="demo",
                engine="onnxruntime",
                target="simulated",
                size=2_000_000,
                zip_sha256=f"{index + 1:064x}",
                path="",
            )
            register_artefact(session, artefact, now_ms=now_ms())
            register_version(session, name, whole=artefact.id, counter=index, actor="demo", now_ms=now_ms())


def _demo_command(broker: str, folder: Path, count: int) -> list[str]:
    module = "orchestrator.fleet.simulator"
    command = [sys.executable, "-m", module, "--broker", broker, "--devices", str(count), "--state"]
    return [*command, str(folder / "devices.jsonl"), "--bad", "demo@bad=1", "--drops-per-hour", "2"]
