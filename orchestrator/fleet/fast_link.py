"""A subscriber that reads many MQTT packets with one system call and acknowledges them with one more.

paho reads every packet in three calls and hands each through several layers; for a host that listens to ten thousand devices
that is most of its time. Only receiving is here; what is sent goes through `MqttLink`.
"""

import logging
import random
import socket
import threading
import time
from collections.abc import Callable, Sequence

from device_profiles.errors import EdgeError
from edge_runtime.mqtt import parse_url
from orchestrator.fleet import mqtt_packets as packets

log = logging.getLogger(__name__)
_KEEPALIVE_S = 30
_CHUNK_BYTES = 1 << 18
_PAUSE_S = (0.25, 5.0)  # between attempts to connect: the first, the longest


class FastLink:
    """One connection in a thread of its own, made again when lost; a context.

    Args:
        url: mqtt://[user:password@]host:port, without TLS.
        subscriptions: (filter, QoS); renewed at every connect.
        on_messages: Called in the network's thread with all that one read brought: (topic, payload).
    """

    def __init__(
        self,
        url: str,
        subscriptions: tuple[tuple[str, int], ...],
        on_messages: Callable[[Sequence[tuple[str, bytes]]], None],
    ) -> None:
        self._broker = parse_url(url)
        self._subscriptions, self._on_messages = subscriptions, on_messages
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ingest", daemon=True)
        self.connects = 0

    def __enter__(self) -> "FastLink":
        """Start."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Disconnect and end the thread."""
        self._stop.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        pause_s = _PAUSE_S[0]
        while not self._stop.is_set():
            connects = self.connects
            try:
                self._serve()
            except (OSError, EdgeError) as error:
                log.warning("lost the broker %s:%d: %s", self._broker.host, self._broker.port, error)
            pause_s = _PAUSE_S[0] if self.connects > connects else min(2 * pause_s, _PAUSE_S[1])
            self._stop.wait(pause_s * random.uniform(0.5, 1.0))

    def _serve(self) -> None:
        """Connect, subscribe and read until the connection ends."""
        address = (self._broker.host, self._broker.port)
        with socket.create_connection(address, timeout=5) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 21)
            user, password = self._broker.user, self._broker.password
            sock.sendall(packets.encode_connect("", keepalive_s=_KEEPALIVE_S, user=user, password=password))
            sock.settimeout(1.0)
            reader, heard, pinged = packets.PacketReader(4 << 20), time.monotonic(), time.monotonic()
            while not self._stop.is_set():
                now = time.monotonic()
                if now - pinged > _KEEPALIVE_S / 3:
                    pinged = now
                    sock.sendall(packets.PINGREQ)
                if now - heard > _KEEPALIVE_S:
                    raise OSError(f"nothing heard for {_KEEPALIVE_S} s")
                try:
                    data = sock.recv(_CHUNK_BYTES)
                except TimeoutError:
                    continue
                if not data:
                    raise OSError("the broker closed the connection")
                heard = now
                answer = self._take(reader.feed(data))
                if answer:
                    sock.sendall(answer)
            sock.sendall(packets.GOODBYE)

    def _take(self, found: Sequence[tuple[int, int, bytes]]) -> bytes:
        """Hand over what came; returns what is to be sent."""
        messages: list[tuple[str, bytes]] = []
        answers: list[bytes] = []
        for kind, flags, body in found:
            if kind == packets.PUBLISH:
                message = packets.decode_publish(flags, body)
                messages.append((message.topic, message.payload))
                if message.packet_id is not None:
                    answers.append(packets.encode_puback(message.packet_id))
            elif kind == packets.CONNACK:
                packets.check_connack(body)
                self.connects += 1
                answers.append(packets.encode_subscribe(1, self._subscriptions))
            elif kind == packets.SUBACK and any(code >= 0x80 for code in body[3:]):
                log.error("the broker refused subscriptions: %s", body[3:].hex())
            elif kind == packets.DISCONNECT:
                raise OSError(f"the broker ended the connection, reason {body[:1].hex()}")
        if messages:
            self._on_messages(messages)
        return b"".join(answers)
