"""Strangers, wrong keys, garbage and silence: a named error each, and nothing hangs."""

import contextlib
import os
import select
import socket
import threading
import time
from pathlib import Path

import pytest
import torch

from orchestrator.tensor_parallel import cluster as cluster_module
from orchestrator.tensor_parallel import dial as dial_module
from orchestrator.tensor_parallel import worker as worker_module
from orchestrator.tensor_parallel.collectives import MeshCollective, StarCollective, sum_in_order
from orchestrator.tensor_parallel.dial import Listener, dial
from orchestrator.tensor_parallel.engine import Piece
from orchestrator.tensor_parallel.errors import KeyFileError, PeerError, ShardError
from orchestrator.tensor_parallel.peer_link import move, receive, receive_control, send
from orchestrator.tensor_parallel.protocol import (
    Hello,
    Kind,
    Segment,
    decode_control,
    pack_segments,
    unpack_header,
    unpack_segments,
)
from orchestrator.tensor_parallel.secure import Keys, write_key_file
from orchestrator.tensor_parallel.worker import Worker, WorkerOptions


@pytest.fixture
def pair(key_file):
    """Two ends of a link: the one that accepted, the one that dialled."""
    keys = Keys(key_file)
    listener = Listener("127.0.0.1", 0, keys)
    came = []
    thread = threading.Thread(target=lambda: came.append(listener.accept(timeout_s=10)))
    thread.start()
    dialled = dial(("127.0.0.1", listener.port), keys, Hello(rank=3, epoch=9), peer="far", timeout_s=10)
    thread.join()
    accepted, hello = came[0]
    assert (hello.rank, hello.epoch, accepted.epoch) == (3, 9, 9)
    yield accepted, dialled
    accepted.close()
    dialled.close()
    listener.close()


def test_the_key_file_is_for_its_owner_alone_and_never_written_over(tmp_path):
    path = tmp_path / "k.pem"
    write_key_file(path)
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(KeyFileError, match="new key file"):
        write_key_file(path)
    path.chmod(0o644)
    with pytest.raises(KeyFileError, match="chmod 600"):
        Keys(path)


@pytest.mark.parametrize("content", [None, b"", b"-----BEGIN CERTIFICATE-----\nnonsense\n"])
def test_a_missing_or_damaged_key_file_is_named(content, tmp_path):
    path = tmp_path / "k.pem"
    if content is not None:
        path.write_bytes(content)
        path.chmod(0o600)
    with pytest.raises(KeyFileError, match=r"k\.pem"):
        Keys(path)


def test_another_key_is_refused_on_both_sides(key_file, tmp_path):
    write_key_file(tmp_path / "other.pem")
    listener = Listener("127.0.0.1", 0, Keys(key_file))
    with pytest.raises(PeerError, match="same key"):
        dial(("127.0.0.1", listener.port), Keys(tmp_path / "other.pem"), Hello(rank=0, epoch=1), peer="n1", timeout_s=5)
    assert listener.accept(timeout_s=0.2) is None
    listener.close()


def test_nobody_there_and_a_port_in_use_are_named(key_file):
    keys = Keys(key_file)
    listener = Listener("127.0.0.1", 0, keys)
    with pytest.raises(PeerError, match="Choose another --listen"):
        Listener("127.0.0.1", listener.port, keys)
    port = listener.port
    listener.close()
    with pytest.raises(PeerError, match="Does it run"):
        dial(("127.0.0.1", port), keys, Hello(rank=0, epoch=1), peer="n1", timeout_s=2)


def test_messages_larger_than_any_socket_buffer_cross_without_a_deadlock(pair):
    here, there = pair
    data = os.urandom(20 << 20)
    for link in pair:
        link.begin_send(Kind.WEIGHTS, data)
        link.begin_receive(Kind.WEIGHTS, sequence=None, limit=len(data))
    threads = [threading.Thread(target=move, args=([link], [link]), kwargs={"timeout_s": 60}) for link in pair]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert here.taken() == data
    assert there.taken() == data


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda link: setattr(link, "epoch", 8), "epoch 8"),
        (lambda link: None, "found STEP"),
    ],
)
def test_another_epoch_and_another_kind_are_refused(change, message, pair):
    here, there = pair
    change(there)
    send(there, Kind.STEP, b"abc", timeout_s=5)
    with pytest.raises(PeerError, match=message):
        receive(here, Kind.WEIGHTS if message.endswith("STEP") else Kind.STEP, timeout_s=5, limit=100)


def test_a_message_longer_than_allowed_is_refused_before_it_is_read(pair):
    here, there = pair
    send(there, Kind.WEIGHTS, b"x" * 1000, timeout_s=5)
    with pytest.raises(PeerError, match="at most 999 B"):
        receive(here, Kind.WEIGHTS, timeout_s=5, limit=999)


def test_silence_and_a_closed_connection_are_named(pair):
    here, there = pair
    began = time.monotonic()
    with pytest.raises(PeerError, match=r"within 0\.2 s"):
        receive(here, Kind.STEP, timeout_s=0.2, limit=10)
    assert time.monotonic() - began < 5
    there.close()
    with pytest.raises(PeerError, match=r"closed|reset"):
        receive(here, Kind.STEP, timeout_s=5, limit=10)


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b"[1]", b'{"type":"hello","rank":0}', b"\xff\x00", b'{"type":"hello","rank":0,"epoch":1,"x":2}'],
)
def test_what_is_no_control_message_is_refused(data):
    with pytest.raises(PeerError, match="control message"):
        decode_control(data, "far")


def test_headers_and_segments_survive_any_garbage():
    with pytest.raises(PeerError, match="protocol"):
        unpack_header(b"GET / HTTP/1.1\r\n\r\n  ", "far")
    packed = pack_segments((Segment(1, 5, 3), Segment(0, 0, 2)))
    assert unpack_segments(packed, slots=2, context=8, peer="far") == (
        (Segment(1, 5, 3), Segment(0, 0, 2)),
        len(packed),
    )
    for bad in (
        packed[:10],
        b"",
        packed[:4] + b"\xff" * 24,
        pack_segments((Segment(0, 7, 2),)),
        pack_segments((Segment(0, 0, 0),)),
    ):
        with pytest.raises(PeerError, match="Wanted"):
            unpack_segments(bad, slots=2, context=8, peer="far")


def test_a_worker_outlives_strangers_garbage_and_half_open_connections(key_file, tmp_path):
    worker = Worker(WorkerOptions("127.0.0.1", 0, key_file, tmp_path))
    thread = threading.Thread(target=worker.run, daemon=True)
    thread.start()
    keys, address = Keys(key_file), ("127.0.0.1", worker.port)
    silent = socket.create_connection(address)
    for data in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(4096)):
        with socket.create_connection(address) as stranger:
            stranger.sendall(data)
    link = dial(address, keys, Hello(rank=0, epoch=4), peer="worker", timeout_s=20)
    send(link, Kind.CONTROL, b'{"type":"assign"}', timeout_s=5)
    with pytest.raises(PeerError):
        receive_control(link, timeout_s=20)
    link.close()
    again = dial(address, keys, Hello(rank=0, epoch=5), peer="worker", timeout_s=20)
    again.close()
    silent.close()
    worker.stop()
    thread.join(10)
    assert not thread.is_alive()


def test_silent_strangers_hold_up_neither_members_nor_who_waits_for_them(key_file, monkeypatch):
    monkeypatch.setattr(dial_module, "HANDSHAKE_S", 1000.0)  # in turn they would take longer than any test
    keys = Keys(key_file)
    listener = Listener("127.0.0.1", 0, keys)
    address = ("127.0.0.1", listener.port)
    with contextlib.ExitStack() as opened:
        opened.callback(listener.close)
        strangers = [opened.enter_context(socket.create_connection(address)) for _ in range(20)]
        strangers[0].sendall(b"\x16\x03\x01")  # the beginning of a greeting
        assert listener.accept(timeout_s=0.0) is None
        link = dial(address, keys, Hello(rank=2, epoch=7), peer="n1", timeout_s=20)
        opened.callback(link.close)
        ready = select.poll()
        ready.register(listener.fileno(), select.POLLIN)
        assert ready.poll(20_000)
        accepted, hello = listener.accept(timeout_s=20)
        opened.callback(accepted.close)
        assert (hello.rank, accepted.epoch) == (2, 7)
        assert not ready.poll(0)


def test_of_too_many_pending_connections_the_oldest_is_dropped_and_so_is_who_stalls(key_file, monkeypatch):
    monkeypatch.setattr(dial_module, "_PENDING", 2)
    listener = Listener("127.0.0.1", 0, Keys(key_file))
    with contextlib.ExitStack() as opened:
        opened.callback(listener.close)
        address = ("127.0.0.1", listener.port)
        first, *_ = [opened.enter_context(socket.create_connection(address, timeout=20)) for _ in range(3)]
        assert first.recv(1) == b""
        monkeypatch.setattr(dial_module, "HANDSHAKE_S", 0.1)
        stalls = opened.enter_context(socket.create_connection(address, timeout=20))
        assert stalls.recv(1) == b""


def test_a_node_that_accepts_and_says_nothing_is_not_taken_for_one_with_another_key(key_file):
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(PeerError, match="n1 to shake hands within"):
        dial(silent.getsockname(), Keys(key_file), Hello(rank=0, epoch=1), peer="n1", timeout_s=0.3)
    assert dial_module.DIAL_S > dial_module.HANDSHAKE_S


def test_strangers_between_steps_change_no_token_and_end_no_epoch(cluster, tiny, monkeypatch):
    monkeypatch.setattr(dial_module, "HANDSHAKE_S", 1000.0)
    running = cluster(tiny.folder, ranks=2)
    with contextlib.ExitStack() as opened:
        for _ in range(5):
            opened.enter_context(socket.create_connection(("127.0.0.1", running.workers[0].port)))
        engine = running.engine
        for place in range(5):
            engine.step([Piece(0, place, (5,), 1)])
        engine.restart()
        assert len(engine.epoch.members) == 2


def test_weights_are_fetched_once_resumed_and_verified(cluster, tiny, tmp_path, monkeypatch):
    for module in (cluster_module, worker_module):
        monkeypatch.setattr(module, "CHUNK_BYTES", 4096)
    running = cluster(tiny.folder, ranks=2)
    fetched = next(Path(tmp_path / "0" / "store1").rglob("rank1.bin"))
    whole = (running.shards / "rank1.bin").read_bytes()
    assert fetched.read_bytes() == whole
    before = fetched.stat().st_mtime_ns
    running.engine.restart()
    assert fetched.stat().st_mtime_ns == before
    fetched.unlink()
    fetched.with_suffix(".part").write_bytes(whole[: 10 * 4096 + 7])  # an interrupted fetch, in the middle of a piece
    went = []
    monkeypatch.setattr(running.engine.cluster, "_progress", lambda *what: went.append(what))
    running.engine.restart()
    assert fetched.read_bytes() == whole
    assert went[0] == ("n1", "fetch", 11 * 4096, len(whole))
    assert went[-3:] == [("n1", "fetch", len(whole), len(whole)), ("n1", "load", 0, 1), ("n1", "load", 1, 1)]
    fetched.unlink()
    fetched.with_suffix(".part").write_bytes(b"\xff" * 4096 + whole[4096 : 10 * 4096])  # what was there is damaged
    with pytest.raises(ShardError, match="another hash"):
        running.engine.cluster.begin(require_all=True)
    running.engine.restart()  # it was thrown away
    assert fetched.read_bytes() == whole


def test_a_worker_that_stalls_is_lost_at_the_deadline(pair):
    here, _ = pair
    collective = StarCollective(0, {1: here}, timeout_s=0.2)
    with pytest.raises(PeerError, match=r"within 0\.2 s"):
        collective.allreduce(torch.zeros(1, 4), [0, 1], (1, 4))


def test_a_partial_of_another_size_is_refused(pair):
    here, there = pair
    send(there, Kind.PARTIAL, b"\0" * 12, timeout_s=5, sequence=1)
    with pytest.raises(PeerError, match="12 B"):
        MeshCollective(0, {1: here}, timeout_s=5).reduce(torch.zeros(1, 4), [0, 1], (1, 4))


def test_sums_are_taken_in_rank_order():
    parts = {0: torch.tensor([1e8]), 1: torch.tensor([-1e8]), 2: torch.tensor([1e-3])}
    assert float(sum_in_order(parts, [0, 1, 2])) == pytest.approx(1e-3)
    assert float(sum_in_order({2: parts[2], 1: parts[1], 0: parts[0]}, [0, 1, 2])) == pytest.approx(1e-3)
