"""Every offload ends once, in time: workers killed with kill -9, a fifth of the packets lost, the device cut off for 5 s.

Host and device are two hosts of `benchmarks.netlab`; broker and tail workers run on one, an offloader on the other, each
a process. Two machines do not share a core, so that the device has the first one to itself. The device knows every request's start, end and deadline; nothing else is trusted.
"""

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.lite0 import pair, whole
from benchmarks.netlab import Access, NetLab, unavailable
from benchmarks.rows import ROOT
from orchestrator.broker import BrokerOptions, find_mosquitto, mosquitto_configuration

SLACK_MS = 10.0
DEADLINE_MS = 300.0
PORT = 1883
CALLERS = 4


def rows(seconds: float = 60.0) -> list[dict[str, Any]]:
    """Rows ends_once and its parts; null where no lab can be built."""
    why = unavailable()
    if why is not None:
        return [_row("ends_once", f"not measured: {why}", None, "offloads", "==", 0)]
    model = whole()
    head, tail = pair(model)
    found = run(head, tail, model, seconds)
    return judge(found)


def judge(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of what the device wrote down."""
    ended = found["ended"]
    late = [one for one in ended if one[1] > DEADLINE_MS + SLACK_MS]
    sources = {name: sum(one[0] == name for one in ended) for name in ("remote", "local", "error")}
    lost = found["begun"] - len(ended)
    counters = found["counters"]
    twice = abs(counters["remote"] + counters["local"] + counters["failed"] - found["begun"])
    worst = max(one[1] for one in ended)
    what = (
        f"{found['begun']} offloads of {found['kills']} worker kills, {found['partitions']} partitions of 5 s and 20 % loss, "
        f"deadline {DEADLINE_MS:.0f} ms: not ended once within the deadline + {SLACK_MS:.0f} ms ({sources})"
    )
    return [
        _row("ends_once", what, lost + twice + len(late), "offloads", "==", 0),
        _row("ends_once.lost", "offloads that did not end", lost, "offloads", "==", 0),
        _row("ends_once.twice", "ends that are not those of one offload each", twice, "offloads", "==", 0),
        _row("ends_once.late", "offloads that ended after their deadline + 10 ms", len(late), "offloads", "==", 0),
        _row("ends_once.worst", "longest offload", worst, "ms", "info", None),
        _row("ends_once.remote", "offloads that a tail answered", sources["remote"], "offloads", "info", None),
    ]


def run(head: Path, tail: Path, fallback: Path, seconds: float) -> dict[str, Any]:
    """Run broker, workers and device, and hurt them; what the device wrote down."""
    program = find_mosquitto()
    if program is None:
        raise FileNotFoundError("mosquitto is not installed")
    first, *others = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, others or {first})  # this process carries the link; broker and workers inherit it
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    lossy = Access(up_mbit=50, down_mbit=50, delay_ms=2.0, loss=0.2)
    with tempfile.TemporaryDirectory() as folder, NetLab({"host": Access(), "device": lossy}, seed=1) as lab:
        Path(folder).chmod(0o755)
        host, device = lab["host"], lab["device"]
        configuration = Path(folder, "mosquitto.conf")
        configuration.write_text(mosquitto_configuration(BrokerOptions(host=host.address, port=PORT), PORT))
        url = f"mqtt://{host.address}:{PORT}"
        python = [sys.executable, "-m"]
        broker = host.popen([program, "-c", configuration], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        processes = [broker]
        try:
            time.sleep(0.5)
            service = host.popen(
                [*python, "benchmarks.bench_ends_once", "--serve", tail, "--url", url],
                env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            processes.append(service)
            assert service.stdout is not None
            service.stdout.readline()
            asker = device.popen(
                [*python, "benchmarks.bench_ends_once", "--ask", head, fallback, "--url", url, "--seconds", str(seconds), "--core", str(first)],
                env=environment, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            processes.append(asker)
            assert asker.stdout is not None
            asker.stdout.readline()
            kills, partitions = _hurt(lab, service, seconds)
            found: dict[str, Any] = json.loads(asker.stdout.readline())
            return {**found, "kills": kills, "partitions": partitions}
        finally:
            for process in reversed(processes):
                process.kill()
                process.wait()


def _hurt(lab: NetLab, service: "subprocess.Popen[str]", seconds: float) -> tuple[int, int]:
    """Kill a worker every three seconds; cut the device off for 5 s every 20 s."""
    draw, begun = random.Random(2), time.monotonic()
    assert service.stdin is not None
    kills = partitions = 0
    next_kill, next_cut, heal_at = begun + 3, begun + 10, float("inf")
    while (now := time.monotonic()) < begun + seconds:
        if now >= next_kill:
            service.stdin.write(f"{draw.random()}\n")
            service.stdin.flush()
            kills, next_kill = kills + 1, now + 3
        if now >= next_cut:
            lab.partition(["device"])
            partitions, next_cut, heal_at = partitions + 1, now + 20, now + 5
        if now >= heal_at:
            lab.heal()
            heal_at = float("inf")
        time.sleep(0.02)
    lab.heal()
    return kills, partitions


def serve(tail: Path, url: str) -> None:
    """Child on the host: two workers; every line of the input kills one of them."""
    from orchestrator.serving.service import TailService
    from orchestrator.serving.worker import WorkerOrder

    with TailService(WorkerOrder(name="tail", broker=url, artefacts=(str(tail),), threads=1), 2) as service:
        print("ready", flush=True)
        for line in sys.stdin:
            pids = service.pids
            try:
                os.kill(pids[int(float(line) * len(pids))], 9)
            except ProcessLookupError:
                continue


def ask(head: Path, fallback: Path, url: str, seconds: float) -> None:
    """Child on the device: several callers, each one offload after the other."""
    from device_profiles.errors import EdgeError
    from edge_runtime.artefact import open_artefact
    from edge_runtime.mqtt import NotConnectedError
    from edge_runtime.offloader import Offloader, OffloadOptions

    manifest = open_artefact(head).manifest
    shape = manifest.inputs[0].shape
    array = np.random.default_rng(0).integers(0, 255, shape).astype(manifest.inputs[0].dtype)
    options = OffloadOptions(deadline_ms=DEADLINE_MS, threads=1)
    ended: list[tuple[str, float]] = []
    begun = [0] * CALLERS

    def call(index: int, end: float) -> None:
        pause = random.Random(index)
        while time.monotonic() < end:
            begun[index] += 1
            at = time.perf_counter()
            try:
                source = offloader.infer(array).source
            except EdgeError:
                source = "error"
            ended.append((source, 1000 * (time.perf_counter() - at)))
            time.sleep(pause.uniform(0.05, 0.25))

    with Offloader(
        url, "hurt", head=open_artefact(head), fallback=open_artefact(fallback), options=options
    ) as offloader:
        with contextlib.suppress(NotConnectedError):  # its requests then end locally
            offloader.wait_connected(30)
        for _ in range(5):
            offloader.infer(array, deadline_ms=5000)
        before = offloader.counters
        print("ready", flush=True)
        end = time.monotonic() + seconds
        threads = [threading.Thread(target=call, args=(index, end)) for index in range(CALLERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        after = offloader.counters
    counters = {name: getattr(after, name) - getattr(before, name) for name in ("remote", "local", "failed")}
    print(json.dumps({"begun": sum(begun), "ended": ended, "counters": counters}), flush=True)


def _row(identity: str, what: str, value: float | None, unit: str, direction: str, bar: float | None) -> dict[str, Any]:
    return {"id": identity, "what": what, "value": value, "unit": unit, "direction": direction, "bar": bar}


def main() -> None:
    """Print the rows, or be one of the children."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--serve", type=Path)
    parser.add_argument("--ask", type=Path, nargs=2)
    parser.add_argument("--url")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--core", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve, arguments.url)
    elif arguments.ask:
        os.sched_setaffinity(0, {arguments.core})
        ask(*arguments.ask, arguments.url, arguments.seconds)
    else:
        for one in rows(arguments.seconds):
            print(one)


if __name__ == "__main__":
    main()
