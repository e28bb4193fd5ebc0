import io
import sys
import threading
import types
import typing

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edge_runtime.sources import Frame, Newest, SourceError, open_source, split_jpegs


def jpeg(shade, size=8):
    stream = io.BytesIO()
    Image.new("RGB", (size, size), (shade, 0, 0)).save(stream, "JPEG")
    return stream.getvalue()


class Trickle(io.BytesIO):
    """A stream that hands out small pieces, as a pipe does."""

    def __init__(self, data, step):
        super().__init__(data)
        self._step = step

    def read1(self, _size=-1):
        return super().read(self._step)


@given(st.lists(st.integers(0, 255), max_size=5), st.integers(1, 2000))
def test_a_stream_of_jpegs_is_cut_at_its_pictures(shades, step):
    pictures = [jpeg(shade) for shade in shades]
    assert list(split_jpegs(Trickle(b"".join(pictures), step))) == pictures


@pytest.mark.parametrize("step", [1, 7, 65536])
def test_a_thumbnail_or_a_cut_off_picture_ends_no_other(step):
    thumbnail = jpeg(9)
    inside = jpeg(1)[:2] + b"\xff\xe1" + (len(thumbnail) * 2 + 2).to_bytes(2, "big") + 2 * thumbnail + jpeg(1)[2:]
    cut_off = jpeg(2, 64)[:-4]
    pictures = [inside, cut_off, jpeg(3, 64), inside]
    assert list(split_jpegs(Trickle(b"".join(pictures), step))) == pictures


@given(st.binary(max_size=300), st.integers(1, 300))
def test_damage_in_a_stream_loses_no_byte(noise, step):
    data = jpeg(1)[:20] + noise + jpeg(2)
    try:
        assert b"".join(split_jpegs(Trickle(data, step))) == data
    except SourceError as error:
        assert "JPEG" in str(error)  # noqa: PT017 - no error is right as well


class Camera:
    """OpenCV's capture: two pictures, and then the cable is out."""

    asked: typing.ClassVar = []

    def __init__(self, address):
        self.asked.append(address)
        self._left = 2

    def isOpened(self):
        return True

    def read(self):
        self._left -= 1
        return self._left >= 0, np.zeros((2, 2, 3), np.uint8)

    def release(self):
        self._left = 0


@pytest.mark.parametrize(("spec", "address"), [("v4l2:0", 0), ("v4l2:/dev/video1", "/dev/video1")])
def test_a_camera_is_opened_by_number_or_path_and_one_that_stops_is_named(monkeypatch, spec, address):
    opencv = types.SimpleNamespace(VideoCapture=Camera, COLOR_BGR2RGB=4, cvtColor=lambda picture, _code: picture)
    monkeypatch.setitem(sys.modules, "cv2", opencv)
    frames = open_source(spec)
    assert [next(frames).name for _ in range(2)] == ["camera-0", "camera-1"]
    assert Camera.asked[-1] == address
    with pytest.raises(SourceError, match="it stopped"):
        next(frames)


def test_folders_named_like_pictures_are_no_frames(tmp_path):
    (tmp_path / "old.jpg").mkdir()
    (tmp_path / "new.jpg").write_bytes(jpeg(7))
    assert [frame.name for frame in open_source(f"dir:{tmp_path}")] == ["new.jpg"]


@pytest.mark.parametrize("fps", [0.0, -1.0, float("nan")])
def test_a_rate_that_is_none_is_named(fps):
    with pytest.raises(SourceError, match="frames a second"):
        Newest(iter(()), fps=fps)


def test_a_stream_of_something_else_is_named():
    with pytest.raises(SourceError, match="JPEG"):
        list(split_jpegs(io.BytesIO(b"GIF89a....")))


def test_a_folder_gives_its_pictures_in_order_and_over_again(tmp_path):
    for name, shade in (("b.jpg", 2), ("a.JPG", 1), ("c.txt", 3)):
        (tmp_path / name).write_bytes(jpeg(shade))
    frames = list(open_source(f"dir:{tmp_path}"))
    assert [(frame.seq, frame.name) for frame in frames] == [(0, "a.JPG"), (1, "b.jpg")]
    assert frames[0].array().shape == (8, 8, 3)
    looped = open_source(f"dir:{tmp_path}", loop=True)
    assert [next(looped).name for _ in range(5)] == ["a.JPG", "b.jpg", "a.JPG", "b.jpg", "a.JPG"]


def test_a_function_is_a_source(tmp_path, monkeypatch):
    (tmp_path / "my_camera_for_test.py").write_text("import numpy\ndef frames():\n    yield numpy.zeros((1, 2))\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert [frame.array().shape for frame in open_source("my_camera_for_test:frames")] == [(1, 2)]


@pytest.mark.parametrize(
    "spec", ["", "dir:/nowhere/at/all", "file.mp4", "no_such_module:f", "os:no_such_function", "x:y z"]
)
def test_sources_that_are_not_there_are_named(spec):
    with pytest.raises(SourceError):
        open_source(spec)


def test_the_newest_frame_wins_and_the_others_are_counted():
    done = threading.Event()

    def source():
        for number in range(10):
            yield Frame(number, str(number), np.zeros(1))
        done.set()

    newest = Newest(source()).start()
    assert done.wait(10)
    frame = newest.take(10)
    while not newest.ended:
        frame = newest.take(0.01) or frame
    assert frame.seq == 9
    assert newest.read == 10
    assert newest.dropped + 1 <= 10
    assert newest.take(0.01) is None


def test_keep_all_loses_nothing():
    newest = Newest((Frame(number, "", np.zeros(1)) for number in range(50)), keep_all=True).start()
    taken = []
    while (frame := newest.take(10)) is not None:
        taken.append(frame.seq)
    assert taken == list(range(50))
    assert newest.dropped == 0


def test_an_error_of_the_source_reaches_the_taker():
    def broken():
        yield Frame(0, "", np.zeros(1))
        raise SourceError("the camera is gone")

    newest = Newest(broken(), keep_all=True).start()
    assert newest.take(10).seq == 0
    with pytest.raises(SourceError, match="gone"):
        newest.take(10)
