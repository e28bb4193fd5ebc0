"""Tails follow the versions of the registry: real agents under load are moved to another pair, and no offload fails."""

import itertools
import os
import signal
import threading

import numpy as np
import pytest

from edge_runtime.agent import Agent
from edge_runtime.agent_options import AgentOptions
from edge_runtime.artefact import file_sha256
from edge_runtime.manifest import Cut, make_cut_id
from edge_runtime.offload_options import OffloadOptions
from edge_runtime.probation import ProbationOptions
from edge_runtime.sources import Frame, Newest
from orchestrator.broker import BrokerOptions, free_port
from orchestrator.cli import run
from orchestrator.fleet import queries
from orchestrator.fleet.publish import publish_version
from orchestrator.fleet.served_tails import announce_tails, one_tail_a_key, tail_is_served, wanted_tails
from orchestrator.fleet.store import Store, now_ms
from orchestrator.fleet.supervisor import Supervisor
from tests.conftest import _model, _spec, _write


@pytest.fixture
def second(tmp_path):
    """Another pair of the same network's name: y = 2 (x + 1), cut after the addition."""
    x = np.arange(8, dtype=np.float32)[np.newaxis]
    model = tmp_path / "head.onnx"
    model.write_bytes(_model([("Add", ["x", "one"], ["h"])], "x", "h"))
    cut_id = make_cut_id(head_sha256=file_sha256(model), tensors=(_spec("h"),), codec="raw", tables_sha256=None)
    head_cut, tail_cut = Cut(cut_id=cut_id, tensors=(_spec("h"),)), Cut(accepts=(cut_id,), tensors=(_spec("h"),))
    tail = _model([("Mul", ["h", "two"], ["y"])], "h", "y")
    return (
        _write(tmp_path / "head", "head", model.read_bytes(), (("x", x), ("h", x + 1)), head_cut),
        _write(tmp_path / "tail", "tail", tail, (("h", x + 1), ("y", 2 * x + 2)), tail_cut),
    )


def pair(network):
    return (network.head, network.tail)


def test_the_tails_of_what_runs_and_of_the_newest_are_wanted(lite, network, second, tmp_path):
    publish_version(lite, tmp_path, "tiny@1", pair(network), actor="test")
    publish_version(lite, tmp_path, "tiny@2", second, actor="test")
    with lite.read() as session:
        assert list(wanted_tails(session)) == [second[1].id], "nobody runs the old one"
        assert tail_is_served(session, "tiny@2", now_ms=now_ms()), "nobody follows the registry"
    announce_tails(lite, "a", [network.tail.id], now_ms=now_ms())
    with lite.read() as session:
        assert tail_is_served(session, "tiny@1", now_ms=now_ms())
        assert not tail_is_served(session, "tiny@2", now_ms=now_ms())
        assert tail_is_served(session, "tiny@2", now_ms=now_ms() + 60_000), "who says nothing does not count"


def test_of_two_tails_with_one_key_the_newer_is_served():
    assert one_tail_a_key({"old": ("a", "b"), "other": ("c",), "new": ("a", "b")}) == ["other", "new"]
    assert one_tail_a_key({"old": ("a", "b"), "new": ("a",)}) == ["new"]


class Load:
    """An agent that runs a frame every few milliseconds and keeps what became of them."""

    def __init__(self, broker, name, state, x):
        self.results = []
        source = Newest((Frame(index, str(index), x) for index in itertools.count()), fps=40)
        options = AgentOptions(
            broker=broker, device=name, state=state, heartbeat_s=0.5, offload=OffloadOptions(deadline_ms=5000),
            probation=ProbationOptions(frames=5, seconds=1.0),
        )  # fmt: skip
        self.agent = Agent(options, source=source, on_result=self.results.append)
        self._thread = threading.Thread(target=self.agent.run, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.agent.stop()
        self._thread.join(15)


def test_a_rollout_under_load_fails_no_offload(network, second, tmp_path):
    folder = tmp_path / "fleet"
    ports = {"files": free_port(), "dashboard": free_port()}
    with Supervisor(folder, options=BrokerOptions(port=0), ports=ports, tails=1) as fleet:
        store = Store(fleet.store)
        publish_version(store, folder, "tiny@1", pair(network), actor="test")
        log = folder / "logs" / "tails.log"
        wait(fleet, lambda: log.is_file() and "serving tiny" in log.read_text())
        with (
            Load(fleet.broker, "one", tmp_path / "one", network.x) as one,
            Load(fleet.broker, "two", tmp_path / "two", network.x) as two,
        ):
            roll_out(store, fleet, folder, "tiny@1", network.head.id)
            publish_version(store, folder, "tiny@2", second, actor="test")
            roll_out(store, fleet, folder, "tiny@2", second[0].id)
            for load in (one, two):
                assert len(load.results) > 40
                failed = [result for result in load.results if result.source != "remote"]
                assert not failed, failed[:3]
            os.kill(fleet.pid("tails"), signal.SIGKILL)
            before = len(one.results) + 1  # the one on its way may be lost with the worker
            wait(fleet, lambda: any(result.source == "remote" for result in one.results[before:]))
            assert log.read_text().count("serving tiny") >= 3, "started again, with what is wanted now"
        store.close()


def wait(fleet, condition):
    pause = threading.Event()
    for _ in range(300):
        fleet.watch()
        if condition():
            return
        pause.wait(0.1)
    raise AssertionError("did not come about in time")


def roll_out(store, fleet, folder, version, head):
    def both_online():
        with store.read() as session:
            return queries.summarise(session, now_ms=now_ms()).by_status == {"online": 2}

    wait(fleet, both_online)
    command = ["fleet", "rollout", version, "--to", "all", "--stages", "1,100%", "--soak", "0.3", "--probation", "1"]
    assert run([*command, "--wait", "--folder", str(folder)]) == 0
    with store.read() as session:
        views = queries.list_devices(session, now_ms=now_ms())
    assert [view.reported.slots.head for view in views] == [head, head]
