"""The few MQTT 5 packets that a fleet's devices and its ingest need, as bytes. No socket, no state but the reader's rest.

paho spends three system calls and some 60 us on each packet it receives; a host that listens to ten thousand devices, and a
simulator that is ten thousand devices, read many packets at once instead.
"""

from dataclasses import dataclass

from device_profiles.errors import EdgeError

CONNACK, PUBLISH, PUBACK, SUBACK, PINGRESP, DISCONNECT = 2, 3, 4, 9, 13, 14
PINGREQ = b"\xc0\x00"
GOODBYE = b"\xe0\x00"
_MAX_LENGTH = 268_435_455


class PacketError(EdgeError):
    """Bytes that are no MQTT packet."""


@dataclass(frozen=True, slots=True)
class Will:
    """What the broker says when the connection is lost; retained, QoS 1."""

    topic: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Published:
    """A PUBLISH that came; `packet_id` is null at QoS 0."""

    topic: str
    payload: bytes
    packet_id: int | None


def encode_connect(
    client_id: str, *, keepalive_s: int, will: Will | None = None, user: str | None = None, password: str | None = None
) -> bytes:
    """CONNECT with a clean start."""
    flags = 0x02 | (0x2C if will else 0) | (0x80 if user is not None else 0) | (0x40 if password is not None else 0)
    body = [_text("MQTT"), bytes((5, flags)), keepalive_s.to_bytes(2, "big"), b"\0", _text(client_id)]
    if will is not None:
        body += [b"\0", _text(will.topic), len(will.payload).to_bytes(2, "big"), will.payload]
    body += [_text(value) for value in (user, password) if value is not None]
    return _packet(0x10, b"".join(body))


def encode_subscribe(packet_id: int, filters: tuple[tuple[str, int], ...]) -> bytes:
    """SUBSCRIBE to (filter, QoS)."""
    body = b"".join(_text(topic) + bytes((qos,)) for topic, qos in filters)
    return _packet(0x82, packet_id.to_bytes(2, "big") + b"\0" + body)


def encode_publish(topic: str, payload: bytes, *, packet_id: int | None = None, retain: bool = False) -> bytes:
    """PUBLISH at QoS 1 with a packet id, else at QoS 0."""
    first = 0x30 | (0 if packet_id is None else 0x02) | (0x01 if retain else 0)
    rest = b"\0" if packet_id is None else packet_id.to_bytes(2, "big") + b"\0"
    return _packet(first, _text(topic) + rest + payload)


def encode_puback(packet_id: int) -> bytes:
    """PUBACK of success."""
    return b"\x40\x02" + packet_id.to_bytes(2, "big")


class PacketReader:
    """Cuts a stream into packets.

    Args:
        max_bytes: A longer packet is refused.
    """

    def __init__(self, max_bytes: int = 1 << 20) -> None:
        self._rest = b""
        self._max_bytes = max_bytes

    def feed(self, data: bytes) -> list[tuple[int, int, bytes]]:
        """The packets that are complete now: (type, flags, body).

        Raises:
            PacketError: A length that no packet may have.
        """
        buffer = self._rest + data if self._rest else data
        found: list[tuple[int, int, bytes]] = []
        at, end = 0, len(buffer)
        while end - at >= 2:
            length, start = buffer[at + 1], at + 2
            if length > 127:
                read = _long_length(buffer, at + 1)
                if read is None:
                    break
                length, start = read
            if length > self._max_bytes:
                raise PacketError(f"Wanted packets of at most {self._max_bytes} B, found one of {length} B.")
            if end - start < length:
                break
            first = buffer[at]
            at = start + length
            found.append((first >> 4, first & 15, buffer[start:at]))
        self._rest = buffer[at:]
        return found


def decode_publish(flags: int, body: bytes) -> Published:
    """Take a PUBLISH apart.

    Raises:
        PacketError: It ends too soon, or its topic is no text.
    """
    try:
        name_end = 2 + int.from_bytes(body[:2], "big")
        topic = body[2:name_end].decode()
        at, packet_id = name_end, None
        if flags & 6:
            packet_id, at = int.from_bytes(body[at : at + 2], "big"), at + 2
        properties = body[at]
        at += 1
        if properties > 127:
            read = _long_length(body, at - 1)
            if read is None:
                raise PacketError("Wanted the properties of a PUBLISH, found its end.")
            properties, at = read
    except (IndexError, UnicodeDecodeError) as error:
        raise PacketError(f"Wanted a PUBLISH, found {len(body)} B that are none.") from error
    if at + properties > len(body) or name_end > len(body):
        raise PacketError(f"Wanted a PUBLISH of more than {len(body)} B, found its end.")
    return Published(topic, body[at + properties :], packet_id)


def check_connack(body: bytes) -> None:
    """Nothing when the broker took the connection.

    Raises:
        PacketError: With the broker's reason code.
    """
    if len(body) < 2 or body[1] != 0:
        raise PacketError(f"Wanted the broker to take the connection, found reason {body[1:2].hex() or 'none'}.")


def _long_length(buffer: bytes, at: int) -> tuple[int, int] | None:
    """A variable length and where it ends; null when more bytes are needed."""
    value = 0
    for index in range(4):
        if at + index >= len(buffer):
            return None
        byte = buffer[at + index]
        value |= (byte & 127) << (7 * index)
        if byte < 128:
            return value, at + index + 1
    raise PacketError("Wanted a length of at most four bytes, found more.")


def _packet(first: int, body: bytes) -> bytes:
    left = len(body)
    if left > _MAX_LENGTH:
        raise PacketError(f"Wanted a packet of at most {_MAX_LENGTH} B, found {left} B.")
    length = bytearray()
    while left > 127:
        length.append(left & 127 | 128)
        left >>= 7
    length.append(left)
    return b"".join((bytes((first,)), length, body))


def _text(value: str) -> bytes:
    data = value.encode()
    return len(data).to_bytes(2, "big") + data
