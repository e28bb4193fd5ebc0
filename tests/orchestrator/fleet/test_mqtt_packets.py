import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.fleet import mqtt_packets as packets
from orchestrator.fleet.mqtt_packets import PacketError, PacketReader, Published


@given(
    messages=st.lists(st.tuples(st.text(max_size=20), st.binary(max_size=300), st.none() | st.integers(1, 65535))),
    cuts=st.lists(st.integers(0, 5000)),
)
def test_a_stream_is_cut_into_its_packets_wherever_it_was_broken(messages, cuts):
    stream = b"".join(packets.encode_publish(topic, payload, packet_id=pid) for topic, payload, pid in messages)
    reader, found, at = PacketReader(), [], 0
    for cut in [*sorted(cut for cut in cuts if cut < len(stream)), len(stream)]:
        found += reader.feed(stream[at:cut])
        at = cut
    decoded = [packets.decode_publish(flags, body) for kind, flags, body in found if kind == packets.PUBLISH]
    assert decoded == [Published(*message) for message in messages]


@given(st.integers(0, 15), st.binary(max_size=60))
def test_any_body_is_a_message_or_a_named_error(flags, body):
    with contextlib.suppress(PacketError):
        assert len(packets.decode_publish(flags, body).payload) <= len(body)


def test_lengths_that_no_packet_has_are_refused():
    with pytest.raises(PacketError, match="at most"):
        PacketReader(max_bytes=100).feed(b"\x30\xff\x01")
    with pytest.raises(PacketError, match="four bytes"):
        PacketReader().feed(b"\x30\xff\xff\xff\xff\x01")
    with pytest.raises(PacketError, match="reason 87"):
        packets.check_connack(b"\x00\x87\x00")
