"""MQTT 5 over paho: one connection that publishes nothing the broker would refuse.

paho facts this module lives with: TCP_NODELAY is off unless set on the socket; `on_publish` runs under an internal lock
(so it is not used); the broker's maximum packet size is not enforced, and a QoS 1 packet above it would be sent again
after every reconnect, for ever; the queue of QoS 0 packets is not bounded.
"""

import itertools
import logging
import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from device_profiles.errors import EdgeError
from edge_runtime.broker_url import MqttError as MqttError
from edge_runtime.broker_url import hide_password as hide_password
from edge_runtime.broker_url import parse_url as parse_url
from edge_runtime.mqtt_loop import MAX_REST_BYTES, Ended, NetworkLoop, publish_header
from edge_runtime.mqtt_stream import FedClient, Message
from edge_runtime.tcp_info import least_round_trip_ms
from edge_runtime.tls import tls_context

MAX_OUTSTANDING = 64  # packets handed to paho and not yet written to the socket (QoS 0) or acknowledged (QoS 1)
_HEADER_ALLOWANCE_BYTES = 16  # fixed header, packet id, property length
_PROTOCOL_MAX_BYTES = 268_435_455

log = logging.getLogger(__name__)


class NotConnectedError(MqttError):
    """No connection at the moment; it is being made again."""


class PacketTooLargeError(MqttError):
    """The broker takes no packet of this size."""


class LinkBusyError(MqttError):
    """Too many packets wait for the socket: the link is slower than what is sent."""


class SubscriptionError(MqttError):
    """The broker refuses a subscription: what is sent there will never arrive."""


@dataclass(frozen=True)
class Packet:
    """What to publish where."""

    topic: str
    payload: bytes
    qos: int = 0
    retain: bool = False


@dataclass(frozen=True)
class LinkOptions:
    """How a connection is made. Subscriptions are (filter, QoS); they and `greeting` are renewed at every connect."""

    client_id: str = ""
    subscriptions: tuple[tuple[str, int], ...] = ()
    greeting: Callable[[], Sequence[Packet]] | None = None
    on_lost: Callable[[], None] | None = None
    will: Packet | None = None
    keepalive_s: int = 10
    nodelay: bool = True
    reconnect_max_s: int = 30


class MqttLink:
    """One connection. `on_message(topic, payload, qos)` runs in a network thread: it must be quick.

    Start with `start()` or as a context manager. Connects in the background and again, with back-off, when lost.
    """

    def __init__(self, url: str, options: LinkOptions, on_message: Callable[[str, bytes, int], None]) -> None:
        self._broker = parse_url(url)
        self._name = f"{self._broker.host}:{self._broker.port}"
        self._options = options
        self._on_message = on_message
        self._ready = threading.Event()
        self._sock: object = None  # on which the session is ready
        self._receive_maximum = 0
        self._refusal = ""  # the broker's reason for taking no connection, the last time
        self._not_subscribed = ""  # filters that the broker refused on this connection, and why
        # paho counts its packet ids from 1 and uses few on a link that sends in pieces.
        self._packet_ids = itertools.cycle(range(0x8000, 0x10000))
        self._started = self._closed = self._retired = False
        self._unsubscribed = threading.Event()
        self._max_packet_bytes = _PROTOCOL_MAX_BYTES
        self._outstanding: deque[paho.MQTTMessageInfo] = deque()
        self._outstanding_lock = threading.Lock()
        self._inbox: deque[Message] = deque()
        self.connects = 0  # how often a connection was made
        self._client = self._make_client()
        self._loop = NetworkLoop(
            self._client,
            self._inbox.append,
            self._hand_over,
            name=self._name,
            reconnect_max_s=options.reconnect_max_s,
        )

    def start(self) -> "MqttLink":
        """Begin to connect, in a thread of its own; a second call does nothing."""
        if self._started:
            return self
        self._started = True
        keepalive_s = self._options.keepalive_s
        self._client.connect_async(self._broker.host, self._broker.port, keepalive_s, clean_start=True)
        self._loop.start()
        return self

    def wait_connected(self, timeout_s: float) -> None:
        """Wait until connected and subscribed.

        Raises:
            NotConnectedError: Not within the time.
            SubscriptionError: The broker takes the connection and refuses a subscription.
        """
        if not self._ready.wait(timeout_s):
            found = f"that it refuses: {self._refusal}. " if self._refusal else "none. "
            hint = "" if self._refusal else "Is the broker running? `headtail broker` starts one."
            raise NotConnectedError(
                f"Wanted a connection to {self._name} within {timeout_s:g} s, found {found}{hint}".rstrip()
            )
        self.check_subscribed()

    def check_subscribed(self) -> None:
        """Nothing when every subscription of this connection was granted, or there is no connection.

        Raises:
            SubscriptionError: Naming what the broker refused.
        """
        if self._not_subscribed:
            raise SubscriptionError(
                f"Wanted the subscriptions granted, found that {self._name} refuses {self._not_subscribed}. "
                "Look at the broker's access rules for this user."
            )

    @property
    def connected(self) -> bool:
        """Whether there is a connection with its subscriptions."""
        return self._ready.is_set()

    @property
    def round_trip_ms(self) -> float | None:
        """Least round trip to the broker as the kernel sees it; null without a connection, or where it does not say."""
        return least_round_trip_ms(self._sock)

    @property
    def max_packet_bytes(self) -> int:
        """What the broker said it takes, in one packet."""
        return self._max_packet_bytes

    def publish(self, packet: Packet) -> None:
        """Send a packet, or refuse it; one that is refused is never kept for a later connection.

        Raises:
            NotConnectedError: No connection.
            PacketTooLargeError: The broker would cut the connection.
            LinkBusyError: `MAX_OUTSTANDING` packets wait already.
        """
        if not self._ready.is_set():
            raise NotConnectedError(f"Wanted a connection to {self._name}, found none at the moment.")
        self._put(packet)
        self._loop.flush()

    def publish_pieces(self, topic: str, pieces: Sequence[bytes | memoryview], qos: int) -> int:
        """Send a payload that lies in pieces, copying none of them, for messages that a deadline covers.

        At QoS 1 the broker acknowledges and keeps its part, but nothing is sent again after a lost connection: a new
        session knows no old messages (MQTT 5, 4.4).

        Returns:
            The payload's size in bytes.

        Raises:
            MqttError: As `publish`.
        """
        if qos and self._receive_maximum < MAX_OUTSTANDING:  # the broker counts; so does paho
            payload = b"".join(pieces)
            self.publish(Packet(topic, payload, qos))
            return len(payload)
        size = sum([len(piece) for piece in pieces])
        sock = self._sock
        if sock is None:
            raise NotConnectedError(f"Wanted a connection to {self._name}, found none at the moment.")
        self._check_size(topic, size)
        header = publish_header(topic, size, packet_id=next(self._packet_ids) if qos else None)
        try:
            sent = self._loop.send((header, *pieces), sock)
        except OSError as error:
            raise NotConnectedError(f"Wanted to publish {topic}, found: {error}.") from error
        if not sent:
            raise LinkBusyError(
                f"Wanted room for {size} B, found {MAX_REST_BYTES} B waiting for {self._name}: the link is too slow for what is sent."
            )
        return size

    def wait_for(self, ended: Ended, timeout_s: float) -> bool:
        """Wait until `on_message` (or whoever else) releases `ended`, and take it; False when the time is over."""
        return self._loop.wait_for(ended, timeout_s)

    @property
    def loop(self) -> NetworkLoop:
        """Below: for threads that read the connection in `wait_for`."""
        return self._loop

    def unsubscribe(self, *, timeout_s: float) -> bool:
        """Have nothing more sent here, now and after reconnects; whether the broker confirmed it in time."""
        self._retired = True
        if not self._ready.is_set() or not self._options.subscriptions:
            return True
        self._client.unsubscribe([topic for topic, _ in self._options.subscriptions])
        self._loop.flush()
        return self._unsubscribed.wait(timeout_s)

    def close(self) -> None:
        """Disconnect without the will, and end the thread."""
        if self._closed:
            return
        self._closed = True
        self._sock = None
        self._ready.clear()
        self._client.disconnect()
        self._loop.stop()

    def __enter__(self) -> "MqttLink":
        """Start."""
        return self.start()

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def _put(self, packet: Packet) -> None:
        self._check_size(packet.topic, len(packet.payload))
        with self._outstanding_lock:
            while self._outstanding and _is_done(self._outstanding[0]):
                self._outstanding.popleft()
            if len(self._outstanding) >= MAX_OUTSTANDING:
                raise LinkBusyError(
                    f"Wanted fewer than {MAX_OUTSTANDING} packets waiting for {self._name}, found {len(self._outstanding)}: "
                    "the link is too slow for what is sent."
                )
        # No lock of ours is held here: paho takes its own.
        info = self._client.publish(packet.topic, packet.payload, packet.qos, packet.retain)
        if info.rc == paho.MQTT_ERR_QUEUE_SIZE:
            raise LinkBusyError(f"Wanted room for {packet.topic}, found {MAX_OUTSTANDING} packets not acknowledged.")
        if info.rc != paho.MQTT_ERR_SUCCESS:
            raise NotConnectedError(f"Wanted to publish {packet.topic}, found: {paho.error_string(info.rc)}")
        with self._outstanding_lock:
            self._outstanding.append(info)

    def _check_size(self, topic: str, payload_bytes: int) -> None:
        size = payload_bytes + len(topic) + _HEADER_ALLOWANCE_BYTES  # topics are ASCII
        if size > self._max_packet_bytes:
            raise PacketTooLargeError(
                f"Wanted a packet of at most {self._max_packet_bytes} B as the broker said, found {size} B for {topic}. "
                "Raise its max_packet_size, or send less (another cut, a smaller picture)."
            )

    def _make_client(self) -> FedClient:
        options = self._options
        client = FedClient(CallbackAPIVersion.VERSION2, options.client_id, protocol=paho.MQTTv5)
        client.max_inflight_messages_set(MAX_OUTSTANDING)
        client.max_queued_messages_set(MAX_OUTSTANDING)
        if self._broker.tls is not None:
            client.tls_set_context(tls_context(self._broker.tls))
        if self._broker.user is not None:
            client.username_pw_set(self._broker.user, self._broker.password)
        if options.will is not None:
            will = options.will
            client.will_set(will.topic, will.payload, will.qos, will.retain)
        client.on_socket_open = self._socket_opened
        client.on_connect = self._connected
        client.on_subscribe = self._subscribed
        client.on_unsubscribe = lambda *_: self._unsubscribed.set()
        client.on_disconnect = self._disconnected
        client.on_message = self._received
        return client

    def _socket_opened(self, _client: paho.Client, _userdata: object, sock: Any) -> None:  # noqa: ANN401 - paho's union
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1 if self._options.nodelay else 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)

    def _connected(
        self, client: paho.Client, _userdata: object, _flags: object, reason: ReasonCode, properties: Properties | None
    ) -> None:
        if reason.is_failure:
            log.warning("broker %s refused the connection: %s", self._name, reason)
            self._refusal = str(reason)
            return
        self._refusal = self._not_subscribed = ""
        self.connects += 1
        announced = getattr(properties, "MaximumPacketSize", None)
        self._max_packet_bytes = int(announced) if announced else _PROTOCOL_MAX_BYTES
        self._receive_maximum = int(getattr(properties, "ReceiveMaximum", 65535))
        if self._options.subscriptions and not self._retired:
            client.subscribe([(topic, SubscribeOptions(qos=qos)) for topic, qos in self._options.subscriptions])
        else:
            self._make_ready()

    def _subscribed(
        self, _client: paho.Client, _userdata: object, _mid: int, reasons: list[ReasonCode], _properties: object
    ) -> None:
        pairs = zip(self._options.subscriptions, reasons, strict=False)
        refused = ", ".join(f"{topic} ({reason})" for (topic, _), reason in pairs if reason.is_failure)
        if refused:
            log.error("broker %s refused subscriptions: %s", self._name, refused)
        self._not_subscribed = refused
        self._make_ready()  # what is only sent still goes

    def _make_ready(self) -> None:
        try:
            for packet in self._options.greeting() if self._options.greeting else ():
                self._put(packet)
        except MqttError as error:
            log.warning("could not greet %s: %s", self._name, error)
        if not self._closed:
            self._sock = self._client.socket()
            self._ready.set()

    def _disconnected(
        self, _client: paho.Client, _userdata: object, _flags: object, reason: ReasonCode, _properties: object
    ) -> None:
        self._sock = None
        self._not_subscribed = ""
        self._ready.clear()
        with self._outstanding_lock:
            self._outstanding.clear()
        if not self._closed:
            log.warning("lost the broker %s: %s", self._name, reason)
        if self._options.on_lost is not None:
            self._options.on_lost()

    def _received(self, _client: paho.Client, _userdata: object, message: paho.MQTTMessage) -> None:
        """A message with properties or at QoS 2: the others are taken before paho sees them."""
        self._inbox.append(Message(message.topic, message.payload, message.qos))

    def _hand_over(self) -> None:
        while self._inbox:
            message = self._inbox.popleft()
            try:
                self._on_message(message.topic, message.payload, message.qos)  # type: ignore[arg-type] # bytes-like
            except EdgeError as error:
                log.warning("ignored a message: %s", error)
            except Exception:
                log.exception("a message could not be handled")


def _is_done(info: paho.MQTTMessageInfo) -> bool:
    """Written (QoS 0), acknowledged (QoS 1), or given up by paho, which it tells by raising."""
    try:
        return info.is_published()
    except (RuntimeError, ValueError):
        return True
