import contextlib
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from edge_runtime.blocks import Block, encode_block
from edge_runtime.manifest import DTYPES
from edge_runtime.wire import (
    CODEC_ENTROPY,
    DamagedError,
    Envelope,
    FormatError,
    LimitError,
    Limits,
    Reply,
    Status,
    TruncatedError,
    WireError,
    decode_frame,
    decode_tensors,
    encode_image_file,
    encode_tensors,
    pack_envelope,
    pack_reply,
    unpack_envelope,
    unpack_reply,
)

CUT = bytes.fromhex("00112233445566aa")
LIMITS = Limits(1 << 20, 1 << 20)
ID = bytes(range(16))


def golden(name):
    text = (Path(__file__).parents[2] / "docs" / "wire.md").read_text()
    found = re.search(rf"```hex {name}\n(.*?)```", text, re.DOTALL)
    return bytes.fromhex("".join(found.group(1).split()))


def framed(*arrays):
    return b"".join(encode_tensors(arrays, cut_id=CUT))


def test_the_documented_bytes_are_what_is_written():
    tensors = (np.array([[1, 2, 3]], np.uint8), np.array([[-1.5]], np.float32))
    written = {
        "envelope": pack_envelope(Envelope(ID, 250)),
        "reply": pack_reply(Reply(ID, Status.OK, 120, 30, 4500, 1_000_000)),
        "busy": pack_reply(Reply(ID, Status.BUSY, 9)) + b"busy",
        "frame": framed(*tensors),
        "picture": b"".join(encode_image_file(b"\xff\xd8\xff\xd9", cut_id=CUT)),
        "block": encode_block(Block(5, b"abc")),
    }
    for name, data in written.items():
        assert data == golden(name), name


arrays = st.sampled_from(DTYPES).flatmap(
    lambda name: npst.arrays(np.dtype(name), npst.array_shapes(max_dims=3, max_side=5).map(lambda shape: (1, *shape)))
)


@given(st.lists(arrays, min_size=1, max_size=8))
def test_tensors_come_back_bit_for_bit(values):
    decoded = decode_tensors(decode_frame(framed(*values), LIMITS))
    for value, other in zip(values, decoded, strict=True):
        assert (other.dtype, other.shape, other.flags.aligned) == (value.dtype, value.shape, True)
        assert other.tobytes() == value.tobytes()


def test_decoding_copies_nothing():
    data = framed(np.arange(1000, dtype=np.float32)[np.newaxis])
    (array,) = decode_tensors(decode_frame(data, LIMITS))
    assert np.shares_memory(array, np.frombuffer(data, np.uint8))


def test_strided_arrays_are_written_in_their_logical_order():
    value = np.arange(24, dtype=np.int32).reshape(1, 4, 6)[:, ::2, ::-1]
    (other,) = decode_tensors(decode_frame(framed(value), LIMITS))
    np.testing.assert_array_equal(other, value)


@given(st.binary(min_size=16, max_size=16), st.integers(0, 2**32 - 1), st.sampled_from(Status))
def test_envelope_and_reply_come_back(request_id, number, status):
    envelope = Envelope(request_id, number)
    assert unpack_envelope(pack_envelope(envelope)) == envelope
    reply = Reply(request_id, status, number, number // 2, number // 3, number << 31)
    assert unpack_reply(pack_reply(reply)) == reply


@given(st.binary(max_size=400))
def test_any_bytes_give_a_value_or_a_named_error(data):
    for decode in (unpack_envelope, unpack_reply, lambda d: decode_tensors(decode_frame(d, LIMITS))):
        with contextlib.suppress(WireError):
            decode(data)


@settings(max_examples=300)
@given(st.data())
def test_one_changed_byte_is_always_noticed(data):
    frame = bytearray(framed(np.arange(10, dtype=np.int16)[np.newaxis]))
    index = data.draw(st.integers(0, len(frame) - 1))
    frame[index] ^= data.draw(st.integers(1, 255))
    with pytest.raises(WireError):
        decode_frame(bytes(frame), LIMITS)


@given(st.integers(0, 70))
def test_every_truncation_is_noticed(length):
    frame = framed(np.arange(16, dtype=np.int16)[np.newaxis])
    with pytest.raises(TruncatedError):
        decode_frame(frame[:length], LIMITS)
    with pytest.raises(TruncatedError):
        decode_frame(frame + b"\0", LIMITS)


def test_limits_and_damage_have_names_of_their_own():
    frame = framed(np.zeros((1, 100), np.uint8))
    with pytest.raises(LimitError, match="99 B"):
        decode_frame(frame, Limits(99, 1000))
    with pytest.raises(LimitError, match="50 B"):
        decode_frame(frame, Limits(1000, 50))
    with pytest.raises(DamagedError):
        decode_frame(frame[:-1] + b"\1", LIMITS)
    with pytest.raises(FormatError, match="codec"):
        decode_tensors(
            decode_frame(b"".join(encode_tensors([np.zeros((1, 4), np.uint8)], cut_id=CUT, code=CODEC_ENTROPY)), LIMITS)
        )


@pytest.mark.parametrize("shape", [(), (2, 3), (1, 70_000), (1, 1, 1, 1, 1), (1, 0)])
def test_shapes_that_a_frame_cannot_carry_are_refused(shape):
    with pytest.raises(FormatError, match="batch 1"):
        framed(np.zeros(shape, np.uint8))
    with pytest.raises(LimitError):
        framed(*[np.zeros((1, 1), np.uint8)] * 9)
