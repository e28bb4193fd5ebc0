"""Send pictures that the model was unsure about, where the device's owner allows it: so many, and so many bytes, a day.

Off unless `edge-agent run --samples-below` is given; the host can switch it off, never on.
"""

import io
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np

from edge_runtime.durable import write_durably
from edge_runtime.messages import Count, Result, Topics
from edge_runtime.mqtt import MqttError, Packet
from edge_runtime.sample_message import MAX_PICTURE_BYTES, SampleHead, form_of, pack_sample
from edge_runtime.sample_options import SampleOptions
from edge_runtime.sources import Frame

log = logging.getLogger(__name__)
_NAME = "samples.json"
_DAY_S = 86_400


class Spent(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was sent on a day (days since 1970, UTC); kept over restarts."""

    day: int = 0
    count: Count = 0
    size: Count = 0


def may_send(spent: Spent, options: SampleOptions, *, day: int, size: int) -> Spent | None:
    """What will have been spent with one more of this size; null when the day's quota does not hold it.

    A clock that was set back gets no second quota for a day that it has left.
    """
    if day > spent.day:
        spent = Spent(day=day)
    if spent.count + 1 > options.per_day or spent.size + size > options.bytes_per_day:
        return None
    return Spent(day=spent.day, count=spent.count + 1, size=spent.size + size)


class Sampler:
    """Sends samples within the quota.

    Args:
        options: See `SampleOptions`.
        folder: The device's state; what was spent is kept there.
        topics: Of the device.
        publish: Sends a packet.
    """

    def __init__(
        self, options: SampleOptions, folder: Path, topics: Topics, publish: Callable[[Packet], object]
    ) -> None:
        self._options, self._path, self._topic, self._publish = options, folder / _NAME, topics.up("sample"), publish
        self._lock = threading.Lock()
        self._spent = _read(self._path)
        self.enabled = True  # the host may switch it off
        self.sent = 0

    def offer(self, frame: Frame, result: Result, head: str | None) -> bool:
        """Send this frame if its answer was unsure and the quota holds it; whether it was sent."""
        if not self.enabled or not result.top or result.top[0].score >= self._options.below:
            return False
        picture = encoded(frame.data)
        form = None if picture is None else form_of(picture)
        if picture is None or form is None or len(picture) > MAX_PICTURE_BYTES:
            return False
        message = pack_sample(
            SampleHead(boot=result.boot, seq=result.seq, frame=result.frame, form=form, head=head, top=result.top),
            picture,
        )
        with self._lock:
            spent = may_send(self._spent, self._options, day=int(time.time()) // _DAY_S, size=len(message))
            if spent is None:
                return False
            try:
                self._keep(spent)  # first: what cannot be counted is not sent
                self._publish(Packet(self._topic, message))
            except (OSError, MqttError) as error:
                log.info("a sample was not sent: %s", error)
                return False
            self.sent += 1
        return True

    def _keep(self, spent: Spent) -> None:
        write_durably(self._path, msgspec.json.encode(spent))
        self._spent = spent


def encoded(data: np.ndarray | bytes) -> bytes | None:
    """A frame as a picture file: what came, or a JPEG of a picture; null for anything else, or without Pillow."""
    if isinstance(data, bytes):
        return data
    if data.dtype != np.uint8 or data.ndim != 3 or data.shape[2] != 3:
        return None
    try:
        from PIL import Image
    except ModuleNotFoundError:
        return None
    stream = io.BytesIO()
    Image.fromarray(data).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def _read(path: Path) -> Spent:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Spent)
    except FileNotFoundError:
        return Spent()
    except (OSError, msgspec.DecodeError) as error:
        log.warning("what was sent today is not known (%s): nothing more is sent today", error)
        return Spent(day=int(time.time()) // _DAY_S, count=1 << 40)
