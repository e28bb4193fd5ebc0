import hashlib
import socket
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.offloader import Offloader, OffloadOptions
from orchestrator.link_proxy import Link, LinkError, LinkProxy, Schedule, parse_link
from orchestrator.tail_server import TailServer, serve_artefact


def test_links_are_read_as_people_write_them():
    assert parse_link("5mbit/20ms") == Link(5e6, 0.02)
    assert parse_link("1.5gbit/2ms") == Link(1.5e9, 2e-3)
    assert parse_link("none") is None
    for bad in ("", "5mbit", "0mbit/1ms", "5mb/20ms", "5mbit/20ms ", "-5mbit/1ms"):
        with pytest.raises(LinkError, match="5mbit/20ms"):
            parse_link(bad)


@given(st.lists(st.tuples(st.integers(1, 10_000), st.floats(0, 0.01)), min_size=1, max_size=50))
def test_bytes_arrive_in_order_no_sooner_than_rate_and_delay_allow(sends):
    link = Link(1e6, 0.02)
    schedule, now, last, total = Schedule(link), 0.0, 0.0, 0
    for size, pause in sends:
        now += pause
        at = schedule.send(size, now)
        total += size
        assert at >= max(last, now + link.transfer_s(size) - 1e-9, link.transfer_s(total) - 1e-9)
        last = at
    assert last <= now + link.transfer_s(total) + 1e-9


def _serve_once(received):
    server = socket.create_server(("127.0.0.1", 0))

    def run():
        connection, _ = server.accept()
        with connection:
            while data := connection.recv(65536):
                received.append((time.perf_counter(), data))
            connection.sendall(b"done")

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return server.getsockname(), thread


def test_a_megabyte_takes_the_time_that_the_link_gives_and_arrives_unchanged():
    received, link = [], Link(20e6, 0.03)
    data = np.random.default_rng(0).bytes(1_000_000)
    target, thread = _serve_once(received)
    with LinkProxy(target, link) as proxy, socket.create_connection(("127.0.0.1", proxy.port)) as client:
        begun = time.perf_counter()
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        assert client.recv(10) == b"done"
        answered = time.perf_counter() - begun
        thread.join(10)
        took = received[-1][0] - begun
        assert proxy.bytes_up == len(data)
    assert hashlib.sha256(b"".join(part for _, part in received)).digest() == hashlib.sha256(data).digest()
    assert 0.95 <= took / link.transfer_s(len(data)) <= 1.4
    assert answered - took >= 0.95 * link.delay_s


def test_a_cut_link_ends_requests_locally_and_a_restored_one_remotely(broker, network):
    target = ("127.0.0.1", int(broker.rsplit(":", 1)[1]))
    options = OffloadOptions(deadline_ms=2000)
    with (
        TailServer(broker, [serve_artefact(network.tail)]),
        LinkProxy(target, parse_link("10mbit/2ms")) as proxy,
        Offloader(proxy.url, "dev", head=network.head, fallback=network.whole, options=options) as device,
    ):
        device.wait_connected()
        answer = device.infer(network.x)
        assert answer.source == "remote"
        assert answer.breakdown.link_ms >= 4
        proxy.cut()
        assert device.infer(network.x).source == "local"
        proxy.restore()
        device.wait_connected()
        assert device.infer(network.x).source == "remote"
