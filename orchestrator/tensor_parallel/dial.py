"""Making links: a listener whose strangers cost nothing, and dialling with a deadline."""

import contextlib
import select
import socket
import time

from orchestrator.tensor_parallel.errors import PeerError
from orchestrator.tensor_parallel.peer_link import Link, receive_control, send_control
from orchestrator.tensor_parallel.protocol import Hello
from orchestrator.tensor_parallel.secure import Keys

HANDSHAKE_S = 3.0


class Listener:
    """Accepts members of the cluster; whoever is none, or stalls in the handshake, is dropped.

    Args:
        host: Address to listen on.
        port: 0 takes a free one.
        keys: The cluster's.

    Raises:
        PeerError: The port is in use, or the address is not of this machine.
    """

    def __init__(self, host: str, port: int, keys: Keys) -> None:
        self._keys = keys
        try:
            family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
            self._socket = socket.create_server((host, port), family=family, backlog=64)
        except (OSError, OverflowError) as error:  # OverflowError: no port has this number
            raise PeerError(f"Wanted to listen on {host}:{port}, found {error}. Choose another --listen.") from error
        self.port: int = self._socket.getsockname()[1]
        self._socket.setblocking(False)

    def fileno(self) -> int:
        """For poll."""
        return self._socket.fileno()

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()

    def accept(self, *, timeout_s: float) -> tuple[Link, Hello] | None:
        """The next member's link and greeting; null when none came in time, or a stranger did."""
        poll = select.poll()
        poll.register(self._socket.fileno(), select.POLLIN)
        if not poll.poll(timeout_s * 1000):
            return None
        try:
            raw, address = self._socket.accept()
        except OSError:
            return None  # it left again
        peer = f"{address[0]}:{address[1]}"
        try:
            link = Link(self._keys.accept(raw, peer, timeout_s=HANDSHAKE_S), peer, own_rank=0, epoch=-1)
        except PeerError:
            return None
        try:
            hello = receive_control(link, timeout_s=HANDSHAKE_S)
        except PeerError:
            hello = None
        if not isinstance(hello, Hello) or hello.epoch != link.epoch:
            link.close()
            return None
        return link, hello


def dial(address: tuple[str, int], keys: Keys, hello: Hello, *, peer: str, timeout_s: float) -> Link:
    """Connect, shake hands, greet.

    Raises:
        PeerError: Nobody listens there, or who does is no member.
    """
    end = time.monotonic() + timeout_s
    try:
        raw = socket.create_connection(address, timeout=timeout_s)
    except OSError as error:
        raise PeerError(f"Wanted node {peer} at {address[0]}:{address[1]}, found {error}. Does it run?") from error
    left = max(0.1, end - time.monotonic())
    link = Link(keys.connect(raw, peer, timeout_s=left), peer, own_rank=hello.rank, epoch=hello.epoch)
    try:
        send_control(link, hello, timeout_s=left)
    except PeerError:
        link.close()
        raise
    return link


def answers(address: tuple[str, int], keys: Keys, *, timeout_s: float) -> bool:
    """Whether a member of the cluster listens at an address."""
    with contextlib.suppress(OSError, PeerError):
        keys.connect(socket.create_connection(address, timeout=timeout_s), "a lost node", timeout_s=timeout_s).close()
        return True
    return False
