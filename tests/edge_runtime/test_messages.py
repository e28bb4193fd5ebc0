import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.blocks import Block, decode_block, encode_block
from edge_runtime.messages import (
    BLOCK_BYTES,
    MAX_CONTROL_BYTES,
    Birth,
    Death,
    DeployStart,
    DeployStatus,
    Heartbeat,
    MessageError,
    Ranked,
    Result,
    Slots,
    Topics,
    decode_control,
    encode_control,
    parse_topic,
    requests_filter,
)

BOOT = "0123456789abcdef"
EXAMPLES = [
    Birth(
        boot=BOOT, agent="0.1", board="rpi-5", engines=("onnxruntime",), max_block_bytes=1, slots=Slots(head="a" * 64)
    ),
    Death(boot=BOOT),
    Heartbeat(
        boot=BOOT,
        seq=1,
        uptime_s=2.0,
        frames=3,
        dropped=0,
        remote=2,
        local=1,
        failed=0,
        late=0,
        rss_bytes=None,
        slots=Slots(),
    ),
    Result(
        boot=BOOT,
        seq=1,
        frame="a.jpg",
        source="remote",
        top=(Ranked(index=3, score=0.5, label="cat"),),
        ms={"head_ms": 1.5},
    ),
    DeployStart(boot=BOOT, transfer=BOOT, artefact="b" * 64, zip_sha256="c" * 64, size=70_000),
    DeployStatus(boot=BOOT, transfer=BOOT, state="receiving", have=b"\x01\x80"),
]
segments = st.from_regex(r"\A[A-Za-z0-9_-][A-Za-z0-9_.-]{0,63}\Z")


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_control_messages_come_back_and_refuse_what_they_do_not_know(message):
    data = encode_control(message)
    assert decode_control(data, type(message)) == message
    fields = msgspec.json.decode(data)
    for changed in ({**fields, "more": 1}, {**fields, "v": 2}, {**fields, "boot": "x"}):
        with pytest.raises(MessageError):
            decode_control(msgspec.json.encode(changed), type(message))
    with pytest.raises(MessageError, match="within"):
        decode_control(b" " * (MAX_CONTROL_BYTES + 1), type(message))


@given(st.binary(max_size=300))
def test_any_bytes_give_a_message_or_a_named_error(data):
    for kind in {type(message) for message in EXAMPLES}:
        with pytest.raises(MessageError):
            decode_control(data, kind)
    with pytest.raises(MessageError):
        decode_block(data)


@given(st.integers(0, 1000), st.binary(min_size=1, max_size=500))
def test_blocks_come_back_and_damage_is_noticed(index, content):
    data = encode_block(Block(index, content))
    assert decode_block(data) == Block(index, content)
    with pytest.raises(MessageError):
        decode_block(data[:-1] + bytes([data[-1] ^ 1]))


def test_a_block_has_a_largest_size():
    decode_block(encode_block(Block(0, bytes(BLOCK_BYTES))))
    with pytest.raises(MessageError, match="at most"):
        decode_block(encode_block(Block(0, bytes(BLOCK_BYTES + 1))))


@given(segments, segments, segments)
def test_topics_come_apart_as_they_were_put_together(tenant, device, transfer):
    topics = Topics(tenant, device)
    for topic, rest in (
        (topics.up("birth"), ("up", "birth")),
        (topics.deploy, ("down", "deploy")),
        (topics.block(transfer), ("down", "blk", transfer)),
        (topics.request(BOOT, BOOT), ("off", "req", BOOT, BOOT)),
        (topics.reply(BOOT), ("off", "rep", BOOT)),
    ):
        parsed = parse_topic(topic)
        assert (parsed.topics, parsed.rest) == (topics, rest)


@pytest.mark.parametrize("bad", ["", "a/b", "+", "#", "$SYS", "a b", "a\n", "\0", ".hidden", "x" * 65, "ü"])
def test_segments_with_meaning_to_a_broker_are_refused(bad):
    for make in (lambda: Topics(bad, "d"), lambda: Topics("t", bad), lambda: Topics("t", "d").reply(bad)):
        with pytest.raises(MessageError):
            make()


@given(st.text(max_size=100))
def test_any_topic_gives_a_value_or_a_named_error(text):
    for topic in (text, f"ht/v1/{text}", f"ht/v1/t/d/off/req/{text}"):
        with contextlib.suppress(MessageError):
            parse_topic(topic)


def test_a_tail_shares_its_subscription():
    assert requests_filter(BOOT) == f"$share/tails/ht/v1/+/+/off/req/{BOOT}/+"
    assert requests_filter(BOOT, group=None) == f"ht/v1/+/+/off/req/{BOOT}/+"


def test_text_that_no_database_keeps_and_times_beyond_sense_are_refused():
    good = encode_control(EXAMPLES[3])
    for wrong in (good.replace(b"a.jpg", b"a\\u0000.jpg"), good.replace(b"1.5", b"1.7e308")):
        assert wrong != good
        with pytest.raises(MessageError):
            decode_control(wrong, Result)
