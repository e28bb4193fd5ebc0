"""Where an agent's frames come from, at which rate, and which are dropped: the newest frame wins.

| source | frames |
| --- | --- |
| `dir:PATH` | the pictures of a folder, in order of their names |
| `stdin` | JPEG files one after the other, as `rpicam-vid --codec mjpeg -o -` or `ffmpeg -f mjpeg -` write them |
| `v4l2:DEVICE`, `rtsp:URL` | a camera, through OpenCV (extra `camera`) |
| `module:function` | what a Python function yields: uint8 pictures (height, width, 3), or the model's input itself |
"""

import importlib
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np

from device_profiles.errors import EdgeError, MissingDependencyError
from edge_runtime.preprocess import decode_image

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_MAX_PICTURE_BYTES = 32 << 20
_START, _END = b"\xff\xd8", b"\xff\xd9"


class SourceError(EdgeError):
    """No such source, or nothing in it."""


class Frame(msgspec.Struct, frozen=True):
    """One frame. `data` is a uint8 picture (height, width, 3), an input tensor, or an encoded picture."""

    seq: int
    name: str
    data: np.ndarray | bytes

    def array(self) -> np.ndarray:
        """The picture or tensor; an encoded picture is decoded now.

        Raises:
            ImageError: It cannot be decoded.
        """
        return decode_image(self.data) if isinstance(self.data, bytes) else self.data


def open_source(spec: str, *, loop: bool = False) -> Iterator[Frame]:
    """Frames of a source, as fast as they are asked for.

    Args:
        spec: As in the table above.
        loop: Begin a folder again when it ends.

    Raises:
        SourceError: Unknown, empty or not there.
        MissingDependencyError: A camera without OpenCV.
    """
    kind, _, rest = spec.partition(":")
    pairs: Iterable[tuple[str, np.ndarray | bytes]]
    if kind == "dir":
        pairs = _folder(Path(rest), loop=loop)
    elif spec == "stdin":
        pairs = ((f"stdin-{index}", data) for index, data in enumerate(split_jpegs(sys.stdin.buffer)))
    elif kind in ("v4l2", "rtsp"):
        pairs = _camera(spec if kind == "rtsp" else rest)
    elif rest.isidentifier():
        pairs = ((f"{rest}-{index}", data) for index, data in enumerate(_function(kind, rest)()))
    else:
        raise SourceError(f"Wanted dir:PATH, stdin, v4l2:DEVICE, rtsp:URL or module:function, found {spec!r}.")
    return (Frame(seq, name, data) for seq, (name, data) in enumerate(pairs))


def split_jpegs(stream: BinaryIO) -> Iterator[bytes]:
    """Cut a stream of JPEG files at their ends.

    Raises:
        SourceError: A picture larger than 32 MiB, or no JPEG at all.
    """
    buffer, searched = bytearray(), 0
    while chunk := stream.read1(65536) if hasattr(stream, "read1") else stream.read(65536):
        buffer += chunk
        if len(buffer) >= 2 and not buffer.startswith(_START):
            raise SourceError(f"Wanted JPEG files on stdin, found {bytes(buffer[:8]).hex()}.")
        # An end marker counts before a new start or where the writer paused: a thumbnail's end cuts no picture.
        while (cut := buffer.find(_END + _START, searched)) >= 0:
            yield bytes(buffer[: cut + 2])
            del buffer[: cut + 2]
            searched = 0
        searched = max(0, len(buffer) - 3)  # the next piece may complete a marker
        if buffer.endswith(_END):
            yield bytes(buffer)
            buffer.clear()
            searched = 0
        if len(buffer) > _MAX_PICTURE_BYTES:
            raise SourceError(f"Wanted pictures of at most {_MAX_PICTURE_BYTES} B on stdin, found a larger one.")
    if buffer:
        yield bytes(buffer)


class Newest:
    """Reads a source in a thread, at a rate, into one place: a frame that was not taken in time is replaced.

    Args:
        frames: The source.
        fps: Frames a second; null takes them as they come.
        keep_all: Wait for the taker instead of dropping.

    Raises:
        SourceError: A rate that is not positive.
    """

    def __init__(self, frames: Iterable[Frame], *, fps: float | None = None, keep_all: bool = False) -> None:
        if fps is not None and not fps > 0:
            raise SourceError(f"Wanted more than 0 frames a second, found {fps:g}.")
        self._frames, self._fps, self._keep_all = frames, fps, keep_all
        self._changed = threading.Condition()
        self._frame: Frame | None = None
        self._ended = False
        self._error: Exception | None = None
        self.read = 0
        self.dropped = 0
        self._thread = threading.Thread(target=self._run, name="source", daemon=True)

    def start(self) -> "Newest":
        """Begin to read."""
        self._thread.start()
        return self

    def take(self, timeout_s: float | None = None) -> Frame | None:
        """The newest frame; null at the end of the source, or when the time is over.

        Raises:
            EdgeError: The source broke.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._frame is not None or self._ended, timeout_s)
            frame, self._frame = self._frame, None
            self._changed.notify_all()
        if frame is None and self._error is not None:
            raise self._error
        return frame

    @property
    def ended(self) -> bool:
        """Whether the source has ended and its last frame was taken."""
        with self._changed:
            return self._ended and self._frame is None

    def stop(self) -> None:
        """Let the thread end; a source that blocks ends with the process."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _run(self) -> None:
        due = time.monotonic()
        try:
            for frame in self._frames:
                if self._fps is not None:
                    due = max(due + 1 / self._fps, time.monotonic() - 1 / self._fps)
                    with self._changed:
                        self._changed.wait_for(lambda: self._ended, due - time.monotonic())
                if not self._put(frame):
                    return
        except Exception as error:  # handed to whoever takes frames
            self._error = error
        finally:
            self.stop()

    def _put(self, frame: Frame) -> bool:
        with self._changed:
            if self._keep_all:
                self._changed.wait_for(lambda: self._frame is None or self._ended)
            if self._ended:
                return False
            self.read += 1
            self.dropped += self._frame is not None
            self._frame = frame
            self._changed.notify_all()
            return True


def _folder(folder: Path, *, loop: bool) -> Iterator[tuple[str, bytes]]:
    if not folder.is_dir():
        raise SourceError(f"Wanted a folder of pictures, found none at {folder}.")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES and path.is_file())
    if not paths:
        raise SourceError(f"Wanted pictures ({', '.join(_SUFFIXES)}) in {folder}, found none.")
    return _read_files(paths, loop=loop)


def _read_files(paths: list[Path], *, loop: bool) -> Iterator[tuple[str, bytes]]:
    while True:
        for path in paths:
            yield path.name, path.read_bytes()
        if not loop:
            return


def _function(module: str, name: str) -> Callable[[], Iterable[np.ndarray | bytes]]:
    try:
        function: Callable[[], Iterable[np.ndarray | bytes]] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise SourceError(f"Wanted a function {name} in the module {module}, found: {error}.") from error
    return function


def _camera(address: str) -> Iterator[tuple[str, np.ndarray]]:
    try:
        import cv2
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "Wanted OpenCV for a camera, found none. Install it: pip install 'headtail[camera]'."
        ) from error
    capture = cv2.VideoCapture(address)
    if not capture.isOpened():
        raise SourceError(f"Wanted a camera at {address}, found none that opens.")
    return _grab(capture, cv2.COLOR_BGR2RGB, cv2.cvtColor)


def _grab(capture: "object", code: int, convert: Callable[..., np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    index = 0
    try:
        while True:
            good, picture = capture.read()  # type: ignore[attr-defined] # OpenCV is untyped
            if not good:
                return
            yield f"camera-{index}", convert(picture, code)
            index += 1
    finally:
        capture.release()  # type: ignore[attr-defined] # OpenCV is untyped
