"""Nodes and clients that are wrong, damaged or silent: a named error each, and nothing hangs."""

import contextlib
import select
import socket
import threading
import time

import pytest

from orchestrator.tensor_parallel import connections as connections_module
from orchestrator.tensor_parallel import server as server_module
from orchestrator.tensor_parallel import worker as worker_module
from orchestrator.tensor_parallel.checkpoint import open_checkpoint
from orchestrator.tensor_parallel.dial import Listener
from orchestrator.tensor_parallel.engine import Engine, EngineOptions
from orchestrator.tensor_parallel.errors import PartitionError, PeerError, ShardError
from orchestrator.tensor_parallel.nodes import Node
from orchestrator.tensor_parallel.peer_link import receive_control
from orchestrator.tensor_parallel.protocol import RunSettings
from orchestrator.tensor_parallel.secure import Keys
from orchestrator.tensor_parallel.shard_set import read_index
from orchestrator.tensor_parallel.sharding import shard_checkpoint
from tests.orchestrator.tensor_parallel.test_server import serving


def test_damaged_weights_in_a_workers_store_are_named_and_the_others_suffice_later(cluster, tiny, tmp_path):
    running = cluster(tiny.folder, ranks=3)
    stored = next((tmp_path / "0" / "store1").rglob("rank1.bin"))
    entry = read_index(running.shards, 1, running.engine.cluster.shard_set).blocks[1]
    with stored.open("r+b") as stream:
        stream.seek(entry.offset)
        stream.write(b"\xff" * 8)
    with pytest.raises(ShardError, match=f"n1: Block {entry.name} of .* has another hash"):
        running.engine.cluster.begin(require_all=True)
    running.engine.restart()
    assert [member.name for member in running.engine.epoch.members] == ["n0", "n2"]


def test_nodes_of_another_set_are_refused(tiny, key_file, tmp_path):
    nodes = (Node(name="a"), Node(name="b", address="127.0.0.1:1"))
    shard_checkpoint(open_checkpoint(tiny.folder), nodes, tmp_path)
    with pytest.raises(PartitionError, match=r"Wanted the nodes of the set, \['a', 'b'\], found \['a', 'c'\]"):
        Engine(EngineOptions(tmp_path, (nodes[0], Node(name="c", address="127.0.0.1:1")), key_file))


@pytest.mark.parametrize(
    ("garbage", "message"), [(None, r"within [\d.]+ s, found no answer"), (b"x" * 40, "of this protocol")]
)
def test_a_member_that_stalls_or_sends_garbage_is_named(garbage, message, tiny, key_file, tmp_path):
    listener = Listener("127.0.0.1", 0, Keys(key_file))
    nodes = (Node(name="a"), Node(name="b", address=f"127.0.0.1:{listener.port}"))
    shard_checkpoint(open_checkpoint(tiny.folder), nodes, tmp_path)
    ended = threading.Event()

    def misbehave():
        link, _ = listener.accept(timeout_s=20)
        receive_control(link, timeout_s=20)
        if garbage is not None:
            link._socket.send(garbage)
        ended.wait(30)
        link.close()

    thread = threading.Thread(target=misbehave)
    thread.start()
    began = time.monotonic()
    try:
        with pytest.raises(PeerError, match=message):
            Engine(EngineOptions(tmp_path, nodes, key_file, RunSettings(context=64, deadline_s=0.5)))
        assert time.monotonic() - began < 10
    finally:
        ended.set()
        thread.join()
        listener.close()


def test_a_master_that_falls_silent_after_heartbeats_is_given_up(cluster, tiny, monkeypatch):
    monkeypatch.setattr(worker_module, "_SILENCE_S", 0.2)
    engine = cluster(tiny.folder, ranks=2, deadline_s=1.0).engine
    engine.check()
    left = select.poll()
    left.register(engine.epoch.links[1].fileno(), select.POLLIN)
    assert left.poll(20_000)  # the worker closed the connection
    with pytest.raises(PeerError, match="n1"):
        engine.check()
    assert not engine.running


def test_a_client_that_sends_half_a_request_gets_an_answer(cluster, tiny, monkeypatch):
    monkeypatch.setattr(server_module, "_BODY_S", 0.3)
    with serving(cluster(tiny.folder, ranks=1)) as (url, _):
        port = int(url.rsplit(":", 1)[1])
        for sent, wanted in (
            (b"POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\n{", b" 408 "),
            (b"\x00\xff garbage\r\n\r\n", b" 400 "),
        ):
            with socket.create_connection(("127.0.0.1", port), timeout=20) as raw, contextlib.suppress(ConnectionError):
                raw.sendall(sent)
                assert wanted in raw.recv(4096)


def test_a_connection_whose_head_does_not_come_whole_is_closed(cluster, tiny, monkeypatch):
    monkeypatch.setattr(connections_module, "HEAD_S", 0.3)
    with serving(cluster(tiny.folder, ranks=1)) as (url, _):
        address = ("127.0.0.1", int(url.rsplit(":", 1)[1]))
        whole = b"GET /health HTTP/1.1\r\nHost: h\r\n\r\n"
        for sent in (b"", whole[:-2], whole + whole[:-2]):
            with socket.create_connection(address, timeout=20) as raw:
                raw.sendall(sent)
                received = b""
                while piece := raw.recv(4096):
                    received += piece
                assert received.count(b"200 OK") == sent.count(whole)


def test_requests_on_too_many_connections_are_refused(cluster, tiny, monkeypatch):
    monkeypatch.setattr(connections_module, "_FEWEST", 1)
    with serving(cluster(tiny.folder, ranks=1)) as (url, _), contextlib.ExitStack() as opened:
        address = ("127.0.0.1", int(url.rsplit(":", 1)[1]))
        for _ in range(40):
            opened.enter_context(socket.create_connection(address))
        raw = opened.enter_context(socket.create_connection(address, timeout=20))
        raw.sendall(b"GET /health HTTP/1.1\r\nHost: h\r\n\r\n")
        assert b" 503 " in raw.recv(4096)
