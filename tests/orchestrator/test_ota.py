"""Signed updates of a running agent: over HTTP and MQTT, refused, on probation, back again."""

import threading
from queue import Empty, SimpleQueue

import msgspec
import numpy as np
import pytest

from edge_runtime.agent import Agent, AgentOptions
from edge_runtime.artefact import write_artefact
from edge_runtime.fetch import block_runs
from edge_runtime.gate import install_trust
from edge_runtime.messages import BLOCK_BYTES, DeployStatus, RollBack, Topics, decode_control, encode_control
from edge_runtime.mqtt import LinkOptions, MqttLink, Packet
from edge_runtime.offloader import OffloadOptions
from edge_runtime.probation import ProbationOptions, Watch
from edge_runtime.slots import MAX_STARTS, Probation, SlotStore
from edge_runtime.sources import Frame, Newest
from orchestrator.artefact_server import ArtefactServer, parse_range
from orchestrator.deploy import DeployOptions, RejectedError, deploy
from orchestrator.signing import first_trust, make_key, read_key, sign_artefact

PATIENCE_S = 20


class Device:
    """An agent with a key set, and what it says of deployments."""

    def __init__(self, url, name, state, source=None, board="this", **probation):
        options = AgentOptions(
            broker=url,
            device=name,
            state=state,
            board=board,
            heartbeat_s=0.05,
            offload=OffloadOptions(deadline_ms=600),
            probation=ProbationOptions(**probation),
        )
        self.said = SimpleQueue()
        self.agent = Agent(options, source=source)
        self._thread = threading.Thread(target=self.agent.run, daemon=True)
        topics = Topics("default", name)
        subscriptions = LinkOptions(subscriptions=((topics.up("deploy"), 1),))
        self.link = MqttLink(url, subscriptions, lambda _t, data, _q: self.said.put(decode_control(data, DeployStatus)))
        self.topics = topics

    def __enter__(self):
        self.link.start().wait_connected(PATIENCE_S)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.agent.stop()
        self._thread.join(10)
        self.link.close()
        assert not self._thread.is_alive()

    def wait_for(self, state):
        while True:
            try:
                status = self.said.get(timeout=PATIENCE_S)
            except Empty:
                pytest.fail(f"never {state}")
            if status.state == state:
                return status


@pytest.fixture
def signer(tmp_path):
    """Signs artefacts with the key that `state` trusts; another one with `stranger`."""

    class Signer:
        state = tmp_path / "state"

        def __init__(self):
            public = [make_key(tmp_path / f"{name}.pem", name=name) for name in ("ours", "stranger")]
            install_trust(self.state / "trust.json", first_trust(public[:1], 1))

        def sign(self, artefact, counter, key="ours", **more):
            sign_artefact(artefact, [read_key(tmp_path / f"{key}.pem")], counter=counter, **more)
            return artefact

    return Signer()


@pytest.fixture
def make(network, tmp_path):
    """Variants of the whole model, some blocks long."""

    def build(name, **changes):
        manifest = msgspec.structs.replace(network.whole.manifest, files=(), **changes)
        files = {path: network.whole.path(path).read_bytes() for path in network.whole.manifest.files_by_path}
        ballast = np.random.default_rng(len(name)).bytes(5 * BLOCK_BYTES + 7)
        return write_artefact(tmp_path / name, manifest, {**files, "ballast": ballast, "name": name.encode()})

    return build


@pytest.fixture
def server(tmp_path):
    """An artefact server on loopback."""
    with ArtefactServer(tmp_path / "served") as running:
        yield running


def test_a_signed_model_comes_over_http_runs_on_probation_and_is_committed(broker, make, signer, server):
    artefact = signer.sign(make("v1"), 1)
    with Device(broker, "ota1", signer.state, seconds=0.0) as device:
        assert deploy(broker, "ota1", artefact, server=server).state == "active"
        states = [device.said.get(timeout=PATIENCE_S).state for _ in range(3)]
        assert states[0] == "fetching"
        assert "receiving" not in states
        assert device.wait_for("committed").artefact == artefact.id
    store = SlotStore(signer.state)
    assert store.active.whole == artefact.id
    assert store.floors == {"tiny whole": 1}
    assert store.probation is None


def test_a_device_that_cannot_reach_the_server_gets_blocks_over_mqtt(broker, make, signer, server, monkeypatch):
    monkeypatch.setattr("edge_runtime.agent.fetch_options", lambda _: _Impatient)
    server.url = "http://127.0.0.1:9/artefacts"  # discard: nobody listens
    with Device(broker, "ota2", signer.state, seconds=0.0) as device:
        deploy(broker, "ota2", signer.sign(make("v1"), 1), server=server)
        assert device.wait_for("receiving")


class _Impatient:
    give_up_s = 0.0
    tls = None


def test_what_is_not_vouched_for_not_for_this_board_or_too_old_is_refused_by_name(broker, make, signer, server):
    with Device(broker, "ota3", signer.state, seconds=0.0) as device:
        deploy(broker, "ota3", signer.sign(make("v5"), 5), server=server)
        running = device.wait_for("committed").artefact
        edited = signer.sign(make("edited"), 9)
        (edited.folder / "manifest.sig").write_bytes((make("v5-again").folder / "manifest.json").read_bytes())
        moved = make("moved")
        signer.sign(moved, 9)
        signature = (moved.folder / "manifest.sig").read_bytes()
        other = make("other")
        (other.folder / "manifest.sig").write_bytes(signature)
        refused = {
            "UnsignedError": [make("unsigned"), edited],
            "WrongKeyError": [signer.sign(make("stranger"), 9, key="stranger")],
            "BadSignatureError": [other],
            "WrongTargetError": [signer.sign(make("board", target="rpi-5"), 9)],
            "RollbackError": [signer.sign(make("v4"), 4)],
        }
        for code, artefacts in refused.items():
            for artefact in artefacts:
                with pytest.raises(RejectedError) as told:
                    deploy(broker, "ota3", artefact, server=server)
                assert told.value.code == code
    store = SlotStore(signer.state)
    assert store.active.whole == running
    assert [path.name for path in (signer.state / "artefacts").iterdir()] == [running]


def test_a_model_that_is_too_slow_or_not_itself_is_refused(broker, make, network, signer, server, tmp_path):
    with Device(broker, "ota4", signer.state) as device:
        with pytest.raises(RejectedError, match="within 1e-06 ms") as told:
            deploy(broker, "ota4", signer.sign(make("slow"), 1), server=server, options=DeployOptions(budget_ms=1e-6))
        assert told.value.code == "LatencyError"
        files = {path: network.whole.path(path).read_bytes() for path in network.whole.manifest.files_by_path}
        files["golden/o"] = bytes(32)
        wrong = write_artefact(tmp_path / "wrong", msgspec.structs.replace(network.whole.manifest, files=()), files)
        with pytest.raises(RejectedError) as told:
            deploy(broker, "ota4", signer.sign(wrong, 1), server=server)
        assert told.value.code == "GoldenError"
        assert device.agent._store.active.whole is None


def frames(*arrays):
    for number, array in enumerate(arrays):
        yield Frame(number, str(number), array)


def test_a_model_that_cannot_answer_goes_back_and_the_host_hears_of_it(broker, make, network, signer, server):
    good, bad = signer.sign(make("good"), 1), signer.sign(make("bad"), 2)
    shape = {"x": network.x}

    def endless():
        number = 0
        while True:
            yield Frame(number, "f", shape["x"])
            number += 1

    source = Newest(endless(), fps=100)
    with Device(broker, "ota5", signer.state, source, frames=3) as device:
        deploy(broker, "ota5", good, server=server)
        device.wait_for("committed")
        shape["x"] = network.x[:, :4]  # what the model cannot take: every frame is an EngineError from now on
        deploy(broker, "ota5", bad, server=server)
        status = device.wait_for("rolled-back")
        assert (status.artefact, status.code) == (bad.id, "ProbationError")
        assert "Wanted" in status.error
    store = SlotStore(signer.state)
    assert store.active.whole == good.id
    assert store.floors == {"tiny whole": 1}, "what did not prove itself raises no floor"


def test_a_model_that_ends_the_agent_again_and_again_goes(broker, make, signer, server):
    good, bad = signer.sign(make("good"), 1), signer.sign(make("bad"), 2)
    with Device(broker, "ota6", signer.state, seconds=0.0) as device:
        deploy(broker, "ota6", good, server=server)
        device.wait_for("committed")
    with Device(broker, "ota6", signer.state, seconds=1e6):
        deploy(broker, "ota6", bad, server=server)
    for _ in range(MAX_STARTS):  # as if the process had been killed each time
        assert SlotStore(signer.state).count_start()
    with Device(broker, "ota6", signer.state, seconds=1e6) as device:
        status = device.wait_for("rolled-back")
        assert status.artefact == bad.id
        assert device.agent._store.active.whole == good.id


def test_time_that_passes_while_the_next_model_is_built_commits_nothing(broker, make, signer, server, monkeypatch):
    first, second = signer.sign(make("v1"), 1), signer.sign(make("v2"), 2)
    with Device(broker, "ota8", signer.state, seconds=10) as device:
        agent, now = device.agent, [0.0]
        agent._trial._clock = lambda: now[0]
        deploy(broker, "ota8", first, server=server)
        building, go_on, build = threading.Event(), threading.Event(), agent._build

        def slow():
            building.set()
            assert go_on.wait(PATIENCE_S)
            return build()

        monkeypatch.setattr(agent, "_build", slow)
        asking = threading.Thread(target=deploy, args=(broker, "ota8", second), kwargs={"server": server})
        asking.start()
        assert building.wait(PATIENCE_S)
        now[0] = 100.0  # the first one's time is over
        assert agent._trial.judge() is None
        assert SlotStore(signer.state).probation.artefact == second.id
        assert SlotStore(signer.state).floors == {}
        go_on.set()
        asking.join(PATIENCE_S)
        now[0] = 200.0
        assert device.wait_for("committed").artefact == second.id


def test_the_host_may_send_a_device_back_but_not_below_its_floor(broker, make, signer, server):
    first, second, third = (signer.sign(make(f"m{n}"), n, floor=floor) for n, floor in ((1, 1), (2, 1), (3, 3)))
    with Device(broker, "ota7", signer.state, seconds=0.0) as device:
        for artefact in (first, second):
            deploy(broker, "ota7", artefact, server=server)
            device.wait_for("committed")
        leave = Packet(device.topics.rollback, encode_control(RollBack(boot="0" * 16, artefact=second.id)), 1)
        device.link.publish(leave)
        assert device.wait_for("rolled-back").artefact == second.id
        assert device.agent._store.active.whole == first.id
        for artefact in (second, third):
            deploy(broker, "ota7", artefact, server=server)
            device.wait_for("committed")
        device.link.publish(
            Packet(device.topics.rollback, encode_control(RollBack(boot="0" * 16, artefact=third.id)), 1)
        )
        assert device.wait_for("failed").code == "RollbackError"
        assert device.agent._store.active.whole == third.id


def test_probation_ends_by_frames_by_time_or_by_failures_in_a_row():
    options = ProbationOptions(seconds=10, frames=2, failures=2)
    watch = Watch(options, 0.0)
    watch.failed("x")
    watch.answered()
    watch.failed("x")
    assert watch.verdict(1) == "running"
    watch.answered()
    assert watch.verdict(1) == "passed"
    quiet = Watch(options, 0.0)
    assert (quiet.verdict(9.9), quiet.verdict(10)) == ("running", "passed")
    broken = Watch(options, 0.0)
    broken.failed("x")
    assert broken.verdict(11) == "running"
    broken.failed("y")
    assert (broken.verdict(11), broken.why) == ("failed", "y")


def test_activating_twice_keeps_what_was_committed_as_the_way_back(tmp_path, network):
    store = SlotStore(tmp_path)
    store.activate(network.whole)
    store.commit()
    store.activate(network.head, Probation(network.head.id, "0" * 16, floors={"a": 1}))
    store.activate(network.whole, Probation(network.whole.id, "1" * 16, floors={"b": 2}))
    assert SlotStore(tmp_path).previous.head is None
    assert SlotStore(tmp_path).previous.whole == network.whole.id
    store.commit()
    assert SlotStore(tmp_path).floors == {"a": 1, "b": 2}


def test_ranges_and_runs():
    assert parse_range("bytes=0-9", 5) == (0, 5)
    assert parse_range("bytes=2-", 5) == (2, 5)
    for header in ("bytes=5-9", "bytes=3-2", "bytes=-3", "bytes=0-1,3-4", "x", None):
        assert parse_range(header, 5) is None
    assert block_runs([0, 1, 2, 5, 7, 8]) == [(0, 2), (5, 5), (7, 8)]
    assert block_runs(list(range(600))) == [(0, 255), (256, 511), (512, 599)]
