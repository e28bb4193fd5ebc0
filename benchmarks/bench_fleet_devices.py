"""How many devices at one message a second: the fleet's ingest with its database, against a bare paho subscriber without.

Interleaved on one machine: broker, simulated devices and listener share it. A number of devices is carried when 99 % of the
messages arrive (for the ingest: are committed) within 100 ms. The clock is the machine's; senders put it into each message.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import msgspec
import numpy as np
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from benchmarks.fleet_processes import FleetBenchError, FleetProcesses
from edge_runtime.messages import Heartbeat
from edge_runtime.mqtt import parse_url
from orchestrator.fleet.ingest import Ingest
from orchestrator.fleet.queries import summarise
from orchestrator.fleet.store import Store, default_url, now_ms

STEPS = tuple(int(step) for step in os.environ.get("HEADTAIL_BENCH_STEPS", "1000,1500,2000,2500,3000,3500,4000,5000,6000,8000,10000,12000").split(","))  # fmt: skip
SECONDS = 5.0
LIMIT_MS = 100.0
SAMPLE_EVERY = 7
FILTER = "ht/v1/+/+/up/hb"


def rows() -> list[dict[str, object]]:
    """For QoS 1 and 0: devices carried by each, and their ratio where the steps reach what the peer does not carry."""
    found: list[dict[str, object]] = []
    for qos in (1, 0):
        carried = {"ours": 0, "paho": 0}
        worst: dict[str, float] = {}
        for devices in STEPS:
            alive = [who for who in carried if not carried[who] or carried[who] == _before(devices)]
            for who in alive:
                p99 = measure(who, devices, qos)
                print(f"qos {qos}, {devices} devices, {who}: p99 {p99:.1f} ms", flush=True)
                if p99 <= LIMIT_MS:
                    carried[who], worst[who] = devices, p99
            if devices not in carried.values():
                break
        reached = carried["paho"] not in (0, STEPS[-1])  # otherwise nobody knows how many more the peer would carry
        ratio = carried["ours"] / carried["paho"] if reached else None
        version = f"paho-mqtt {_paho_version()}"
        what = f"devices at 1 msg/s, QoS {qos}, p99 below {LIMIT_MS:.0f} ms"
        found += [
            {"id": f"devices_q{qos}.ratio", "what": f"{what}: ingest with database over a bare subscriber", "value": ratio, "unit": "x", "direction": ">=", "bar": 0.9, "peer": "paho subscriber without database", "peer_version": version},
            {"id": f"devices_q{qos}.count", "what": f"{what}: ingest, upserts committed (steps {STEPS})", "value": carried["ours"], "unit": "devices", "direction": "info"},
            {"id": f"devices_q{qos}.peer", "what": f"{what}: bare subscriber", "value": carried["paho"], "unit": "devices", "direction": "info"},
            {"id": f"devices_q{qos}.p99", "what": f"{what}: p99 of the ingest at its count", "value": worst.get("ours"), "unit": "ms", "direction": "info"},
        ]  # fmt: skip
    return found


def measure(who: str, devices: int, qos: int) -> float:
    """p99 in ms of one run; infinite when messages are missing or devices do not get in."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with FleetProcesses(default_url(folder), folder) as fleet:
            listener = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.bench_fleet_devices", who, fleet.broker, fleet.store, str(devices)],
                stdout=subprocess.PIPE,
                stdin=subprocess.DEVNULL,
            )
            try:
                fleet.start_devices("devices", devices, 0, "--heartbeat", "1", "--qos", str(qos), "--slow-share", "0")
                output, _ = listener.communicate(timeout=120)
            except subprocess.TimeoutExpired:
                return float("inf")
            finally:
                listener.kill()
                listener.wait()
            if listener.returncode != 0:
                raise FleetBenchError(f"Wanted the {who} listener to end well, found status {listener.returncode}.")
            seen = json.loads(output)
            complete = seen["messages"] >= 0.97 * devices * seen["seconds"]
            return float(seen["p99_ms"]) if complete else float("inf")


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
        time.sleep(max(1.0, devices / 1000) + 4)  # it has no registry that could tell
    time.sleep(2)
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
    opened, end = Store(store, migrate=False), time.monotonic() + 90
    while time.monotonic() < end:
        with opened.read() as session:
            if summarise(session, now_ms=now_ms()).by_status.get("online", 0) >= devices:
                return
        time.sleep(1.0)


def _before(devices: int) -> int:
    index = STEPS.index(devices)
    return STEPS[index - 1] if index else 0


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
