"""The tail's end of the direct data plane: a CURVE server that lets in the keys which devices sent over MQTT."""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

import msgspec
import zmq
from zmq.auth.thread import ThreadAuthenticator
from zmq.utils import z85

from edge_runtime.direct import MAX_MESSAGE_BYTES, SocketThread, join_parts, split_parts
from edge_runtime.messages import Topics
from edge_runtime.tail_messages import DirectOffer
from edge_runtime.wire import FormatError
from orchestrator.serving.served import ServeError

log = logging.getLogger(__name__)
MAX_KEYS = 65_536
_KEY_BYTES = 32
_NO_BOOT = "0" * 16  # replies go back where the request came from, not to a topic

Accept = Callable[[str, memoryview, int, bytes], None]


class DirectPlane:
    """Listens on a port of its own; requests become those of the device whose key signed the connection in.

    Args:
        host: Address that devices reach; it is bound and offered.
        accept: Called with request topic, envelope and frame, QoS, and the peer to answer.

    Raises:
        ServeError: Not an address of this machine.
    """

    def __init__(self, host: str, accept: Accept) -> None:
        self._accept = accept
        self._closed = False
        self._lock = threading.Lock()
        self._devices: OrderedDict[bytes, str] = OrderedDict()  # public key (Z85) -> tenant/device
        public, secret = zmq.curve_keypair()
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._authenticator = ThreadAuthenticator(context)
        self._authenticator.start()
        self._authenticator.configure_curve_callback(domain="*", credentials_provider=self)
        socket = context.socket(zmq.ROUTER)
        socket.curve_secretkey, socket.curve_publickey, socket.curve_server = secret, public, True
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        socket.setsockopt(zmq.HEARTBEAT_IVL, 5000)
        try:
            port = socket.bind_to_random_port(f"tcp://{host}")
        except zmq.ZMQError as error:
            self._authenticator.stop()
            context.destroy(linger=0)
            raise ServeError(f"Wanted to listen on {host} for direct requests, found: {error}.") from error
        self._offer = msgspec.json.encode(DirectOffer(endpoint=f"tcp://{host}:{port}", server_key=public.decode()))
        self._plane = SocketThread(context, socket, self._received, name="direct")
        self._plane.start()

    def admit(self, device: str, public_key: bytes) -> bytes:
        """Let in a key as a device ("tenant/device"); the offer to send back.

        Raises:
            FormatError: Not a CURVE public key.
        """
        if len(public_key) != _KEY_BYTES:
            raise FormatError(f"Wanted a public key of {_KEY_BYTES} B, found {len(public_key)} B.")
        with self._lock:
            self._devices[z85.encode(public_key)] = device
            if len(self._devices) > MAX_KEYS:
                self._devices.popitem(last=False)
        return self._offer

    def callback(self, domain: str, key: bytes) -> bool:
        """Asked by ZeroMQ for every connection: whether this key was let in."""
        return key in self._devices

    def send(self, peer: bytes, pieces: Sequence[bytes | memoryview]) -> None:
        """Answer whoever asked."""
        self._plane.send((peer, *split_parts(pieces)))

    def close(self) -> None:
        """Disconnect everybody."""
        if self._closed:
            return
        self._closed = True
        self._authenticator.stop()
        self._plane.close()

    def _received(self, frames: list[zmq.Frame]) -> None:
        if len(frames) < 3 or len(frames[1]) != 8:
            raise FormatError(f"Wanted a key of 8 B and a request, found {len(frames) - 1} parts.")
        device = self._devices.get(str(frames[2].get("User-Id")).encode())
        if device is None:
            raise FormatError("Wanted a request of a device that was let in, found another one.")
        tenant, _, name = device.partition("/")
        topic = Topics(tenant, name).request(frames[1].bytes.hex(), _NO_BOOT)
        self._accept(topic, join_parts(frames[2:]), 0, frames[0].bytes)
