"""How many devices at one message a second: the fleet's ingest with its database, against a bare paho subscriber without.

Broker, simulated devices and listener share one machine, and both listeners hear the same running devices, in turns. A number
of devices is carried when 99 % of the messages arrive (for the ingest: are committed) within 100 ms. The clock is the
machine's; senders put it into each message. The machine has other things to do at times: a listener that does not carry a
number tries it `TRIES` times, whichever of the two it is. The numbers are those of `STEPS`, and at last the middle between the
most that a listener carried and the least that it did not.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from benchmarks.fleet_processes import FleetBenchError, FleetProcesses, wait_until
from edge_runtime.messages import Heartbeat
from edge_runtime.mqtt import parse_url
from orchestrator.fleet.fast_link import FastLink
from orchestrator.fleet.ingest import Ingest
from orchestrator.fleet.queries import summarise
from orchestrator.fleet.store import Store, default_url, now_ms

STEPS = tuple(int(step) for step in os.environ.get("HEADTAIL_BENCH_STEPS", "8000,11000,14000,17000,20000").split(","))
TRIES = 3
SETTLE_S, SECONDS = 1.5, 4.0
LIMIT_MS = 100.0
SAMPLE_EVERY = 7
FILTER, BIRTHS = "ht/v1/+/+/up/hb", "ht/v1/+/+/up/birth"


@dataclass
class Side:
    """What is known of one listener; `p99_ms` is its best run at the number that it carries."""

    carried: int = 0
    failed: int | None = None  # the least number that it does not carry
    p99_ms: float | None = None

    def learn(self, devices: int, p99_ms: float) -> None:
        """The outcome at a number of devices."""
        if p99_ms <= LIMIT_MS:
            self.carried, self.p99_ms = devices, p99_ms
        else:
            self.failed = devices

    @property
    def between(self) -> int | None:
        """What is tried at last."""
        return None if self.failed is None else (self.carried + self.failed) // 2


def rows() -> Iterator[dict[str, object]]:
    """For QoS 1 and 0: devices carried by each, and their ratio where the steps reach what the peer does not carry."""
    for qos in (1, 0):
        sides = climb(qos)
        ours, peer = sides["ours"], sides["paho"]
        reached = peer.carried and peer.failed  # otherwise nobody knows how many more the peer would carry
        ratio = round(ours.carried / peer.carried, 3) if reached else None
        version = f"paho-mqtt {_paho_version()}"
        what = f"devices at 1 msg/s, QoS {qos}, p99 below {LIMIT_MS:.0f} ms"
        best = f"best of {TRIES} where one run is not enough"
        yield {"id": f"devices_q{qos}.ratio", "what": f"{what}: ingest with database over a bare subscriber, {best}", "value": ratio, "unit": "x", "direction": ">=", "bar": 0.9, "peer": "paho subscriber without database", "peer_version": version}  # fmt: skip
        yield {"id": f"devices_q{qos}.count", "what": f"{what}: ingest, upserts committed (steps {STEPS}, then the middle)", "value": ours.carried, "unit": "devices", "direction": "info"}  # fmt: skip
        yield {"id": f"devices_q{qos}.peer", "what": f"{what}: bare subscriber", "value": peer.carried, "unit": "devices", "direction": "info"}  # fmt: skip
        yield {"id": f"devices_q{qos}.p99", "what": f"{what}: p99 of the ingest at its count", "value": ours.p99_ms, "unit": "ms", "direction": "info"}  # fmt: skip


def climb(qos: int) -> dict[str, Side]:
    """Both listeners up the steps until neither goes further, and then the middles."""
    sides = {"ours": Side(), "paho": Side()}
    for devices in STEPS:
        climbing = [who for who, side in sides.items() if side.failed is None]
        if not climbing:
            break
        for who, p99_ms in run_step(climbing, devices, qos).items():
            sides[who].learn(devices, p99_ms)
    middles = {who: side.between for who, side in sides.items()}
    for devices in sorted({middle for middle in middles.values() if middle}):
        for who, p99_ms in run_step([who for who in sides if middles[who] == devices], devices, qos).items():
            sides[who].learn(devices, p99_ms)
    return sides


def run_step(listeners: Sequence[str], devices: int, qos: int) -> dict[str, float]:
    """Best p99 in ms of each at this number of devices; infinite when messages are missing or devices do not get in."""
    best = dict.fromkeys(listeners, float("inf"))
    with tempfile.TemporaryDirectory() as name, FleetProcesses("", Path(name)) as fleet:
        fleet.start_devices("devices", devices, 0, "--heartbeat", "1", "--qos", str(qos), "--slow-share", "0")
        try:
            _wait_for_births(fleet.broker, devices)
        except FleetBenchError as error:
            print(f"qos {qos}, {devices} devices: {error}", flush=True)
            return best
        for attempt in range(TRIES):
            for who in sorted(listeners, reverse=bool(attempt % 2)):
                if best[who] > LIMIT_MS:
                    p99_ms = measure(who, fleet.broker, Path(name, f"{who}-{attempt}"), devices)
                    print(f"qos {qos}, {devices} devices, {who}: p99 {p99_ms:.1f} ms", flush=True)
                    best[who] = min(best[who], p99_ms)
    return best


def measure(who: str, broker: str, folder: Path, devices: int) -> float:
    """p99 in ms of one run with a new database; infinite when messages are missing."""
    folder.mkdir()
    command = [sys.executable, "-m", "benchmarks.bench_fleet_devices", who, broker, default_url(folder), str(devices)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as listener:
        try:
            output, _ = listener.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            return float("inf")
        finally:
            listener.kill()
    if listener.returncode != 0:
        raise FleetBenchError(f"Wanted the {who} listener to end well, found status {listener.returncode}.")
    seen = json.loads(output)
    complete = seen["messages"] >= 0.97 * devices * seen["seconds"]
    return float(seen["p99_ms"]) if complete else float("inf")


def _wait_for_births(broker: str, devices: int) -> None:
    """Until every device is connected: the broker keeps their births."""
    born: set[str] = set()

    def take(messages: Sequence[tuple[str, bytes]]) -> None:
        born.update(topic for topic, _ in messages)

    with FastLink(broker, ((BIRTHS, 0),), take):
        wait_until(lambda: len(born) >= devices, 90, f"{devices} devices")


class _Ages:
    """Ages of a sample of messages, once `begun`."""

    def __init__(self) -> None:
        self.begun = False
        self.count = 0
        self.ages: list[float] = []
        self._decode = msgspec.json.Decoder(Heartbeat).decode

    def add(self, payloads: list[bytes]) -> None:
        """Messages that are done with now."""
        now = time.monotonic()
        if self.begun:
            self.count += len(payloads)
            self.ages += [now - self._decode(payload).uptime_s for payload in payloads[::SAMPLE_EVERY]]


class _TimedIngest(Ingest):
    """Looks at the clock after every commit."""

    ages: _Ages

    def _write(self, batch: list[tuple[str, bytes, int]]) -> None:
        super()._write(batch)
        self.ages.add([payload for topic, payload, _ in batch if topic.endswith("/hb")])


def listen(who: str, broker: str, store: str, devices: int) -> None:
    """The listener's process: wait until the devices are there, count for some seconds, print."""
    ages = _Ages()
    if who == "ours":
        ingest = _TimedIngest(Store(store, durability="process-kill"), broker, group=None)
        ingest.ages = ages
        threading.Thread(target=ingest.run, daemon=True).start()
        _wait_for_all(store, devices)
        while ingest.backlog > devices // 10:
            time.sleep(0.05)
    else:
        _start_paho(broker, ages)
    time.sleep(SETTLE_S)
    ages.begun, begun = True, time.monotonic()
    time.sleep(SECONDS)
    ages.begun, seconds = False, time.monotonic() - begun
    p99 = 1000 * float(np.quantile(ages.ages, 0.99)) if ages.ages else float("inf")
    print(json.dumps({"p99_ms": p99, "messages": ages.count, "seconds": seconds}), flush=True)
    os._exit(0)


def _start_paho(broker: str, ages: _Ages) -> None:
    url = parse_url(broker)
    client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
    waiting: list[bytes] = []

    def take(_client: object, _userdata: object, message: paho.MQTTMessage) -> None:
        waiting.append(bytes(message.payload))
        if len(waiting) == SAMPLE_EVERY:
            ages.add(waiting)
            waiting.clear()

    client.on_message = take
    client.on_connect = lambda *_: client.subscribe(FILTER, 1)
    client.connect(url.host, url.port, 60)
    client.loop_start()


def _wait_for_all(store: str, devices: int) -> None:
    """Until all births are in the database."""
    opened, end = Store(store, migrate=False), time.monotonic() + 30
    while time.monotonic() < end:
        with opened.read() as session:
            if summarise(session, now_ms=now_ms()).by_status.get("online", 0) >= devices:
                return
        time.sleep(0.3)


def _paho_version() -> str:
    import paho.mqtt

    return paho.mqtt.__version__


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("who", choices=["ours", "paho"])
    parser.add_argument("broker")
    parser.add_argument("store")
    parser.add_argument("devices", type=int)
    parsed = parser.parse_args()
    listen(parsed.who, parsed.broker, parsed.store, parsed.devices)
