"""Samples: off by default, within the day's quota, over restarts too; messages survive the way and damage is refused."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edge_runtime.agent_options import AgentOptions
from edge_runtime.cli import build_parser
from edge_runtime.cli_observing import samples_of
from edge_runtime.messages import MessageError, Ranked, Result, Topics
from edge_runtime.sample_message import SampleHead, pack_sample, unpack_sample
from edge_runtime.sample_options import SampleOptions
from edge_runtime.samples import Sampler, Spent, may_send
from edge_runtime.sources import Frame

BOOT = "ab" * 8


def picture():
    stream = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def result(score, seq=1):
    return Result(boot=BOOT, seq=seq, frame="f.png", source="remote", top=(Ranked(index=3, score=score),))


def sampler(tmp_path, sent, **options):
    return Sampler(SampleOptions(**{"below": 0.5, **options}), tmp_path, Topics("default", "dev"), sent.append)


def test_no_device_sends_samples_unless_it_was_started_so(tmp_path):
    arguments = build_parser().parse_args(["run", "--broker", "mqtt://x", "--device", "d"])
    assert samples_of(arguments) is None
    assert AgentOptions(broker="mqtt://x", device="d", state=tmp_path).samples is None
    arguments = build_parser().parse_args(
        ["run", "--device", "d", "--samples-below", "0.4", "--samples-mb-per-day", "1"]
    )
    assert samples_of(arguments) == SampleOptions(0.4, 100, 1_000_000)


def test_only_unsure_answers_are_sent_with_what_the_model_thought(tmp_path):
    sent = []
    one = sampler(tmp_path, sent)
    frame = Frame(1, "f.png", picture())
    assert not one.offer(frame, result(0.5), None)
    assert one.offer(frame, result(0.4), "1" * 64)
    one.enabled = False
    assert not one.offer(frame, result(0.4), None)
    (packet,) = sent
    assert packet.topic == "ht/v1/default/dev/up/sample"
    head, data = unpack_sample(packet.payload)
    assert (head.form, head.head, head.top[0].index, data) == ("png", "1" * 64, 3, picture())


def test_pictures_of_a_camera_are_sent_as_jpeg_and_tensors_not_at_all(tmp_path):
    sent = []
    one = sampler(tmp_path, sent)
    assert one.offer(Frame(1, "a", np.zeros((8, 8, 3), np.uint8)), result(0.1), None)
    assert unpack_sample(sent[0].payload)[0].form == "jpeg"
    assert not one.offer(Frame(2, "b", np.zeros((1, 8), np.float32)), result(0.1), None)
    assert not one.offer(Frame(3, "c", b"no picture"), result(0.1), None)


def test_the_quota_holds_over_restarts(tmp_path):
    sent = []
    for _ in range(3):
        one = sampler(tmp_path, sent, per_day=4)
        for seq in range(3):
            one.offer(Frame(seq, "f", picture()), result(0.1, seq), None)
    assert len(sent) == 4
    (tmp_path / "samples.json").write_bytes(b"{")
    assert not sampler(tmp_path, sent, per_day=100).offer(Frame(9, "f", picture()), result(0.1), None)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 400)), max_size=60))
def test_no_day_exceeds_count_or_bytes_whatever_the_clock_does(events):
    options, spent, sizes = SampleOptions(0.5, per_day=3, bytes_per_day=1000), Spent(), {}
    for day, size in events:
        after = may_send(spent, options, day=day, size=size)
        if after is not None:
            spent = after
            sizes.setdefault(spent.day, []).append(size)
    assert all(len(one) <= 3 and sum(one) <= 1000 for one in sizes.values())


@given(st.binary(max_size=200))
def test_a_damaged_sample_is_refused_by_name(noise):
    good = pack_sample(SampleHead(boot=BOOT, seq=1, frame="f", form="png"), picture())
    for data in (noise, good[: len(noise)], noise + good, good[:2] + noise + good[2:]):
        try:
            _head, found = unpack_sample(data)
        except MessageError:
            continue
        assert data == good or len(found) <= len(data)


def test_a_picture_of_another_kind_than_announced_is_refused():
    with pytest.raises(MessageError, match="jpeg"):
        unpack_sample(pack_sample(SampleHead(boot=BOOT, seq=1, frame="f", form="jpeg"), picture()))
