"""Cuts what a connection brings into packets: messages are taken apart here, everything else is left to paho.

paho reads a packet in four calls and copies its payload three times. Here one call reads all that has come, and a payload
of which more is to come is read to where it stays.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import paho.mqtt.client as paho

_SCRATCH_BYTES = 32 << 10
MOST_BYTES = 8 << 20  # of a packet that gets its memory before it has come
_PUBLISH, _QOS_1 = 0x30, 0x02
_NOT_LOOKED_AT = 0x09  # a PUBLISH's flags "again" and "retained"


class Message(NamedTuple):
    """A message that came; `packet_id` is what is to be acknowledged, null when nothing is."""

    topic: str
    payload: bytearray | bytes
    qos: int
    packet_id: int | None = None


class Source(Protocol):
    """A socket, with TLS or without."""

    def recv_into(self, buffer: memoryview, /) -> int:
        """Read some bytes; 0 at the end."""


class FedClient(paho.Client):
    """paho's client, which reads what it is given and leaves the socket alone."""

    _fed: bytes | None = None  # null: nothing more at the moment

    def feed(self, data: bytes) -> None:
        """Have these bytes read; none stand for the end of the connection."""
        self._fed = data
        while self._fed is not None and self.socket() is not None:
            self.loop_read()
        self._fed = None

    def heard(self, when: float) -> None:
        """The connection lived at this monotonic time: paho sees no messages."""
        with self._msgtime_mutex:
            self._last_bytes_received = when

    def _sock_recv(self, bufsize: int) -> bytes:
        if self._fed is None:
            raise BlockingIOError
        data, rest = self._fed[:bufsize], self._fed[bufsize:]
        self._fed = rest or None
        return data


class PacketStream:
    """The incoming half of one connection after another.

    Args:
        pass_on: Called, in their order, with the bytes of packets that are no plain message.
    """

    def __init__(self, pass_on: Callable[[bytes], None]) -> None:
        self._pass_on = pass_on
        self._view = memoryview(bytearray(_SCRATCH_BYTES))
        self.clear()

    def clear(self) -> None:
        """A new connection begins."""
        self._begin = self._end = 0  # of what waits in the scratch buffer
        self._passing = 0  # bytes still to come of a packet that is passed on
        self._message: Message | None = None  # whose payload is coming
        self._missing = self._view[:0]  # of that payload

    @property
    def midway(self) -> bool:
        """Whether the rest of a payload is to come."""
        return self._message is not None

    def receive(self, source: Source) -> list[Message]:
        """Read once; the messages that are complete now.

        Raises:
            ConnectionError: The connection has ended.
            OSError: Of the socket.
        """
        if self._message is not None:
            return self._receive_rest(source, self._message)
        count = source.recv_into(self._view[self._end :])
        if not count:
            raise ConnectionError("the other end closed the connection")
        self._end += count
        found = self._cut()
        if self._begin == self._end:
            self._begin = self._end = 0
        elif self._begin:
            rest = bytes(self._view[self._begin : self._end])
            self._begin, self._end = 0, len(rest)
            self._view[: self._end] = rest
        return found

    def _receive_rest(self, source: Source, message: Message) -> list[Message]:
        count = source.recv_into(self._missing)
        if not count:
            raise ConnectionError("the other end closed the connection")
        self._missing = self._missing[count:]
        if self._missing:
            return []
        self._message = None
        return [message]

    def _cut(self) -> list[Message]:
        """Messages that are complete in the scratch buffer; passes on what is none."""
        found: list[Message] = []
        while self._begin < self._end:
            if self._passing:
                self._pass_some()
                continue
            view = self._view[self._begin : self._end]
            length = _read_length(view)
            if length is None:
                break
            size, start = length
            if size < 0 or size > MOST_BYTES or not _is_plain(view[0]):
                self._passing = start + max(size, 0)
                continue
            head = _read_head(view, start, start + size)
            if head is None and len(view) < min(start + size, _SCRATCH_BYTES):
                break  # its beginning has not come
            if head is None:
                self._passing = start + size
                continue
            message = self._begin_payload(head, view, start + size)
            if message is None:
                break
            found.append(message)
        return found

    def _begin_payload(self, head: tuple[str, int | None, int], view: memoryview, end: int) -> Message | None:
        """The message when all of it is here, otherwise null: its rest goes to where it stays."""
        topic, packet_id, at = head
        qos = 0 if packet_id is None else 1
        if end <= len(view):
            self._begin += end
            return Message(topic, bytearray(view[at:end]), qos, packet_id)
        payload = bytearray(end - at)
        here = len(view) - at
        target = memoryview(payload)
        target[:here] = view[at:]
        self._begin = self._end
        self._message, self._missing = Message(topic, payload, qos, packet_id), target[here:]
        return None

    def _pass_some(self) -> None:
        count = min(self._passing, self._end - self._begin)
        data = bytes(self._view[self._begin : self._begin + count])
        self._begin += count
        self._passing -= count
        self._pass_on(data)


def _is_plain(first: int) -> bool:
    """Whether a packet's first byte is that of a PUBLISH at QoS 0 or 1."""
    return first & ~_NOT_LOOKED_AT & 0xFF in (_PUBLISH, _PUBLISH | _QOS_1)


def _read_length(view: memoryview) -> tuple[int, int] | None:
    """A packet's remaining length and where it begins; -1: no length; null: more bytes are needed."""
    value = 0
    for index in range(1, 5):
        if index >= len(view):
            return None
        byte = view[index]
        value |= (byte & 127) << (7 * (index - 1))
        if byte < 128:
            return value, index + 1
    return -1, 5


def _read_head(view: memoryview, start: int, end: int) -> tuple[str, int | None, int] | None:
    """Topic, packet id and where the payload begins; null when that is not all here, or not as in almost every message."""
    if len(view) < start + 2:
        return None
    at = start + 2 + int.from_bytes(view[start : start + 2], "big")
    properties = at + (2 if view[0] & _QOS_1 else 0)
    if properties >= min(len(view), end) or view[properties] or at == start + 2:
        return None
    try:
        topic = str(view[start + 2 : at], "utf-8")
    except UnicodeDecodeError:
        return None
    return topic, int.from_bytes(view[at:properties], "big") if properties > at else None, properties + 1
