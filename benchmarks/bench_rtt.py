"""Round trip of a no-op tail against bare paho on both ends: same broker, payload size, QoS, properties, NODELAY.

Requests alternate between the two in one run, so that whatever else the machine does hits both. Each end is a process
of its own: this one asks, one child echoes with bare paho, another is headtail's `TailServer`.
"""

import argparse
import os
import socket
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
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from edge_runtime.broker_url import parse_url  # noqa: E402
from edge_runtime.offloader import Offloader, OffloadOptions  # noqa: E402
from edge_runtime.wire import Limits, decode_tensors  # noqa: E402
from orchestrator.broker import BrokerOptions, MosquittoBroker  # noqa: E402
from orchestrator.tail_server import Served, ServerOptions, TailServer  # noqa: E402

KEY = "00" * 8
PEER_REQUEST, PEER_REPLY = "ht/v1/default/peer/off/req/0/0", "ht/v1/default/peer/off/rep/0"
FRAME_OVERHEAD_BYTES = 24 + 28 + 4 + 8


def bare_client(url: str, *, nodelay: bool = True) -> paho.Client:
    """A paho client as its documentation shows, with TCP_NODELAY."""
    broker = parse_url(url)
    client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
    client.on_socket_open = lambda _c, _u, sock: sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, int(nodelay))
    if broker.tls is not None:
        client.tls_set(str(broker.tls.ca), str(broker.tls.cert), str(broker.tls.key))
    client.connect(broker.host, broker.port, keepalive=10)
    return client


def serve_bare_echo(url: str, *, nodelay: bool = True) -> None:
    """Child: echo every payload from the network thread."""
    client = bare_client(url, nodelay=nodelay)
    client.on_message = lambda c, _u, message: c.publish(PEER_REPLY, message.payload, message.qos)
    client.on_connect = lambda c, *_: c.subscribe(PEER_REQUEST, 1)
    client.on_subscribe = lambda *_: print("ready", flush=True)
    client.loop_start()
    sys.stdin.read()


def serve_noop_tail(url: str, *, nodelay: bool) -> None:
    """Child: headtail's tail server with a model that returns its inputs."""
    model = Served("no-op", (KEY,), Limits(1 << 22, 1 << 22), lambda frame: decode_tensors(frame), list)
    with TailServer(url, [model], ServerOptions(nodelay=nodelay)):
        print("ready", flush=True)
        sys.stdin.read()


class BareRequester:
    """Asks the bare echo, one request at a time."""

    def __init__(
        self, url: str, qos: int, *, topics: tuple[str, str] = (PEER_REQUEST, PEER_REPLY), nodelay: bool = True
    ) -> None:
        self._qos = qos
        self._request, reply = topics
        self._ended = threading.Lock()
        self._ended.acquire()
        ready = threading.Event()
        self._client = bare_client(url, nodelay=nodelay)
        self._client.on_message = lambda *_: self._ended.release()
        self._client.on_connect = lambda c, *_: c.subscribe(reply, qos)
        self._client.on_subscribe = lambda *_: ready.set()
        self._client.loop_start()
        ready.wait(10)

    def ask(self, payload: bytes) -> None:
        """One round trip."""
        self._client.publish(self._request, payload, self._qos)
        if not self._ended.acquire(timeout=5):
            raise TimeoutError("no echo within 5 s")

    def close(self) -> None:
        """Disconnect."""
        self._client.disconnect()
        self._client.loop_stop()


def child(kind: str, url: str, *, nodelay: bool = True) -> subprocess.Popen[str]:
    """Start a worker and wait until it is subscribed."""
    command = [sys.executable, __file__, "--worker", kind, "--url", url, *([] if nodelay else ["--nagle"])]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    if process.stdout.readline().strip() != "ready":
        raise RuntimeError(f"the worker {kind} did not start")
    return process


def stop(process: subprocess.Popen[str]) -> None:
    """End a worker by closing its input."""
    assert process.stdin is not None
    process.stdin.close()
    process.wait(10)


def interleave(
    first: Callable[[], object], second: Callable[[], object], count: int
) -> tuple[list[float], list[float]]:
    """Times in ms of `count` calls of each, in turns, after warm-up."""
    times: tuple[list[float], list[float]] = ([], [])
    for index in range(count + 20):
        for which, call in ((0, first), (1, second)) if index % 2 else ((1, second), (0, first)):
            begun = time.perf_counter()
            call()
            if index >= 20:
                times[which].append(1000 * (time.perf_counter() - begun))
    return times


def measure(
    url: str, *, payload_bytes: int, qos: int, count: int, peer_url: str | None = None
) -> tuple[list[float], list[float]]:
    """Round trips in ms: headtail's, bare paho's; the peer has a certificate of its own in `peer_url`."""
    array = np.random.default_rng(0).integers(0, 255, (1, 10, payload_bytes // 10), dtype=np.uint8)
    payload = bytes(payload_bytes + FRAME_OVERHEAD_BYTES)
    bare = BareRequester(peer_url or url, qos)
    try:
        with Offloader(url, "bench", key=KEY, options=OffloadOptions(qos=qos, deadline_ms=5000)) as ours:
            ours.wait_connected()
            return interleave(lambda: ours.infer(array), lambda: bare.ask(payload), count)
    finally:
        bare.close()


def without_nodelay(url: str, *, count: int) -> tuple[float, float]:
    """p50 in ms of the QoS 1 round trip at 10 KB when no client sets TCP_NODELAY: headtail's, bare paho's."""
    workers = [child(kind, url, nodelay=False) for kind in ("echo", "tail")]
    array = np.zeros((1, 10, 1000), np.uint8)
    bare = BareRequester(url, 1, nodelay=False)
    try:
        options = OffloadOptions(qos=1, deadline_ms=5000, nodelay=False)
        with Offloader(url, "bench", key=KEY, options=options) as ours:
            ours.wait_connected()
            times = interleave(lambda: ours.infer(array), lambda: bare.ask(bytes(array.nbytes)), count)
        return statistics.median(times[0]), statistics.median(times[1])
    finally:
        bare.close()
        for worker in workers:
            stop(worker)


def row(identity: str, what: str, value: float, unit: str, direction: str, bar: float) -> dict[str, Any]:
    """One measurement against bare paho."""
    peer = {"peer": "paho-mqtt echo", "peer_version": version("paho-mqtt")}
    return {
        "id": identity,
        "what": what,
        "value": round(value, 3),
        "unit": unit,
        "direction": direction,
        "bar": bar,
        **peer,
    }


def rows(count: int = 600) -> list[dict[str, Any]]:
    """All rows of this benchmark."""
    result = []
    with MosquittoBroker(BrokerOptions(port=0)) as broker:
        workers = [child("echo", broker.url), child("tail", broker.url)]
        try:
            for size, name, bar in ((10_000, "10k", 1.25), (100_000, "100k", 1.15)):
                for qos in (0, 1):
                    ours, bare = measure(broker.url, payload_bytes=size, qos=qos, count=count)
                    p50, peer50 = statistics.median(ours), statistics.median(bare)
                    what = (
                        f"no-op tail round trip, {size // 1000} KB, QoS {qos}, p50 {p50:.2f} ms against {peer50:.2f} ms "
                        f"(p99 {np.percentile(ours, 99):.1f} against {np.percentile(bare, 99):.1f})"
                    )
                    result.append(row(f"rtt_{name}_q{qos}", what, p50 / peer50, "x", "<=", bar))
        finally:
            for worker in workers:
                stop(worker)
        ours_ms, bare_ms = without_nodelay(broker.url, count=30)
        what = "the 10 KB QoS 1 round trip with TCP_NODELAY off at both ends, p50"
        result.append(
            row("rtt_nagle_control", f"{what}: bare paho, which waits for acknowledgements", bare_ms, "ms", ">=", 40.0)
        )
        result.append(
            row("rtt_nagle", f"{what}: headtail, which sends its own with the next packet", ours_ms, "ms", "<=", 40.0)
        )
    return result


def main() -> None:
    """Print the rows, or be one of the children."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--worker", choices=["echo", "tail"])
    parser.add_argument("--url")
    parser.add_argument("--nagle", action="store_true")
    parser.add_argument("--count", type=int, default=600)
    arguments = parser.parse_args()
    if arguments.worker == "echo":
        serve_bare_echo(arguments.url, nodelay=not arguments.nagle)
    elif arguments.worker == "tail":
        serve_noop_tail(arguments.url, nodelay=not arguments.nagle)
    else:
        for one in rows(arguments.count):
            print(one)


if __name__ == "__main__":
    main()
