"""1 MB tensors there and back: the direct data plane against headtail over MQTT, interleaved; and where its time goes.

The direct plane is always encrypted (CURVE). It is compared with MQTT in the clear, as on a loopback broker without access
rules, and with MQTT over mTLS, as a fleet runs it. Bare ZeroMQ echoes tell what transport and encryption cost alone.
"""

import contextlib
import os
import statistics
import subprocess
import sys
import time
from typing import Any

import numpy as np
import zmq

from benchmarks.bench_rtt import KEY, interleave
from benchmarks.bench_rtt_tls import HOST, device_files, secured_broker
from benchmarks.bench_serve import child, row, stop
from benchmarks.rows import ROOT
from edge_runtime.broker_url import tls_url
from edge_runtime.direct import PART_BYTES, split_parts
from edge_runtime.offloader import Offloader, OffloadOptions
from orchestrator.broker import BrokerOptions, MosquittoBroker

TENSOR_BYTES = 1_000_000
PEER = {"peer": "headtail over MQTT, QoS 0", "peer_version": "this commit"}


def rows(count: int = 150) -> list[dict[str, Any]]:
    """All rows of this part."""
    with MosquittoBroker(BrokerOptions(port=0)) as broker, worker(broker.url):
        plain = measure(broker.url, broker.url, count)
    with secured_broker() as (authority, access):
        tails = tls_url(HOST, access.service_port, authority.files("tails"))
        ours, peer = (tls_url(HOST, access.service_port, device_files(authority, name)) for name in ("direct", "mqtt"))
        with worker(tails):
            secured = measure(ours, peer, count)
    found = []
    for name, how, times in (("direct", "in the clear", plain), ("direct.mtls", "over mTLS", secured)):
        what = f"1 MB tensors there and back, direct plane (CURVE) against MQTT {how}"
        if times is None:
            found.append(row(name, f"{what}: no direct connection", None, "x", ">=", 5.0, {}))
            continue
        fast, slow = (statistics.median(one) for one in times)
        found.append(row(name, f"{what}, p50 {fast:.2f} ms against {slow:.2f} ms", slow / fast, "x", ">=", 5.0, PEER))
    return found + parts_of_the_time(count)


@contextlib.contextmanager
def worker(url: str) -> Any:
    """A no-op tail with the direct plane in a process of its own."""
    process = child("tail", url)
    try:
        yield
    finally:
        stop(process)


def measure(ours_url: str, peer_url: str, count: int) -> tuple[list[float], list[float]] | None:
    """Times in ms of the direct plane and of MQTT; null when no direct connection comes about."""
    array = np.random.default_rng(0).integers(0, 255, (1, 100, TENSOR_BYTES // 100), dtype=np.uint8)
    never = OffloadOptions(deadline_ms=10_000, direct_above_bytes=1 << 40)
    with (
        Offloader(ours_url, "direct", key=KEY, options=OffloadOptions(deadline_ms=10_000)) as ours,
        Offloader(peer_url, "mqtt", key=KEY, options=never) as mqtt,
    ):
        ours.wait_connected()
        mqtt.wait_connected()
        end = time.monotonic() + 20
        while not ours._route.direct_ready:
            ours.infer(array)
            if time.monotonic() > end:
                return None
        return interleave(lambda: ours.infer(array), lambda: mqtt.infer(array), count)


def parts_of_the_time(count: int) -> list[dict[str, Any]]:
    """Bare ZeroMQ echoes: without encryption, with CURVE in one part, with CURVE in the plane's parts."""
    clear, whole, parts = (echo(curve, size, count) for curve, size in ((False, 0), (True, 0), (True, PART_BYTES)))
    megabyte = (whole - clear) / 4  # encrypted and decrypted, there and back, one after the other
    return [
        row("direct.zmq", "bare ZeroMQ echo of 1 MB in the clear, p50", clear, "ms", "info", None, {}),
        row("direct.curve", "bare ZeroMQ echo of 1 MB with CURVE in one part, p50", whole, "ms", "info", None, {}),
        row(
            "direct.curve_parts", f"the same in parts of {PART_BYTES >> 10} KiB", parts, "ms", "info", None, {}
        ),
        row("direct.salsa20", "CURVE's cipher (XSalsa20-Poly1305) for 1 MB, one way, one end", megabyte, "ms", "info", None, {}),
    ]  # fmt: skip


def echo(curve: bool, part_bytes: int, count: int) -> float:
    """Median round trip in ms of 1 MB to another process and back."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "benchmarks.bench_direct", "echo", "curve" if curve else "clear"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    assert process.stdin is not None
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        endpoint, key = process.stdout.readline().split()
        socket = context.socket(zmq.DEALER)
        if curve:
            socket.curve_publickey, socket.curve_secretkey = zmq.curve_keypair()
            socket.curve_serverkey = key.encode()
        socket.connect(endpoint)
        data = os.urandom(TENSOR_BYTES)
        pieces = split_parts((data,), part_bytes or TENSOR_BYTES)
        times = []
        for index in range(count + 5):
            begun = time.perf_counter()
            socket.send_multipart(pieces, copy=False)
            socket.recv_multipart(copy=False)
            if index >= 5:
                times.append(1000 * (time.perf_counter() - begun))
        return statistics.median(times)
    finally:
        context.destroy(linger=0)
        process.stdin.close()
        process.kill()
        process.wait()


def serve_echo(kind: str) -> None:
    """Child: send back whatever comes."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.ROUTER)
    public, secret = zmq.curve_keypair()
    if kind == "curve":
        socket.curve_secretkey, socket.curve_publickey, socket.curve_server = secret, public, True
    port = socket.bind_to_random_port("tcp://127.0.0.1")
    print(f"tcp://127.0.0.1:{port} {public.decode()}", flush=True)
    while True:
        socket.send_multipart(socket.recv_multipart(copy=False), copy=False)


if __name__ == "__main__":
    if sys.argv[1:2] == ["echo"]:
        serve_echo(sys.argv[2])
    else:
        for one in rows(40):
            print(one)
