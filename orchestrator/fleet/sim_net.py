"""Thousands of MQTT connections in one thread: non-blocking sockets, one epoll, one heap of timers."""

import contextlib
import errno
import heapq
import itertools
import select
import socket
import time
from collections.abc import Callable

Timer = Callable[[], None]


class Connection:
    """One TCP connection; its owner is called with what comes."""

    def __init__(
        self, net: "Net", address: tuple[str, int], on_open: Timer, on_data: Callable[[bytes], None], on_lost: Timer
    ) -> None:
        self._net, self._on_open, self._on_data, self._on_lost = net, on_open, on_data, on_lost
        self._sock = socket.socket()
        self._sock.setblocking(False)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._rest = b""
        self._connected = self._closed = False
        status = self._sock.connect_ex(address)
        if status not in (0, errno.EINPROGRESS):
            self._sock.close()
            self._closed = True
            net.call_later(0, on_lost)
            return
        self._descriptor = self._sock.fileno()
        net.watch(self._descriptor, self, select.EPOLLIN | select.EPOLLOUT)

    def send(self, data: bytes) -> None:
        """Write now, or as soon as the socket takes it."""
        if self._closed:
            return
        if not self._connected or self._rest:
            self._rest += data
            return
        try:
            sent = self._sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._lose()
            return
        if sent < len(data):
            self._rest = data[sent:]
            self._net.change(self._descriptor, select.EPOLLIN | select.EPOLLOUT)

    def handle(self, events: int) -> None:
        """Called by the net."""
        if events & (select.EPOLLERR | select.EPOLLHUP) and not events & select.EPOLLIN:
            self._lose()
            return
        if events & select.EPOLLOUT:
            self._write()
        if events & select.EPOLLIN and not self._closed:
            self._read()

    def close(self) -> None:
        """Close without telling the owner."""
        if not self._closed:
            self._closed = True
            self._net.forget(self._descriptor)
            self._sock.close()

    def _write(self) -> None:
        if not self._connected:
            if self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self._lose()
                return
            self._connected = True
            self._on_open()
        if self._rest and not self._closed:
            try:
                sent = self._sock.send(self._rest)
            except BlockingIOError:
                sent = 0
            except OSError:
                self._lose()
                return
            self._rest = self._rest[sent:]
        if not self._rest and not self._closed:
            self._net.change(self._descriptor, select.EPOLLIN)

    def _read(self) -> None:
        try:
            data = self._sock.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._on_data(data)
        else:
            self._lose()

    def _lose(self) -> None:
        if not self._closed:
            self.close()
            self._on_lost()


class Net:
    """The loop. Everything runs in the thread of `run`."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._connections: dict[int, Connection] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._stopped = False

    def call_later(self, delay_s: float, timer: Timer) -> None:
        """Call a function once, after a while."""
        heapq.heappush(self._timers, (time.monotonic() + delay_s, next(self._order), timer))

    def run(self, *, seconds: float | None = None) -> None:
        """Serve until `stop`, or for so long."""
        end = None if seconds is None else time.monotonic() + seconds
        while not self._stopped and (end is None or time.monotonic() < end):
            self._call_due()
            wait_s = self._timers[0][0] - time.monotonic() if self._timers else 0.5
            with contextlib.suppress(InterruptedError):
                for descriptor, events in self._epoll.poll(max(0.0, min(wait_s, 0.2)), 512):
                    connection = self._connections.get(descriptor)
                    if connection is not None:
                        connection.handle(events)

    def stop(self) -> None:
        """End `run` soon."""
        self._stopped = True

    def close(self) -> None:
        """Close every connection as a crash would."""
        for connection in list(self._connections.values()):
            connection.close()
        self._epoll.close()

    def watch(self, descriptor: int, connection: Connection, events: int) -> None:
        """For connections."""
        self._connections[descriptor] = connection
        self._epoll.register(descriptor, events)

    def change(self, descriptor: int, events: int) -> None:
        """For connections."""
        self._epoll.modify(descriptor, events)

    def forget(self, descriptor: int) -> None:
        """For connections."""
        self._connections.pop(descriptor, None)
        with contextlib.suppress(OSError, ValueError):
            self._epoll.unregister(descriptor)

    def _call_due(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            heapq.heappop(self._timers)[2]()
