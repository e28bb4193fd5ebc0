"""Hosts in network namespaces of their own, joined by a relay with delay, rate, loss, jitter and partition.

    with NetLab({"server": Access(), "device": parse_access("20mbit/15ms")}) as lab:
        with lab["server"].inside():                        # threads and children begun here live on that host
            broker = start_broker(host=lab["server"].address)
        done = lab["device"].run([sys.executable, "client.py", lab["server"].address])
        lab["device"].set(parse_access("1mbit/15ms"))       # at any time
        lab.partition(["device"])                           # alone; `heal` joins all again

It is real IPv4, so that any program runs unmodified. A host's access link ends at an ideal switch: one way between two
hosts takes the delays of both, so 20mbit/15ms beside a plain server gives a round trip of 15 ms. Needs root, a C
compiler and nsenter; `unavailable` says what is missing, and `orchestrator.link_proxy` stands in without.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from device_profiles.errors import EdgeError
from device_profiles.link import Link, parse_link

SOURCE = Path(__file__).parent / "relay.c"
MAX_HOSTS = 250
_CLONE_NEWNET = 0x40000000


class LabError(EdgeError):
    """The lab cannot be built here, or a host or setting does not exist."""


@dataclass(frozen=True)
class Access:
    """A host's link to the switch. Null rates have no limit; `delay_ms` is one way, `jitter_ms` the most that is added.

    `loss` is a share of packets, on each way. What would wait longer than `queue_ms` on the way down is dropped; on the
    way up the sender itself waits.
    """

    up_mbit: float | None = None
    down_mbit: float | None = None
    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    loss: float = 0.0
    queue_ms: float = 1000.0

    def __post_init__(self) -> None:
        rates = [rate for rate in (self.up_mbit, self.down_mbit) if rate is not None]
        times = (self.delay_ms, self.jitter_ms, self.queue_ms)
        if (
            not all(0 < rate < 1e6 for rate in rates)
            or not all(0 <= ms < 1e6 for ms in times)
            or not 0 <= self.loss <= 1
        ):
            raise LabError(f"Wanted positive rates, times >= 0 and a loss of 0 to 1, found {self}.")


@dataclass(frozen=True)
class Traffic:
    """What a host sent and received since the start; `lost` includes what a partition or a full queue dropped."""

    up_packets: int
    up_bytes: int
    up_lost: int
    down_packets: int
    down_bytes: int
    down_lost: int


def parse_access(text: str, *, loss: float = 0.0) -> Access:
    """An access link that gives the round trip of `20mbit/15ms` to a host without delay of its own.

    Raises:
        LinkError: As `device_profiles.link.parse_link`.
    """
    return access_of(parse_link(text), loss=loss)


def access_of(link: Link, *, loss: float = 0.0) -> Access:
    """The same from a link; each way of a round trip gets half of its jitter."""
    return Access(
        up_mbit=link.up_bytes_per_s * 8e-6,
        down_mbit=link.down_bytes_per_s * 8e-6,
        delay_ms=link.rtt_ms / 2,
        jitter_ms=link.jitter_ms / 2,
        loss=loss,
    )


def unavailable() -> str | None:
    """Why no lab can be built here; null when it can."""
    if os.geteuid() != 0:
        return "it needs root"
    if not Path("/dev/net/tun").exists():
        return "there is no /dev/net/tun"
    missing = [name for name in ("cc", "nsenter") if shutil.which(name) is None]
    return f"{', '.join(missing)} not found" if missing else None


class LabHost:
    """One host of a lab."""

    def __init__(self, lab: "NetLab", name: str, index: int, access: Access) -> None:
        self._lab, self._index = lab, index
        self.name, self.access, self.group = name, access, 0
        self.address = f"{lab.prefix}.{index + 1}"

    @property
    def namespace(self) -> str:
        """A path that `nsenter --net=` takes while the lab is open."""
        return self._lab.namespace_of(self._index)

    def set(self, access: Access) -> None:
        """Change the link now; packets that are under way keep their times."""
        self.access = access
        self._apply()

    def change(self, **settings: Any) -> None:
        """Change single fields of the link now, as `change(up_mbit=1.0)`."""
        self.set(replace(self.access, **settings))

    def command(self, arguments: Sequence[str | Path]) -> list[str]:
        """The command line that runs a program on this host."""
        return ["nsenter", f"--net={self.namespace}", "--", *map(str, arguments)]

    def popen(self, arguments: Sequence[str | Path], **options: Any) -> "subprocess.Popen[Any]":
        """Start a program on this host; its process id is that of the program."""
        return subprocess.Popen(self.command(arguments), **options)

    def run(self, arguments: Sequence[str | Path], **options: Any) -> "subprocess.CompletedProcess[Any]":
        """Run a program on this host to its end."""
        return subprocess.run(self.command(arguments), **options)

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """The calling thread is on this host: its new sockets, threads and child processes are, and stay there."""
        with open("/proc/thread-self/ns/net") as before, open(self.namespace) as here:
            _set_namespace(here.fileno())
            try:
                yield
            finally:
                _set_namespace(before.fileno())

    def traffic(self) -> Traffic:
        """Counters since the start."""
        return Traffic(*map(int, self._lab.tell(f"stats {self._index}").split()))

    def _apply(self) -> None:
        one = self.access
        up, down = ((rate or 0.0) * 1e6 for rate in (one.up_mbit, one.down_mbit))
        times = f"{1e3 * one.delay_ms:.3f} {1e3 * one.jitter_ms:.3f} {1e6 * one.loss:.3f} {1e3 * one.queue_ms:.3f}"
        self._lab.tell(f"set {self._index} {up:.3f} {down:.3f} {times} {self.group}")


class NetLab:
    """Hosts by name; see the module.

    Args:
        hosts: Name -> access link, at most 250.
        seed: Of loss and jitter.
        prefix: First three parts of the addresses. Labs do not see each other: all may use the same.

    Raises:
        LabError: Not possible here, or no hosts.
    """

    def __init__(self, hosts: Mapping[str, Access], *, seed: int = 0, prefix: str = "10.77.0") -> None:
        if not 1 <= len(hosts) <= MAX_HOSTS:
            raise LabError(f"Wanted 1 to {MAX_HOSTS} hosts, found {len(hosts)}.")
        why = unavailable()
        if why is not None:
            raise LabError(f"Wanted emulated links, found that {why}. orchestrator.link_proxy stands in without root.")
        self.prefix = prefix
        self._lock = threading.Lock()
        self._relay = subprocess.Popen(
            [str(build_relay()), prefix, str(len(hosts)), str(seed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C ends its owner, whose end closes its input
        )
        self._namespaces = self._read().split()
        self.hosts = {name: LabHost(self, name, index, access) for index, (name, access) in enumerate(hosts.items())}
        for host in self.hosts.values():
            host.set(host.access)

    def __getitem__(self, name: str) -> LabHost:
        """The host of that name."""
        if name not in self.hosts:
            raise LabError(f"Wanted a host of {', '.join(self.hosts)}, found {name!r}.")
        return self.hosts[name]

    def partition(self, *groups: Sequence[str]) -> None:
        """Let packets pass only within each group of names, and among all hosts that no group names."""
        number = {name: index + 1 for index, names in enumerate(groups) for name in names}
        for name in number:
            self[name]
        for host in self.hosts.values():
            host.group = number.get(host.name, 0)
            host.set(host.access)

    def heal(self) -> None:
        """End every partition."""
        self.partition()

    def namespace_of(self, index: int) -> str:
        """Path of a host's namespace."""
        return f"/proc/{self._relay.pid}/fd/{self._namespaces[index]}"

    def tell(self, command: str) -> str:
        """Send the relay a command; its answer.

        Raises:
            LabError: It refused, or is gone.
        """
        with self._lock:
            try:
                if self._relay.stdin is not None:
                    self._relay.stdin.write(command + "\n")
                    self._relay.stdin.flush()
            except (OSError, ValueError) as error:
                raise LabError(f"Wanted the relay, found that it is gone: {error}.") from error
            answer = self._read()
        if answer.startswith("error"):
            raise LabError(f"Wanted a command that the relay knows, found {answer}.")
        return answer

    def close(self) -> None:
        """End the relay, and with it the links; programs on the hosts live on without a network."""
        for stream in (self._relay.stdin, self._relay.stdout, self._relay.stderr):
            if stream is not None:
                stream.close()
        try:
            self._relay.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._relay.kill()
            self._relay.wait()

    def __enter__(self) -> "NetLab":
        """Already running."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def _read(self) -> str:
        line = self._relay.stdout.readline() if self._relay.stdout is not None else ""
        if not line:
            said = self._relay.stderr.read().strip() if self._relay.stderr is not None else ""
            self.close()
            raise LabError(f"Wanted an answer of the relay, found its end: {said or 'no message'}.")
        return line.strip()


@functools.cache
def build_relay() -> Path:
    """Compile the relay once for each source text and machine; where the program lies.

    Raises:
        LabError: The compiler refused it.
    """
    name = hashlib.sha256(SOURCE.read_bytes() + os.uname().machine.encode()).hexdigest()[:16]
    program = Path(tempfile.gettempdir(), f"headtail-netlab-{os.geteuid()}", name)
    if program.is_file():
        return program
    program.parent.mkdir(mode=0o700, exist_ok=True)
    if program.parent.stat().st_uid != os.geteuid():
        raise LabError(f"Wanted a folder of this user for the relay, found another's: {program.parent}.")
    partial = program.with_suffix(f".{os.getpid()}")
    flags = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror"]
    done = subprocess.run(["cc", *flags, "-o", partial, SOURCE], capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError(f"Wanted to compile {SOURCE}, found: {done.stderr[-2000:]}")
    partial.replace(program)
    return program


def _set_namespace(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET):
        raise LabError(f"Wanted to enter a host, found: {os.strerror(ctypes.get_errno())}.")
