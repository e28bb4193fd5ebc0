"""The offload service under load: round trips and offloads a second; large tensors are `bench_direct`'s.

Every figure is a ratio to a peer in the same run, interleaved with it: bare paho on both ends (see `bench_rtt`). "With reports": a device that publishes the breakdown of every answer, and the dashboard's collector
listening. The tail is a `TailServer` in a process of its own; the broker has no access rules and no database takes part.
"""

import argparse
import functools
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.bench_rtt import FRAME_OVERHEAD_BYTES, KEY, BareRequester, interleave  # noqa: E402
from edge_runtime.messages import Ranked, Result, Topics, encode_control  # noqa: E402
from edge_runtime.mqtt import LinkOptions, MqttLink, Packet  # noqa: E402
from edge_runtime.offloader import Offloader, OffloadOptions  # noqa: E402
from edge_runtime.wire import Limits, decode_tensors  # noqa: E402
from orchestrator.broker import BrokerOptions, MosquittoBroker  # noqa: E402
from orchestrator.serving.served import Served  # noqa: E402
from orchestrator.tail_server import ServerOptions, TailServer  # noqa: E402

PAHO = {"peer": "paho-mqtt echo", "peer_version": version("paho-mqtt")}


def rows(count: int = 600, seconds: float = 10.0) -> list[dict[str, Any]]:
    """All rows of this part."""
    with MosquittoBroker(BrokerOptions(port=0)) as broker:
        workers = [child("echo", broker.url), child("tail", broker.url), child("dashboard", broker.url)]
        try:
            found = round_trips(broker.url, count)
            found += offloads(broker.url, seconds)
        finally:
            for worker in workers:
                stop(worker)
    return found


def round_trips(url: str, count: int) -> list[dict[str, Any]]:
    """Rows rtt_10k and rtt_100k, each at both QoS; the row without a suffix is the worse of the two."""
    found = []
    for size, name, bar in ((10_000, "rtt_10k", 1.25), (100_000, "rtt_100k", 1.15)):
        ratios = []
        for qos in (0, 1):
            ours, bare = measure(url, size, qos, count)
            p50, peer50 = statistics.median(ours), statistics.median(bare)
            ratios.append(p50 / peer50)
            tail = f"p99 {np.percentile(ours, 99):.1f} against {np.percentile(bare, 99):.1f}"
            what = f"with reports, {size // 1000} KB, QoS {qos}: p50 {p50:.2f} ms against {peer50:.2f} ms ({tail})"
            found.append(row(f"{name}.q{qos}", what, p50 / peer50, "x", "<=", bar, PAHO))
        found.append(row(name, f"with reports, {size // 1000} KB, the worse QoS", max(ratios), "x", "<=", bar, PAHO))
    return found


def measure(url: str, size: int, qos: int, count: int) -> tuple[list[float], list[float]]:
    """Round trips in ms: an offload, published breakdown included; bare paho's."""
    array = np.random.default_rng(0).integers(0, 255, (1, 10, size // 10), dtype=np.uint8)
    payload = bytes(size + FRAME_OVERHEAD_BYTES)
    topic = Topics("default", "bench").up("result")
    bare = BareRequester(url, qos, topics=peer_topics("alone"))
    reports: list[Packet] = []
    options = OffloadOptions(qos=qos, deadline_ms=5000)
    try:
        with Offloader(url, "bench", key=KEY, options=options) as ours, MqttLink(url, LinkOptions(), _ignore) as link:
            ours.wait_connected()
            link.wait_connected(10)

            def ask() -> None:
                answer = ours.infer(array)
                reports.append(Packet(topic, report(len(reports), answer.breakdown.as_dict(), answer.bytes_sent)))

            def ask_bare() -> None:
                bare.ask(payload)
                while reports:  # published as the agent does, in the other one's turn too: it loads the broker alike
                    link.publish(reports.pop())

            return interleave(ask, ask_bare, count)
    finally:
        bare.close()


def report(seq: int, ms: dict[str, float], sent: int) -> bytes:
    """A result as the agent publishes it."""
    top = (Ranked(index=1, score=0.9),)
    return encode_control(Result(boot="0" * 16, seq=seq, frame=str(seq), source="remote", top=top, ms=ms, sent=sent))


def offloads(url: str, seconds: float) -> list[dict[str, Any]]:
    """Row offloads: how many of 100 KB end in a second, against bare echoes with as many under way, in turns."""
    array = np.random.default_rng(0).integers(0, 255, (1, 10, 10_000), dtype=np.uint8)
    payload, callers, slices = bytes(100_000 + FRAME_OVERHEAD_BYTES), 4, 5
    options = OffloadOptions(deadline_ms=10_000, in_flight=64)
    bare = [BareRequester(url, 0, topics=peer_topics(str(index))) for index in range(callers)]
    ours = [Offloader(url, f"bench{i}", key=KEY, options=options) for i in range(callers)]
    totals = [0, 0]
    try:
        for one in ours:
            one.wait_connected()
        calls: tuple[list[Callable[[], object]], list[Callable[[], object]]] = (
            [functools.partial(one.infer, array) for one in ours],
            [functools.partial(one.ask, payload) for one in bare],
        )
        for which in (0, 1):  # warm-up
            run_for(calls[which], 0.5)
        for index in range(2 * slices):
            which = (index + index // 2) % 2  # 0 1 1 0 0 1 ..
            totals[which] += run_for(calls[which], seconds / slices)
    finally:
        for offloader in ours:
            offloader.close()
        for requester in bare:
            requester.close()
    rates = (totals[0] / seconds, totals[1] / seconds)
    what = f"100 KB offloads a second, {callers} devices, no-op tail: {rates[0]:.0f} against {rates[1]:.0f}"
    return [
        row("offloads", what, rates[0] / rates[1], "x", ">=", 0.8, PAHO),
        row("offloads.rate", "100 KB offloads a second through one broker", rates[0], "1/s", "info", None, {}),
    ]


def peer_topics(name: str) -> tuple[str, str]:
    """Where one requester of the peer asks and is answered."""
    return f"ht/v1/bench/{name}/off/req/0/0", f"ht/v1/bench/{name}/off/rep/0"


def run_for(calls: list[Callable[[], object]], seconds: float) -> int:
    """Each call again and again in a thread of its own; how many ended."""
    counts, end = [0] * len(calls), time.monotonic() + seconds

    def work(index: int) -> None:
        while time.monotonic() < end:
            calls[index]()
            counts[index] += 1

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts)


def serve_tail(url: str) -> None:
    """Child: the no-op tail as a worker runs it, with beats and the direct plane."""
    from orchestrator.serving.direct import DirectPlane

    roomy = Limits(1 << 22, 1 << 22)
    model = Served("no-op", (KEY,), roomy, decode_tensors, list)
    with TailServer(url, [model], ServerOptions(device_rate=1e6, device_burst=1000)) as server:
        server.data_plane = plane = DirectPlane("127.0.0.1", server.accept)
        print("ready", flush=True)
        sys.stdin.read()
        plane.close()


def serve_echo(url: str) -> None:
    """Child: bare paho's echo; every device of the peer has topics of its own."""
    from benchmarks.bench_rtt import bare_client

    client = bare_client(url)

    def echo(client: Any, _userdata: object, message: Any) -> None:
        reply = message.topic.replace("/req/", "/rep/").rpartition("/")[0]
        client.publish(reply, message.payload, message.qos)

    client.on_message = echo
    client.on_connect = lambda c, *_: c.subscribe("ht/v1/bench/+/off/req/0/0", 1)
    client.on_subscribe = lambda *_: print("ready", flush=True)
    client.loop_start()
    sys.stdin.read()


def serve_dashboard(url: str) -> None:
    """Child: listens to results as the dashboard does."""
    from orchestrator.dashboard.collector import Collector

    with Collector(url) as collector:
        collector.link.wait_connected(10)
        print("ready", flush=True)
        sys.stdin.read()


def child(kind: str, url: str) -> "subprocess.Popen[str]":
    """Start a child and wait until it is ready."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, __file__, "--worker", kind, "--url", url]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    if process.stdout.readline().strip() != "ready":
        raise RuntimeError(f"the child {kind} did not start")
    return process


def stop(process: "subprocess.Popen[str]") -> None:
    """End a child by closing its input."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def row(
    identity: str, what: str, value: float | None, unit: str, direction: str, bar: float | None, peer: dict[str, str]
) -> dict[str, Any]:
    """One measurement."""
    value = None if value is None else round(value, 3)
    return {"id": identity, "what": what, "value": value, "unit": unit, "direction": direction, "bar": bar, **peer}


def _ignore(*_: object) -> None:
    """Nothing is subscribed."""


def main() -> None:
    """Print the rows, or be one of the children."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--worker", choices=["echo", "tail", "dashboard"])
    parser.add_argument("--url")
    parser.add_argument("--count", type=int, default=600)
    parser.add_argument("--seconds", type=float, default=10.0)
    arguments = parser.parse_args()
    if arguments.worker:
        {"echo": serve_echo, "tail": serve_tail, "dashboard": serve_dashboard}[arguments.worker](arguments.url)
    else:
        for one in rows(arguments.count, arguments.seconds):
            print(one)


if __name__ == "__main__":
    main()
