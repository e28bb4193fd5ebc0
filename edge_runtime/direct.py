"""The direct data plane for large tensors: ZeroMQ with CURVE between device and tail, negotiated over MQTT (docs/wire.md).

A socket belongs to one thread; others put messages into its outbox. Needs pyzmq (extra `direct`).
"""

import contextlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

import msgspec
import zmq
from zmq.utils import z85

from device_profiles.errors import EdgeError
from edge_runtime.mqtt import MqttError, MqttLink
from edge_runtime.tail_messages import DirectOffer
from edge_runtime.wire import FLAG_DIRECT, Envelope, LimitError, Reply, Status, pack_envelope

log = logging.getLogger(__name__)
MAX_MESSAGE_BYTES = 64 << 20
PART_BYTES = 256 << 10  # of a message: the other end decrypts one while this one encrypts the next
_MAX_WAITING = 64  # messages that wait for the socket
_ASK_AGAIN_S = 2.0
_REFUSED_PAUSE_S = 30.0
_HELLO_BUDGET_MS = 2000

Parts = Sequence["bytes | memoryview"]


def split_parts(pieces: Parts, part_bytes: int = PART_BYTES) -> list[bytes | memoryview]:
    """A message's pieces as parts of at most `part_bytes`; only pieces that are small are copied."""
    parts: list[bytes | memoryview] = []
    small: list[bytes | memoryview] = []
    for piece in pieces:
        if len(piece) <= part_bytes // 8:
            small.append(piece)
            continue
        if small:
            parts.append(b"".join(small))
            small = []
        view = memoryview(piece).cast("B")
        parts += [view[start : start + part_bytes] for start in range(0, len(view), part_bytes)]
    if small:
        parts.append(b"".join(small))
    return parts


def join_parts(frames: Sequence["zmq.Frame"]) -> memoryview:
    """The message of which these are the parts.

    Raises:
        LimitError: More than `MAX_MESSAGE_BYTES`.
    """
    size = sum([len(frame) for frame in frames])
    if size > MAX_MESSAGE_BYTES:
        raise LimitError(f"Wanted a message of at most {MAX_MESSAGE_BYTES} B, found {size} B.")
    if len(frames) == 1:
        return frames[0].buffer
    return memoryview(b"".join([frame.buffer for frame in frames]))


class SocketThread:
    """Owns a ZeroMQ socket: sends what is put in, hands over what arrives.

    Args:
        context: Of the socket, and of nothing else: it ends with this.
        socket: Bound or connected.
        on_message: Called in the thread with the parts of a message: quick, and never blocking.
        name: Of the thread.
    """

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        socket: "zmq.Socket[bytes]",
        on_message: Callable[[list[zmq.Frame]], None],
        *,
        name: str,
    ) -> None:
        self._context, self._socket, self._on_message = context, socket, on_message
        self._outbox: deque[Parts] = deque(maxlen=_MAX_WAITING)
        self._lock = threading.Lock()  # guards the sending end of the wake-up
        address = f"inproc://wake-{os.urandom(8).hex()}"
        self._woken = context.socket(zmq.PAIR)
        self._woken.bind(address)
        self._wake = context.socket(zmq.PAIR)
        self._wake.connect(address)
        self._stop = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def send(self, parts: Parts) -> None:
        """Send a message soon; it is dropped when the other end is not there."""
        self._outbox.append(parts)
        self._signal()

    def close(self) -> None:
        """End the thread and the context."""
        self._stop = True
        self._signal()
        self._thread.join(5)
        self._context.destroy(linger=0)

    def _signal(self) -> None:
        with self._lock, contextlib.suppress(zmq.ZMQError):  # full: it is awake anyway; closed: nobody to wake
            self._wake.send(b"", zmq.NOBLOCK)

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._woken, zmq.POLLIN)
        while not self._stop:
            ready = dict(poller.poll(1000))
            if self._woken in ready:
                with contextlib.suppress(zmq.Again):
                    while True:
                        self._woken.recv(zmq.NOBLOCK)
            while self._outbox:
                with contextlib.suppress(zmq.ZMQError):  # nobody there, or too much waits: a deadline covers it
                    self._socket.send_multipart(self._outbox.popleft(), zmq.NOBLOCK, copy=False)
            if self._socket in ready:
                self._receive()

    def _receive(self) -> None:
        with contextlib.suppress(zmq.Again):
            while True:
                frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
                try:
                    self._on_message(frames)
                except EdgeError as error:
                    log.warning("ignored a message: %s", error)
                except Exception:
                    log.exception("a message could not be handled")


class DirectRoute:
    """A device's way to a tail's direct plane; asks for it over MQTT when it is first needed, and again after a failure.

    Args:
        link: Carries the request for an offer.
        topic: Of requests.
        key: The route key, 8 bytes.
        on_reply: Called with every reply, in a thread of its own.
    """

    def __init__(self, link: MqttLink, topic: str, key: bytes, on_reply: Callable[[memoryview], None]) -> None:
        self._link, self._topic, self._key, self._on_reply = link, topic, key, on_reply
        self._public, self._secret = zmq.curve_keypair()
        self._lock = threading.Lock()
        self._hello = b""
        self._ask_at = 0.0
        self._plane: SocketThread | None = None

    @property
    def ready(self) -> bool:
        """Whether there is a connection, as far as is known."""
        return self._plane is not None

    def send(self, pieces: Parts) -> bool:
        """Send a request; False when there is no connection yet (it is asked for)."""
        plane = self._plane
        if plane is None:
            self._ask()
            return False
        plane.send((self._key, *split_parts(pieces)))
        return True

    def take(self, reply: Reply, body: memoryview) -> bool:
        """Connect as a tail offers; False when the reply is not about that."""
        with self._lock:
            if not self._hello or reply.request_id != self._hello:
                return False
            self._hello = b""
            if reply.status is not Status.OK:
                self._ask_at = time.monotonic() + _REFUSED_PAUSE_S
                return True
            try:
                offer = msgspec.json.decode(body, type=DirectOffer)
                self._plane = self._connect(offer)
            except (msgspec.MsgspecError, zmq.ZMQError, ValueError) as error:
                self._ask_at = time.monotonic() + _REFUSED_PAUSE_S
                log.warning("the offer of a direct connection cannot be used: %s", error)
        return True

    def failed(self) -> None:
        """A request had no answer: use MQTT, and ask for another connection."""
        with self._lock:
            plane, self._plane = self._plane, None
        if plane is not None:
            plane.close()

    def close(self) -> None:
        """Disconnect."""
        self.failed()

    def _ask(self) -> None:
        with self._lock:
            now = time.monotonic()
            if now < self._ask_at:
                return
            self._ask_at = now + _ASK_AGAIN_S
            self._hello = os.urandom(16)
            envelope = pack_envelope(Envelope(self._hello, _HELLO_BUDGET_MS, FLAG_DIRECT))
        try:
            self._link.publish_pieces(self._topic, (envelope, z85.decode(self._public)), 0)
        except MqttError as error:
            log.info("no direct connection was asked for: %s", error)

    def _connect(self, offer: DirectOffer) -> SocketThread:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        socket = context.socket(zmq.DEALER)
        socket.curve_publickey, socket.curve_secretkey = self._public, self._secret
        socket.curve_serverkey = offer.server_key.encode()
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        socket.setsockopt(zmq.SNDHWM, 16)
        socket.connect(offer.endpoint)
        plane = SocketThread(context, socket, lambda frames: self._on_reply(join_parts(frames)), name="direct")
        plane.start()
        return plane
