import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edge_runtime.mqtt_loop import publish_header
from edge_runtime.mqtt_stream import MOST_BYTES, PacketStream

SIZES = st.sampled_from([0, 1, 100, 127, 128, 16_383, 32_700, 32_768, 40_000, 100_000])
OTHERS = st.sampled_from(
    [
        bytes([0x40, 2, 0, 7]),  # PUBACK
        bytes([0xD0, 0]),  # PINGRESP
        b"\x34\x07\0\1t\0\1\0x",  # PUBLISH at QoS 2
        b"\x30\x0a\0\1t\5\2\0\0\0\x09x",  # with a property
        b"\x30\x04\0\1\xff\0",  # a topic that is not UTF-8
        b"\x30\x03\0\0\0",  # no topic
        b"\x30\x01\0",  # no room for one
        b"\x32\x05\0\1t\0\1",  # no properties' length
        b"\x36\x03\0\1t",  # a QoS that does not exist
    ]
)


class Chunks:
    """A socket that brings at most so many bytes at once, and nothing at its end."""

    def __init__(self, data, sizes):
        self.left, self._sizes = memoryview(data), sizes

    def recv_into(self, buffer):
        count = min(len(buffer), next(self._sizes), len(self.left))
        buffer[:count] = self.left[:count]
        self.left = self.left[count:]
        return count


def forever(values):
    while True:
        yield from values


def read_all(data, chunk_sizes):
    """Messages and what was passed on."""
    passed, found = [], []
    stream, source = PacketStream(passed.append), Chunks(data, forever(chunk_sizes))
    while source.left:
        found += stream.receive(source)
    return found, b"".join(passed), stream


@given(
    packets=st.lists(st.tuples(SIZES, st.one_of(st.none(), st.integers(1, 65_535))) | OTHERS, max_size=8),
    chunk_sizes=st.lists(st.sampled_from([1, 2, 3, 5, 1000, 16_384, 200_000]), min_size=1, max_size=4),
)
@example(packets=[(100_000, 9), b"\xd0\0", (0, None)], chunk_sizes=[200_000])
def test_any_cut_of_a_stream_gives_the_same_messages_and_passes_on_the_same_rest(packets, chunk_sizes):
    wanted, others, data = [], b"", b""
    if all(size < 100 for size in chunk_sizes):  # byte by byte only where it is not slow
        packets = [packet for packet in packets if isinstance(packet, bytes) or packet[0] < 1000]
    for index, packet in enumerate(packets):
        if isinstance(packet, bytes):
            others, data = others + packet, data + packet
            continue
        size, packet_id = packet
        payload = bytes([index + 1]) * size
        data += publish_header(f"a/{index}", size, packet_id=packet_id) + payload
        wanted.append((f"a/{index}", payload, 0 if packet_id is None else 1, packet_id))
    found, passed, stream = read_all(data, chunk_sizes)
    assert [tuple(message) for message in found] == wanted
    assert passed == others
    assert not stream.midway


def test_a_length_of_five_bytes_and_what_is_too_long_to_be_kept_are_passed_on_as_they_come():
    assert read_all(b"\x30\xff\xff\xff\xff", [1])[1] == b"\x30\xff\xff\xff\xff"
    begun = publish_header("t", MOST_BYTES, packet_id=None) + bytes(1000)
    found, passed, stream = read_all(begun, [100])
    assert (found, passed, stream.midway) == ([], begun, False)


def test_an_end_is_named_and_a_new_connection_begins_with_nothing_kept():
    _, _, stream = read_all(publish_header("t", 50_000, packet_id=None) + bytes(40_000), [200_000])
    assert stream.midway
    with pytest.raises(ConnectionError):
        stream.receive(Chunks(b"", forever([1])))
    stream.clear()
    (message,) = stream.receive(Chunks(publish_header("t", 2, packet_id=None) + b"ok", forever([100])))
    assert message.payload == b"ok"
