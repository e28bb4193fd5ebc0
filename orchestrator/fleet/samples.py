"""Keep the pictures that devices send because their model was unsure: within bounds for a device and a day, and for the folder.

python -m orchestrator.fleet.samples --store URL --broker URL --folder DIR      into DIR/samples/TENANT/DEVICE/
"""

import logging
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import msgspec
from sqlalchemy import select

from edge_runtime.messages import PREFIX, MessageError, parse_topic
from edge_runtime.mqtt import LinkOptions, MqttLink
from edge_runtime.sample_message import SampleHead, unpack_sample
from edge_runtime.sample_options import SampleOptions
from edge_runtime.samples import Spent, may_send
from orchestrator.fleet.program import Program, run_program
from orchestrator.fleet.store import Store
from orchestrator.fleet.tables import Device

log = logging.getLogger(__name__)
FOLDER = "samples"  # below the fleet's
_DAY_S = 86_400
_MAX_DEVICES = 65_536


@dataclass(frozen=True)
class SampleLimits:
    """What is kept: of one device and day, and altogether (the oldest goes first)."""

    per_day: int = 1000
    bytes_per_day: int = 100_000_000
    total_bytes: int = 5_000_000_000


class SampleStore:
    """Files of samples: NAME.jpg (or .png, .webp) with NAME.json beside it.

    Args:
        folder: Made when it is not there.
        limits: See `SampleLimits`.
    """

    def __init__(self, folder: Path, limits: SampleLimits | None = None) -> None:
        self._folder = folder
        self._limits = limits or SampleLimits()
        folder.mkdir(parents=True, exist_ok=True)
        found = sorted(folder.glob("*/*/*"), key=lambda path: path.stat().st_mtime)
        self._sizes = OrderedDict((path, path.stat().st_size) for path in found if path.suffix != ".part")
        self._total = sum(self._sizes.values())
        self._spent: OrderedDict[str, Spent] = OrderedDict()

    @property
    def total_bytes(self) -> int:
        """Of all files."""
        return self._total

    def keep(self, device: str, head: SampleHead, picture: bytes, *, now_s: float) -> bool:
        """Write a sample; False when the device has spent its day, or sent this one before.

        Args:
            device: tenant/name, both checked.
            head: What came with it.
            picture: The file.
            now_s: Seconds since 1970.
        """
        limits = SampleOptions(1.0, self._limits.per_day, self._limits.bytes_per_day)
        text = msgspec.json.encode(head)
        size = len(picture) + len(text)
        day = int(now_s) // _DAY_S
        spent = may_send(self._spent.get(device, Spent(day=day)), limits, day=day, size=size)
        place = self._folder / device / f"{head.boot}-{head.seq}.{head.form}"
        if spent is None or place in self._sizes or size > self._limits.total_bytes:
            return False
        self._spent[device] = spent
        self._spent.move_to_end(device)
        if len(self._spent) > _MAX_DEVICES:
            self._spent.popitem(last=False)
        while self._sizes and self._total + size > self._limits.total_bytes:
            oldest, freed = self._sizes.popitem(last=False)
            oldest.unlink(missing_ok=True)
            self._total -= freed
        place.parent.mkdir(parents=True, exist_ok=True)
        for path, content in ((place, picture), (place.with_suffix(".json"), text)):
            partial = path.with_name(path.name + ".part")
            partial.write_bytes(content)
            partial.replace(path)
            self._sizes[path] = len(content)
            self._total += len(content)
        return True


class SampleCollector:
    """Listens to samples and keeps those of devices that are in the registry and not blocked.

    Args:
        store: The fleet's database.
        broker: URL.
        samples: Where they go.
    """

    def __init__(self, store: Store, broker: str, samples: SampleStore) -> None:
        self._store, self._samples = store, samples
        self._stop = threading.Event()
        subscriptions = ((f"{PREFIX}/+/+/up/sample", 0),)
        self.link = MqttLink(broker, LinkOptions(subscriptions=subscriptions), self._received)

    def run(self) -> None:
        """Until `stop`."""
        with self.link:
            self._stop.wait()

    def stop(self) -> None:
        """End `run`."""
        self._stop.set()

    def _received(self, topic: str, payload: bytes, _qos: int) -> None:
        topics = parse_topic(topic).topics
        device = f"{topics.tenant}/{topics.device}"
        head, picture = unpack_sample(payload)
        with self._store.read() as session:
            blocked = session.scalar(select(Device.blocked).where(Device.id == device))
        if blocked is None or blocked:
            raise MessageError(f"Wanted samples of devices of this fleet, found one of {device}.")
        if not self._samples.keep(device, head, picture, now_s=time.time()):
            log.info("a sample of %s is not kept: its day is spent", device)


def _start(program: Program) -> None:
    samples = SampleStore(program.folder / FOLDER)
    collector = SampleCollector(Store(program.store), program.broker, samples)
    program.on_stop(collector.stop)
    program.say_ready("samples")
    collector.run()


if __name__ == "__main__":
    run_program(_start)
