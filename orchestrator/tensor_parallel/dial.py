"""Making links: a listener that strangers cannot hold up, and dialling with a deadline."""

import collections
import contextlib
import select
import socket
import ssl
import threading
import time

from orchestrator.tensor_parallel.errors import PeerError
from orchestrator.tensor_parallel.peer_link import Link, send_control
from orchestrator.tensor_parallel.protocol import CONTROL_LIMIT, Hello, Kind, decode_control
from orchestrator.tensor_parallel.secure import Keys, tune

HANDSHAKE_S = 3.0  # until whoever connected must have shaken hands and greeted
DIAL_S = HANDSHAKE_S + 2.0  # more than the side that listens allows: its limit decides
CONNECT_S = 2.0  # of it, until the connection stands: a host that is gone does not answer
_PENDING = 64  # connections in their handshake; the oldest makes room
_READY = 64  # members that nobody took yet; the oldest makes room
_PAUSE_S = 0.1  # after an accept that failed, say for want of descriptors


class Listener:
    """Accepts members of the cluster; whoever is none, or stalls in the handshake, is dropped.

    Handshakes run side by side on a thread of their own: a stranger costs that thread a handshake, and takes no time of
    whoever calls `accept`, and none of a member that connects beside it.

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
        self._lock = threading.Lock()
        self._ready: collections.deque[tuple[Link, Hello]] = collections.deque()
        self._told, self._tell = socket.socketpair()  # readable while a member waits
        self._wake, self._end = socket.socketpair()  # readable when all ends
        self._thread = threading.Thread(target=self._run, name="handshakes", daemon=True)
        self._thread.start()

    def fileno(self) -> int:
        """For poll: readable while a member waits for `accept`."""
        return self._told.fileno()

    def close(self) -> None:
        """Stop listening, and drop who was not accepted yet."""
        self._end.close()
        self._thread.join()
        for link, _ in self._ready:
            link.close()
        for one in (self._socket, self._told, self._tell, self._wake):
            one.close()

    def accept(self, *, timeout_s: float) -> tuple[Link, Hello] | None:
        """The next member's link and greeting; null when none came in time."""
        poll = select.poll()
        poll.register(self._told.fileno(), select.POLLIN)
        if not poll.poll(timeout_s * 1000):
            return None
        with self._lock:
            self._told.recv(1)
            return self._ready.popleft()

    def _run(self) -> None:
        pending: list[_Pending] = []
        listens_at = 0.0  # monotonic
        while True:
            now = time.monotonic()
            poll = select.poll()
            poll.register(self._wake.fileno(), select.POLLIN)
            if now >= listens_at:
                poll.register(self._socket.fileno(), select.POLLIN)
            for one in pending:
                poll.register(one.fileno(), one.events)
            until = [one.end_s for one in pending] + [listens_at] * (now < listens_at)
            found = dict(poll.poll(max(0.0, min(until) - now) * 1000 + 1 if until else None))
            if self._wake.fileno() in found:
                break
            if self._socket.fileno() in found and not self._begin(pending):
                listens_at = time.monotonic() + _PAUSE_S
            pending = [one for one in pending if not self._advance(one, came=one.fileno() in found)]
        for one in pending:
            one.close()

    def _begin(self, pending: "list[_Pending]") -> bool:
        """Take who connects; false when that failed."""
        try:
            raw, address = self._socket.accept()
        except OSError:  # it left again, or there are no descriptors
            return False
        with contextlib.suppress(OSError, ValueError):  # ssl.SSLError is an OSError
            pending.append(_Pending(raw, self._keys, f"{address[0]}:{address[1]}"))
        if len(pending) > _PENDING:
            pending.pop(0).close()
        return True

    def _advance(self, one: "_Pending", *, came: bool) -> bool:
        """Go on with a handshake; true when it ended, well or not."""
        try:
            hello = one.advance() if came else None
        except (OSError, ValueError, PeerError):
            one.close()
            return True
        if hello is not None and one.link is not None:
            self._offer(one.link, hello)
            return True
        if time.monotonic() < one.end_s:
            return False
        one.close()
        return True

    def _offer(self, link: Link, hello: Hello) -> None:
        with self._lock:
            if len(self._ready) >= _READY:
                self._ready.popleft()[0].close()
            else:
                self._tell.send(b"m")
            self._ready.append((link, hello))


class _Pending:
    """A connection that did not greet yet."""

    def __init__(self, raw: socket.socket, keys: Keys, peer: str) -> None:
        self.peer, self.events, self.end_s = peer, select.POLLIN, time.monotonic() + HANDSHAKE_S
        self.link: Link | None = None
        try:
            tune(raw)
            raw.setblocking(False)
            self._socket = keys.server.wrap_socket(raw, server_side=True, do_handshake_on_connect=False)
        except (OSError, ValueError):
            raw.close()
            raise

    def fileno(self) -> int:
        """For poll."""
        return self._socket.fileno()

    def close(self) -> None:
        """Drop it."""
        with contextlib.suppress(OSError):
            self._socket.close()

    def advance(self) -> Hello | None:
        """Go as far as what is there allows; the greeting when all is done."""
        if self.link is None:
            try:
                self._socket.do_handshake()
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as error:
                self.events = select.POLLIN if isinstance(error, ssl.SSLWantReadError) else select.POLLOUT
                return None
            self.events = select.POLLIN
            self.link = Link(self._socket, self.peer, own_rank=0, epoch=-1)
            self.link.begin_receive(Kind.CONTROL, sequence=None, limit=CONTROL_LIMIT)
        if not self.link.fill():
            return None
        hello = decode_control(self.link.taken(), self.peer)
        if not isinstance(hello, Hello) or hello.epoch != self.link.epoch:
            raise PeerError(f"Wanted a greeting from {self.peer}, found {type(hello).__name__}.")
        return hello


def dial(
    address: tuple[str, int], keys: Keys, hello: Hello, *, peer: str, timeout_s: float, connect_s: float | None = None
) -> Link:
    """Connect, shake hands, greet.

    Args:
        address: Host and port.
        keys: The cluster's.
        hello: What to greet with.
        peer: The node's name, for messages.
        timeout_s: For all of it.
        connect_s: Until the connection stands; null allows `timeout_s`.

    Raises:
        PeerError: Nobody listens there, or who does is no member.
    """
    end = time.monotonic() + timeout_s
    try:
        raw = socket.create_connection(address, timeout=timeout_s if connect_s is None else min(connect_s, timeout_s))
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
