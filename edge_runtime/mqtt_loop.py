"""The network loop below `MqttLink`: paho's functions for external loops, driven by our thread or by a waiting caller.

paho's own `loop_start` hands every packet from thread to thread, which costs more than the packet. Here whoever
publishes also writes to the socket, and a caller that waits for one answer reads the socket itself meanwhile. Messages are
taken off the socket here (`mqtt_stream`); paho is given the other packets.
"""

import contextlib
import logging
import os
import random
import select
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from edge_runtime.mqtt_stream import FedClient, Message, PacketStream

log = logging.getLogger(__name__)
MAX_REST_BYTES = 8 << 20  # of packets that wait for the socket
_FIRST_PAUSE_S = 0.25
_MISC_EVERY_S = 0.5  # keepalive
_FULL = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)  # what a socket says that takes no more now
_READ_WRITE = select.POLLIN | select.POLLOUT
_LINGER_S = 0.05  # how long the thread leaves the socket alone after a caller has read it: the next one comes soon


class Ended(Protocol):
    """What a caller waits for: a `threading.Lock` that somebody releases, or whatever else behaves like one."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Whether it has happened, after at most `timeout` seconds."""

    def locked(self) -> bool:
        """Whether it has not happened yet."""


class NetworkLoop:
    """Connects, reads and writes for one paho client until stopped.

    Args:
        client: Configured, with `connect_async` done.
        receive: Called with each message, under the loop's locks.
        deliver: Called after every read, to hand over what was received.
        name: Of the broker, for the log.
        reconnect_max_s: The pause before the next attempt doubles up to this.
    """

    def __init__(
        self,
        client: FedClient,
        receive: Callable[[Message], None],
        deliver: Callable[[], None],
        *,
        name: str,
        reconnect_max_s: float,
    ) -> None:
        keep_heap()
        self._client = client
        self._receive = receive
        self._stream = PacketStream(client.feed)  # under the reader's lock
        self._deliver = deliver
        self._name = name
        self._reconnect_max_s = reconnect_max_s
        client.on_socket_register_write = _written_by_us
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._poll = select.poll()  # select() takes no descriptor above 1023
        self._poll.register(self._wake_read, select.POLLIN)
        self._watched: tuple[int | None, int] = (None, 0)  # the socket's descriptor, and the events
        # With TLS also held while reading: one connection's reads and writes share its state. Callbacks may publish.
        self._write_lock = threading.RLock()
        self._rest: deque[memoryview] = deque()  # of packets that `send` could not write at once
        self._acks = bytearray()  # packets that go with the next one
        self._rest_begun = False  # the first of them is partly written: nothing else may go before it
        self._reader = threading.Lock()  # held by whoever waits for the socket
        self._driver = threading.Lock()  # held by the caller that reads in the thread's place
        self._waiting = 0  # callers that wait for that caller or the thread
        self._resume = threading.Event()
        self._last_driven = 0.0
        self._last_misc = 0.0
        self._heard = False  # something, since paho was told
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mqtt", daemon=True)

    def start(self) -> None:
        """Begin to connect."""
        self._thread.start()

    def stop(self) -> None:
        """Write what is queued, end the thread."""
        self._stop.set()
        self.flush()
        self._resume.set()
        self.wake()
        if self._thread.is_alive():
            self._thread.join(timeout=10)
        if self._reader.acquire(timeout=1):  # nobody waits for the pipe any more
            read, write = self._wake_read, self._wake_write
            self._wake_read = self._wake_write = -1  # the numbers may soon be somebody else's
            os.close(read)
            os.close(write)
            self._reader.release()

    def flush(self) -> None:
        """Write what waits, in the calling thread; what the socket does not take, the reader writes later."""
        with self._write_lock:
            self._write()
        if self.wants_to_write:
            self.wake()

    def send(self, pieces: Sequence[bytes | memoryview], sock: object) -> bool:
        """Write a whole packet of QoS 0 without copying it, past paho's queue.

        Args:
            pieces: The packet's bytes.
            sock: The socket on which the session was made.

        Returns:
            False when the packets that wait already fill `MAX_REST_BYTES`.

        Raises:
            ConnectionError: That socket is gone.
        """
        with self._write_lock:
            if sock is None or self._client.socket() is not sock:
                raise ConnectionError("the connection was lost")
            if self._rest or self._client.want_write():
                self._write()
            full = bool(self._rest) or self._client.want_write()
            total = sum([len(piece) for piece in pieces])
            if full and sum(map(len, self._rest)) + total > MAX_REST_BYTES:
                return False
            if self._acks:  # one system call, and one TLS record, for both
                pieces, total = (bytes(self._acks), *pieces), total + len(self._acks)
                self._acks.clear()
            writer: Any = sock  # paho's socket type knows no sendmsg
            encrypted, sent = isinstance(sock, ssl.SSLSocket), 0
            if not full and not encrypted:
                with contextlib.suppress(BlockingIOError):
                    sent = writer.sendmsg(pieces)
                if sent == total:
                    return True
            self._rest_begun = self._rest_begun or sent > 0
            self._rest.append(memoryview(b"".join(pieces))[sent:])
            if encrypted and not full:  # TLS encrypts one buffer at a time
                self._write()
        if self.wants_to_write:
            self.wake()
        return True

    @property
    def wants_to_write(self) -> bool:
        """Whether something waits for the socket."""
        return bool(self._rest or self._acks) or self._client.want_write()

    def _write(self) -> None:
        """Write until the socket is full; packets never mix. Under the write lock."""
        if not self._rest_begun and self._client.want_write():
            self._client.loop_write()
        if self._acks:
            self._rest.append(memoryview(bytes(self._acks)))
            self._acks.clear()
        sock: Any = self._client.socket()
        while self._rest and sock is not None and (self._rest_begun or not self._client.want_write()):
            try:
                sent = sock.send(self._rest[0])
            except _FULL:
                # A TLS record may have been made of it: the same bytes must go next.
                self._rest_begun = self._rest_begun or isinstance(sock, ssl.SSLSocket)
                return
            except OSError:  # the reader will find the socket broken
                self._rest.clear()
                return
            self._rest_begun = sent < len(self._rest[0])
            if self._rest_begun:
                self._rest[0] = self._rest[0][sent:]
            else:
                self._rest.popleft()
        if not self._rest and self._client.want_write():
            self._client.loop_write()

    def wait_for(self, ended: Ended, timeout_s: float) -> bool:
        """Wait until `ended` is released and take it; read the socket meanwhile unless someone does already.

        Returns:
            False when the time is over.
        """
        deadline = time.monotonic() + timeout_s
        if self._driver.acquire(blocking=False):
            try:
                if self._drive(ended, deadline):
                    return True
            finally:
                self._last_driven = time.monotonic()
                self._driver.release()
                if self._waiting:
                    self._resume.set()
        self._waiting += 1  # only ever read as a hint
        try:
            return ended.acquire(timeout=max(0.0, deadline - time.monotonic()))
        finally:
            self._waiting -= 1

    def hand_back(self) -> None:
        """Have the thread read the socket at once, when the caller that read it will be long in coming back."""
        self._last_driven = 0.0
        self._resume.set()

    def _drive(self, ended: Ended, deadline: float) -> bool:
        """Read the socket until `ended`; False when the time is over or the connection is gone."""
        if not self._reader.acquire(blocking=False):
            self.wake()  # the thread waits for the socket: ask for its place
            if not self._reader.acquire(timeout=max(0.0, deadline - time.monotonic())):
                return ended.acquire(blocking=False)
        try:
            while not ended.acquire(blocking=False):
                left = deadline - time.monotonic()
                if left <= 0 or self._client.socket() is None or self._stop.is_set():
                    return False
                try:
                    self._step(left, ended)
                except Exception:  # the thread meets it too, and connects anew
                    log.exception("a packet of %s cannot be read", self._name)
                    return False
            return True
        finally:
            self._reader.release()

    def _run(self) -> None:
        """The thread: connect, serve the connection, wait longer and longer, again."""
        pause_s = _FIRST_PAUSE_S
        while not self._stop.is_set():
            try:
                with self._write_lock:
                    self._rest.clear()
                    self._acks.clear()
                    self._rest_begun = False
                with self._reader:
                    self._stream.clear()
                    self._client.reconnect()
                if self._serve_connection():
                    pause_s = _FIRST_PAUSE_S
            except OSError as error:
                log.info("no broker at %s: %s", self._name, error)
            except Exception:
                log.exception("the connection to %s broke", self._name)
            # Spread out, so that a fleet does not come back all at once.
            self._stop.wait(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, self._reconnect_max_s)

    def _serve_connection(self) -> bool:
        """Until the socket is gone; whether the broker had accepted the connection."""
        accepted = False
        while self._client.socket() is not None:
            with self._reader:
                self._step(1.0)
            accepted = accepted or self._client.is_connected()
            if self._driver.locked():
                self._stand_back()
        return accepted

    def _stand_back(self) -> None:
        """Leave the socket to a caller, and for a moment to the next one."""
        while not self._stop.is_set():
            self._resume.wait(_LINGER_S)
            self._resume.clear()
            recently = time.monotonic() < self._last_driven + _LINGER_S
            if not self._driver.locked() and (self._waiting or not recently or self._client.socket() is None):
                return

    def _step(self, timeout_s: float, ended: Ended | None = None) -> None:
        """Wait for the socket once, and read, hand over and write what there is.

        A caller whose wait has ended by it goes on at once: an acknowledgement is written with its next packet, or by
        the thread when it takes over again.
        """
        sock = self._client.socket()
        if sock is None:
            return
        descriptor = sock.fileno()
        try:
            self._watch(descriptor, _READ_WRITE if self.wants_to_write else select.POLLIN)
            ready = dict(self._poll.poll(1000 * timeout_s))
        except (OSError, ValueError):  # closed
            return
        if self._wake_read in ready:
            with contextlib.suppress(OSError):  # emptied by another reader
                os.read(self._wake_read, 4096)
        found = ready.get(descriptor, 0)
        if found & select.POLLNVAL:  # closed by a writer that found it broken
            return
        if found & ~select.POLLOUT:
            self._read(sock)
        now = time.monotonic()
        if now - self._last_misc >= _MISC_EVERY_S:
            self._last_misc = now
            if self._heard:
                self._heard = False
                self._client.heard(now)
            self._client.loop_misc()
        # Late, so that this thread soon lets go of the interpreter for the one that a message wakes.
        self._deliver()
        if self.wants_to_write and (ended is None or ended.locked()):
            with self._write_lock:
                self._write()

    def _read(self, sock: Any) -> None:  # noqa: ANN401 - paho's union
        """Read what there is of a packet, or of several; with TLS all that was decrypted, which no poll would tell of."""
        if not isinstance(sock, ssl.SSLSocket):
            self._read_some(sock)
            while self._stream.midway and self._read_some(sock):
                pass
            return
        with self._write_lock:
            self._read_some(sock)
            while (self._stream.midway or sock.pending()) and self._read_some(sock):
                pass

    def _read_some(self, sock: Any) -> bool:  # noqa: ANN401 - paho's union
        """Read once; False when there is no more now."""
        try:
            found = self._stream.receive(sock)
        except _FULL:
            return False
        except OSError as error:
            log.debug("cannot read from %s: %s", self._name, error)
            self._client.feed(b"")  # paho says that it is lost
            return False
        self._heard = True
        for message in found:
            if message.packet_id is not None:
                with self._write_lock:
                    self._acks += puback(message.packet_id)
            self._receive(message)
        return self._client.socket() is sock

    def _watch(self, descriptor: int, events: int) -> None:
        """Wait for these events of the socket from now on; under the reader's lock."""
        if (descriptor, events) == self._watched:
            return
        before = self._watched[0]
        if before not in (descriptor, None):
            self._poll.unregister(before)
        self._poll.register(descriptor, events)
        self._watched = (descriptor, events)

    def wake(self) -> None:
        """Have whoever waits for the socket look at what it waits for."""
        with contextlib.suppress(OSError):  # a full pipe wakes as well; a closed one has nobody to wake
            os.write(self._wake_write, b"w")


def keep_heap(block_bytes: int = 16 << 20) -> None:
    """Make glibc keep the memory of message buffers instead of giving each one back to the kernel.

    Freeing one large block raises malloc's thresholds for as long as the process lives (mallopt(3), M_MMAP_THRESHOLD);
    its pages are never touched. Without it, every 100 KB buffer costs page faults.
    """
    block = bytes(block_bytes)
    del block


def publish_header(topic: str, payload_bytes: int, *, packet_id: int | None) -> bytes:
    """Everything of an MQTT 5 PUBLISH packet before its payload: not retained, no properties, QoS 1 with a packet id."""
    name = topic.encode()
    rest = b"\0" if packet_id is None else packet_id.to_bytes(2, "big") + b"\0"
    left = 2 + len(name) + len(rest) + payload_bytes
    length = bytearray()
    while left > 127:
        length.append(left & 127 | 128)
        left >>= 7
    length.append(left)
    return b"".join((b"\x30" if packet_id is None else b"\x32", length, len(name).to_bytes(2, "big"), name, rest))


def puback(packet_id: int) -> bytes:
    """The acknowledgement of a message at QoS 1."""
    return b"\x40\x02" + packet_id.to_bytes(2, "big")


def _written_by_us(_client: object, _userdata: object, _sock: object) -> None:
    """Tells paho that the loop is not its own; `flush` writes."""
