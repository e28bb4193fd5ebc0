"""A broker for the fleet: mosquitto with a generated configuration, the embedded one, or any by URL."""

import logging
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from device_profiles.errors import EdgeError
from edge_runtime.broker_url import is_loopback
from orchestrator.broker_access import AccessOptions, device_rules, listener_lines, service_rules
from orchestrator.leash import Leash, held_back

log = logging.getLogger(__name__)
_START_TIMEOUT_S = 10.0
EMBEDDED_WARNING = (
    "the embedded broker (iotcore) delays small QoS 1 messages by 44 ms and knows no access rules: "
    "use QoS 0 for offload, or install mosquitto (apt install mosquitto)"
)


class BrokerError(EdgeError):
    """No broker could be started."""


class InsecureError(BrokerError):
    """A broker without access control would be reachable from other machines."""


@dataclass(frozen=True)
class BrokerOptions:
    """How the broker listens. Loopback by default; `port` 0 takes a free one."""

    host: str = "127.0.0.1"
    port: int = 1883
    max_packet_bytes: int = 4 << 20
    max_inflight_messages: int = 1000
    nodelay: bool = True
    persistence: Path | None = None  # folder for mosquitto's own snapshot, every second; none kept when null
    access: AccessOptions | None = None  # certificates and rules; it then says where the broker listens
    insecure: bool = False  # listen without access control although other machines may reach `host`


def check_reach(options: BrokerOptions) -> None:
    """Refuse to serve other machines without access control.

    Raises:
        InsecureError: `host` is no loopback address and nothing says that this is meant.
    """
    if not options.insecure and not is_loopback(f"mqtt://{options.host or '0.0.0.0'}"):
        raise InsecureError(
            f"Wanted certificates for a broker that others reach at {options.host}, found none. Make them (headtail pki "
            "init) and start it with --pki, or say --insecure where nobody else is on that network."
        )


def mosquitto_configuration(options: BrokerOptions, port: int, rules: Path | None = None) -> str:
    """The text of a mosquitto 2.x configuration file; `rules` is the folder of the access rules, where there are any."""
    anonymous = [f"listener {port} {options.host}", "allow_anonymous true"]
    lines = [
        *(anonymous if options.access is None or rules is None else listener_lines(options.access, rules)),
        # Without it, QoS 1 waits 40 ms for the peer's delayed acknowledgement (Nagle).
        f"set_tcp_nodelay {'true' if options.nodelay else 'false'}",
        f"max_packet_size {options.max_packet_bytes}",
        f"max_inflight_messages {options.max_inflight_messages}",
        "max_queued_messages 10000",
        "log_dest stderr",
        "log_type error",
        "log_type warning",
    ]
    if options.persistence is None:
        lines.append("persistence false")
    else:
        lines += ["persistence true", f"persistence_location {options.persistence}/", "autosave_interval 1"]
    return "\n".join(lines) + "\n"


def find_mosquitto() -> str | None:
    """Path of the mosquitto program; Debian puts it where a user's PATH often does not look."""
    return shutil.which("mosquitto", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that nobody listens on now.

    Raises:
        BrokerError: Not an address of this machine.
    """
    with socket.socket() as probe:
        try:
            probe.bind((host, 0))
        except OSError as error:
            raise BrokerError(
                f"Wanted an IPv4 address of this machine to listen on, found {host!r}: {error}."
            ) from error
        return int(probe.getsockname()[1])


class MosquittoBroker:
    """A mosquitto process with a configuration in a folder of its own; both end with `close`, the process also with its owner.

    Args:
        options: How it listens.
        leash: Of the owner, where that holds other processes as well; one of its own when null.

    Raises:
        BrokerError: mosquitto is not installed, or does not listen within 10 s.
    """

    def __init__(self, options: BrokerOptions | None = None, leash: Leash | None = None) -> None:
        self._options = options or BrokerOptions()
        program = find_mosquitto()
        if program is None:
            raise BrokerError("Wanted mosquitto, found none. Install it (apt install mosquitto) or use --embedded.")
        access = self._options.access
        if access is None:
            check_reach(self._options)
        self._host = self._options.host if access is None else access.host
        self.port = access.service_port if access is not None else self._options.port or free_port(self._host)
        self._folder = Path(tempfile.mkdtemp(prefix="headtail-broker."))
        self._folder.chmod(0o755)  # mosquitto gives up root and must still read its configuration
        self._program = program
        self._process: subprocess.Popen[bytes] | None = None
        self._leash, self._own_leash = leash or Leash(), leash is None
        try:
            self.start()
        except BaseException:  # Ctrl-C too: the process is in a session of its own
            self.close()
            raise

    @property
    def url(self) -> str:
        """Where clients on this machine connect."""
        plain = _local_url(self._host, self.port)  # with certificates, services add their own to it
        return plain if self._options.access is None else plain.replace("mqtt://", "mqtts://")

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._process.pid if self._process else None

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start, or start again after `stop`, on the same port.

        Raises:
            BrokerError: It ended at once, or does not listen.
        """
        check_free(self._host, self.port)
        configuration = self._folder / "mosquitto.conf"
        if self._options.access is not None:
            tenant = self._options.access.tenant
            (self._folder / "devices.acl").write_text(device_rules(tenant))
            (self._folder / "services.acl").write_text(service_rules(tenant))
        configuration.write_text(mosquitto_configuration(self._options, self.port, self._folder))
        with (self._folder / "log").open("ab") as output, held_back():
            self._process = subprocess.Popen(
                [self._program, "-c", str(configuration)],
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C ends its owner, which then ends it in order
            )
            self._leash.hold(self._process.pid)
        _wait_listening(self._host, self.port, self._process, self._folder / "log")

    def reload(self) -> None:
        """Read rules and certificates again, the list of revoked ones among them; connections stay."""
        if self._process is not None:
            self._process.send_signal(signal.SIGHUP)

    def stop(self, *, kill: bool = False) -> None:
        """End the process; with `kill` as a crash would."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._leash.let_go(self._process.pid)
        self._process = None

    def wait(self) -> int:
        """Wait for the process to end; its exit status."""
        return self._process.wait() if self._process else 0

    def close(self) -> None:
        """End the process and remove its folder."""
        self.stop()
        if self._own_leash:
            self._leash.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> "MosquittoBroker":
        """Runs already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()


def embedded_configuration(options: BrokerOptions, port: int) -> str:
    """The text of a rumqttd configuration file with one MQTT 5 listener."""
    return f"""id = 0
[router]
id = 0
max_connections = 10000
max_outgoing_packet_count = 200
max_segment_size = 104857600
max_segment_count = 10
[v5.1]
name = "headtail"
listen = "{options.host}:{port}"
next_connection_delay_ms = 1
[v5.1.connections]
connection_timeout_ms = 60000
max_payload_size = {options.max_packet_bytes}
max_inflight_count = {min(options.max_inflight_messages, 500)}
dynamic_filters = true
"""


class EmbeddedBroker:
    """rumqttd out of the package iotcore, in a child process that ends with this one or with `close`.

    Raises:
        BrokerError: iotcore is not installed, or it does not listen.
    """

    def __init__(self, options: BrokerOptions | None = None) -> None:
        options = options or BrokerOptions()
        if options.access is not None:
            raise InsecureError(
                "Wanted certificates and access rules, found the embedded broker, which has none. Install mosquitto."
            )
        check_reach(options)
        try:
            import iotcore
        except ModuleNotFoundError as error:
            raise BrokerError(
                "Wanted the embedded broker, found no iotcore. Install it (pip install iotcore) or mosquitto."
            ) from error
        log.warning("%s", EMBEDDED_WARNING)
        self._host = options.host
        self.port = options.port or free_port(options.host)
        self._ended = threading.Event()
        self._folder = Path(tempfile.mkdtemp(prefix="headtail-broker."))
        configuration = self._folder / "rumqttd.toml"
        configuration.write_text(embedded_configuration(options, self.port))
        self._broker: Any = iotcore.Broker(config_path=str(configuration))
        try:
            self._broker.start(timeout=_START_TIMEOUT_S)
        except (OSError, RuntimeError) as error:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise BrokerError(
                f"Wanted the embedded broker on port {self.port}, found: {error}. Try --port 0."
            ) from error

    @property
    def url(self) -> str:
        """Where clients on this machine connect."""
        return _local_url(self._host, self.port)

    def wait(self) -> int:
        """Wait until closed or interrupted."""
        self._ended.wait()
        return 0

    def close(self) -> None:
        """End the process and remove its folder."""
        self._ended.set()
        self._broker.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> "EmbeddedBroker":
        """Runs already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()


def start_broker(
    options: BrokerOptions | None = None, *, embedded: bool = False, leash: Leash | None = None
) -> MosquittoBroker | EmbeddedBroker:
    """Mosquitto where it is installed, else the embedded broker with a warning; `leash` as `MosquittoBroker` has it.

    Raises:
        BrokerError: Neither could be started.
    """
    if embedded or find_mosquitto() is None:
        return EmbeddedBroker(options)
    return MosquittoBroker(options, leash)


def _local_url(host: str, port: int) -> str:
    """Where clients on this machine reach a broker that listens on `host`."""
    return f"mqtt://{'127.0.0.1' if host in ('0.0.0.0', '') else host}:{port}"


def check_free(host: str, port: int, *, instead: str = "Try --port 0.") -> None:
    """Refuse a port that someone else listens on: the program would end, and the other one answer in its place.

    Raises:
        BrokerError: It is taken, or the address is not this machine's; `instead` says what to do.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            raise BrokerError(f"Wanted to listen on {host}:{port}, found: {error}. {instead}") from error


def _wait_listening(host: str, port: int, process: subprocess.Popen[bytes], output: Path) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    address = "127.0.0.1" if host in ("0.0.0.0", "") else host
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            socket.create_connection((address, port), timeout=0.2).close()
            return
        except OSError:
            time.sleep(0.01)
    found = output.read_text(errors="replace").strip().splitlines()[-3:]
    raise BrokerError(
        f"Wanted mosquitto to listen on {host}:{port}, found: {' | '.join(found) or 'nothing'}. "
        "Is the port taken? Try --port 0."
    )
