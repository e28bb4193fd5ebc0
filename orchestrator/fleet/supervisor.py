"""Keep a fleet's programs running: broker and services are started, watched, and started again when they end."""

import fcntl
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import msgspec

from edge_runtime.broker_url import tls_url
from orchestrator.broker import BrokerError, BrokerOptions, EmbeddedBroker, MosquittoBroker, check_free, start_broker
from orchestrator.broker_access import AccessOptions
from orchestrator.fleet.errors import FleetError
from orchestrator.fleet.fleet_file import FLEET_FILE, FleetFile
from orchestrator.fleet.registry import NewArtefact, register_artefact, register_version
from orchestrator.fleet.services import (
    ENROLMENT,
    ENROLMENT_PORT,
    FRESHNESS,
    SERVICES,
    TAILS,
    Secured,
    Settings,
    command_of,
    enrolment_command,
    freshness_command,
    is_installed,
    tails_command,
)
from orchestrator.fleet.store import Store, default_url, now_ms
from orchestrator.leash import Leash, held_back
from orchestrator.pki import ONLINE_KEY, Authority
from orchestrator.signing import read_key, read_trust_file

log = logging.getLogger(__name__)
_PAUSE_S = 0.5
_MAX_LOG_BYTES = 16 << 20
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
        trust: The key set that devices get when they enrol, where `options` has certificates.
        tuf: Folder of the TUF repository that vouches for their updates; they get its root.
        home_assistant: Announce the devices to Home Assistant.
        tails: So many worker processes that serve the tails of the fleet's versions.
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
        trust: Path | None = None,
        tuf: Path | None = None,
        home_assistant: bool = False,
        tails: int = 0,
        demo: int = 0,
    ) -> None:
        if tails < 0 or demo < 0:
            raise FleetError(f"Wanted 0 or more of --tails and --demo, found {tails} and {demo}.")
        access = options.access if options is not None else None
        if access is not None and demo:
            raise FleetError(
                "Wanted simulated devices in a fleet with certificates, found that they have none. Leave --demo out."
            )
        self._secured = None if access is None else secure(access, trust, tuf)
        self._folder = folder
        self._logs = folder / "logs"
        self._lock = _lock(folder)
        self.store = store or default_url(folder)
        self._running: list[_Running] = []
        self._leash = Leash()
        self._broker: MosquittoBroker | EmbeddedBroker | None = None
        self._crl = None if access is None else access.folder / "crl.pem"
        self._crl_seen = _changed(self._crl)
        try:
            self._broker = start_broker(options, leash=self._leash) if broker is None else None
            self.broker = broker or (self._broker.url if self._broker else "")
            if self._secured is not None:
                self.broker = service_url(self._secured)
                Authority(self._secured.pki).keep_store(self.store)
            settings = Settings(self.store, self.broker, folder, secured=self._secured, home_assistant=home_assistant)
            self._start_all(settings, ports or {}, tails, demo)
        except BaseException:
            self.close()
            raise
        described = FleetFile(store=self.store, broker=self.broker, pid=os.getpid(), ports=self.ports)
        (folder / FLEET_FILE).write_bytes(msgspec.json.encode(described))

    def _start_all(self, settings: Settings, wanted: dict[str, int], tails: int, demo: int) -> None:
        Store(self.store).close()  # makes the tables, so that the programs find them
        services = [service for service in SERVICES if not service.optional or is_installed(service)]
        used = {service.name: wanted.get(service.name, service.port) for service in services}
        for service in services:
            if (port := used[service.name]) is not None:
                host = settings.secured.host if settings.secured and service.for_devices else settings.host
                check_free(host, port, instead=f"Give another --{service.name}-port.")
            self._start(service.name, command_of(service, settings, port=port))
        if settings.secured is not None:
            used[ENROLMENT] = port = wanted.get(ENROLMENT, ENROLMENT_PORT)
            check_free(settings.secured.host, port, instead="Give another --enrol-port.")
            files_port = used["files"] or 0
            self._start(ENROLMENT, enrolment_command(settings.secured, self.store, port=port, files_port=files_port))
            if settings.secured.tuf is not None:
                self._start(FRESHNESS, freshness_command(settings.secured.tuf, settings.secured, settings.folder))
        if tails:
            self._start(TAILS, self._tails_command(settings, tails))
        self.services = [one.name for one in self._running]
        self.ports = {name: port for name, port in used.items() if port is not None}
        if demo:
            opened = Store(self.store)
            register_demo(opened)
            opened.close()
            self._start("devices", _demo_command(self.broker, settings.folder, demo))

    def _tails_command(self, settings: Settings, processes: int) -> list[str]:
        secured = settings.secured
        broker = self.broker if secured is None else service_url(secured, TAILS)
        qos = 0 if isinstance(self._broker, EmbeddedBroker) else 1  # it would raise every request to 1
        return tails_command(self.store, broker, processes=processes, qos=qos)

    @property
    def broker_pid(self) -> int | None:
        """Process id of the broker that was started."""
        return self._broker.pid if isinstance(self._broker, MosquittoBroker) else None

    @property
    def enrol_url(self) -> str | None:
        """Where devices enrol; null without certificates."""
        if self._secured is None:
            return None
        return f"https://{self._secured.public_host}:{self.ports[ENROLMENT]}"

    def watch(self) -> None:
        """Start again what has ended; call it every now and then."""
        if isinstance(self._broker, MosquittoBroker) and not self._broker.alive:
            log.warning("the broker has ended; starting it again")
            self._broker.stop()
            try:
                self._broker.start()
            except BrokerError as error:  # somebody else has its port: the next call tries again
                log.warning("the broker does not start: %s", error)
        self._tell_revoked()
        self._trim_logs()
        for one in self._running:
            status = one.process.poll()
            if status is not None and time.monotonic() - one.started > min(30, 2 ** min(one.starts, 8) * _PAUSE_S):
                log.warning("%s has ended with status %s; starting it again", one.name, status)
                self._leash.let_go(one.process.pid)
                with held_back():
                    one.process, one.started = self._spawn(one.name, one.command), time.monotonic()
                one.starts += 1

    def _tell_revoked(self) -> None:
        """Have the broker read the list of revoked certificates when it has changed."""
        changed = _changed(self._crl)
        if changed != self._crl_seen and isinstance(self._broker, MosquittoBroker):
            self._crl_seen = changed
            log.info("certificates were revoked; the broker reads the list")
            self._broker.reload()

    def _trim_logs(self) -> None:
        """Keep the newest part of logs that grow, and one part before it."""
        for path in self._logs.glob("*.log"):
            if path.stat().st_size > _MAX_LOG_BYTES:
                shutil.copyfile(path, path.with_suffix(".log.1"))
                os.truncate(path, 0)  # programs append: they go on at the beginning

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
        self._lock.close()

    def __enter__(self) -> "Supervisor":
        """Runs already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def _start(self, name: str, command: list[str]) -> None:
        with held_back():  # a signal in between would leave a process that nobody knows
            self._running.append(_Running(name, command, self._spawn(name, command)))

    def _spawn(self, name: str, command: list[str]) -> subprocess.Popen[bytes]:
        with (self._logs / f"{name}.log").open("ab") as output:
            process = subprocess.Popen(
                command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, start_new_session=True
            )
        self._leash.hold(process.pid)
        return process


def secure(access: AccessOptions, trust: Path | None, tuf: Path | None = None) -> Secured:
    """What services of a fleet with certificates are told.

    Raises:
        PkiError: No authority there.
        KeyFileError: Not a trust file, or no online key.
        UpdateRepositoryError: No TUF repository there whose root has enough signatures.
    """
    if trust is not None:
        read_trust_file(trust)
    if tuf is not None:
        from orchestrator.update_repository import UpdateRepository

        read_key(access.folder / ONLINE_KEY)
        UpdateRepository(tuf).newest_root()
    public = Authority(access.folder).hosts[0]
    ports = (access.device_port, access.service_port)
    held, repository = (None if path is None else path.resolve() for path in (trust, tuf))
    return Secured(access.folder, access.host, public, *ports, trust=held, tuf=repository)


def service_url(secured: Secured, name: str = "orchestrator") -> str:
    """Where the fleet's own programs connect, each by its certificate: on this machine where the certificate allows it, else by the public name."""
    authority = Authority(secured.pki)
    local = "127.0.0.1" if secured.host in ("0.0.0.0", "127.0.0.1") else secured.host
    host = local if local in authority.hosts else secured.public_host
    return tls_url(host, secured.service_port, authority.files(name))


def _lock(folder: Path) -> IO[bytes]:
    """One supervisor for each folder: it holds this file for as long as it lives."""
    try:
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        stream = (folder / "lock").open("ab")
    except OSError as error:
        raise FleetError(f"Wanted to keep a fleet in {folder}, found: {error}. Give another --folder.") from error
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        stream.close()
        raise FleetError(
            f"Wanted to run a fleet in {folder}, found one that runs there already. Give this one another --folder."
        ) from error
    return stream


def _changed(path: Path | None) -> int | None:
    return path.stat().st_mtime_ns if path is not None and path.is_file() else None


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
