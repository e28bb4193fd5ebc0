import json
import os
import shutil
import subprocess
import sys
import threading

import msgspec
import numpy as np
import pytest

from edge_runtime.agent import Agent, AgentOptions
from edge_runtime.artefact import open_artefact, write_artefact
from edge_runtime.blocks import Block
from edge_runtime.cli import default_state, main
from edge_runtime.deployments import Deployments
from edge_runtime.gate import Gatekeeper
from edge_runtime.manifest import Engine, Postprocessing
from edge_runtime.messages import BLOCK_BYTES, DeployStart, Slots
from edge_runtime.offloader import OffloadOptions
from edge_runtime.probation import ProbationOptions
from edge_runtime.slots import Probation, SlotError, SlotStore
from edge_runtime.sources import Frame, Newest
from orchestrator.deploy import (
    DeployError,
    DeployOptions,
    DeviceBusyError,
    EngineMismatchError,
    RejectedError,
    UnknownDeviceError,
    Window,
    check_engine,
    deploy,
)
from orchestrator.tail_server import TailServer, serve_artefact


class Running:
    """An agent in a thread, with the results that it gave."""

    def __init__(self, url, name, state, source=None, **given):
        self.results, self.enough = [], threading.Event()
        options = AgentOptions(
            broker=url,
            device=name,
            state=state,
            heartbeat_s=0.05,
            offload=OffloadOptions(deadline_ms=600),
            probation=ProbationOptions(seconds=0.0),
        )
        self.agent = Agent(options, source=source, on_result=self._take, **given)
        self._thread = threading.Thread(target=self.agent.run, daemon=True)

    def _take(self, result):
        self.results.append(result)
        if len(self.results) >= 5:
            self.enough.set()

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.agent.stop()
        self._thread.join(10)
        assert not self._thread.is_alive()


def deploy_for_good(broker, device, artefact):
    """Deploy, and wait until it has proven itself."""
    pause = threading.Event()
    while deploy(broker, device, artefact).state != "committed":
        pause.wait(0.05)


def endless(x):
    number = 0
    while True:
        yield Frame(number, f"frame-{number}", x)
        number += 1


def test_a_deployed_head_runs_with_its_tail_and_survives_a_restart(broker, network, tmp_path):
    source = Newest(endless(network.x), fps=200)
    with TailServer(broker, [serve_artefact(network.tail)]), Running(broker, "dep1", tmp_path, source) as device:
        deploy_for_good(broker, "dep1", network.whole)
        seen = []
        status = deploy(broker, "dep1", network.head, progress=lambda done, total: seen.append((done, total)))
        assert status.state == "active"
        assert seen[-1][0] == seen[-1][1]
        device.enough.wait(20)
        while device.results[-1].source != "remote":
            device.enough.wait(0.01)
        assert device.results[-1].top[0].index == 7
        assert device.results[-1].top[0].score == float(network.y[0, 7])
        assert "tail_ms" in device.results[-1].ms
        again = deploy(broker, "dep1", network.head, progress=lambda *_: pytest.fail("what runs is sent again"))
        assert again.state in ("active", "committed")
    store = SlotStore(tmp_path)
    assert store.active == Slots(head=network.head.id, whole=network.whole.id)
    assert store.previous == Slots(whole=network.whole.id)
    with Running(broker, "dep1", tmp_path, Newest(endless(network.x), fps=200)) as device:
        assert device.enough.wait(20)
        assert {result.source for result in device.results} == {"local"}, "no tail runs now"
    store.roll_back()
    assert SlotStore(tmp_path).active == Slots(whole=network.whole.id)


def large_artefact(network, folder, **changes):
    """The whole model with some ballast, so that it takes several blocks."""
    manifest = msgspec.structs.replace(network.whole.manifest, files=(), **changes)
    files = {path: network.whole.path(path).read_bytes() for path in network.whole.manifest.files_by_path}
    ballast = np.random.default_rng(1).bytes(9 * BLOCK_BYTES + 7)
    return write_artefact(folder, manifest, {**files, "ballast": ballast})


def test_an_interrupted_transfer_goes_on_and_an_edited_artefact_never_runs(broker, network, tmp_path):
    artefact = large_artefact(network, tmp_path / "large")
    sent = []
    with Running(broker, "dep2", tmp_path / "state"):
        with pytest.raises(_Interrupted):
            deploy(broker, "dep2", artefact, options=DeployOptions(window=4), progress=_interrupt_at(4 * BLOCK_BYTES))
        deploy(broker, "dep2", artefact, progress=lambda done, _total: sent.append(done))
        deploy_for_good(broker, "dep2", artefact)
    assert sent[0] >= 4 * BLOCK_BYTES, "blocks that had arrived are not sent again"
    store = SlotStore(tmp_path / "state")
    assert store.active.whole == artefact.id
    ballast = store.folder / "artefacts" / artefact.id / "ballast"
    ballast.write_bytes(b"x" + ballast.read_bytes()[1:])
    with Running(broker, "dep2", tmp_path / "state") as device:
        device.agent._link.wait_connected(10)
        birth = msgspec.json.decode(device.agent._birth()[0].payload)
        assert birth["slots"] == {"head": None, "whole": None}
        assert "edited" in birth["problem"]
        assert deploy(broker, "dep2", artefact).state == "active", "the damaged one is sent again"
        assert msgspec.json.decode(device.agent._birth()[0].payload).get("problem") is None
    assert SlotStore(tmp_path / "state").open(artefact.id) is not None


def test_a_damaged_artefact_at_start_gives_way_to_the_one_before(broker, network, tmp_path):
    artefact = large_artefact(network, tmp_path / "large")
    with Running(broker, "dep8", tmp_path / "state"):
        deploy_for_good(broker, "dep8", network.whole)
        deploy_for_good(broker, "dep8", artefact)
    (tmp_path / "state" / "artefacts" / artefact.id / "ballast").unlink()
    source = Newest(endless(network.x), fps=200)
    with Running(broker, "dep8", tmp_path / "state", source) as device:
        assert device.enough.wait(20)
        assert {result.source for result in device.results} == {"local"}
        birth = msgspec.json.decode(device.agent._birth()[0].payload)
        assert birth["slots"]["whole"] == network.whole.id
        assert "ballast" in birth["problem"]


def test_a_damaged_pointer_file_counts_as_none(tmp_path):
    (tmp_path / "active.json").write_bytes(b'{"v": 1, "active\xff')
    store = SlotStore(tmp_path)
    assert store.active == Slots()
    assert "pointer" in store.problem


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b"{"), lambda path: path.unlink()])
def test_floors_outlive_the_pointer_file(network, tmp_path, damage):
    store = SlotStore(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(network.whole.folder, copy)
    artefact = store.adopt(open_artefact(copy))
    store.activate(artefact, Probation(artefact.id, "0123456789abcdef", floors={"line": 3}))
    assert SlotStore(tmp_path).floors == {}, "on probation nothing has risen"
    store.commit()
    damage(tmp_path / "active.json")
    store = SlotStore(tmp_path)
    assert (store.active, store.floors) == (Slots(), {"line": 3})
    store.replace(Slots())
    assert SlotStore(tmp_path).floors == {"line": 3}
    (tmp_path / "active.floors.json").write_bytes(b"{")
    assert SlotStore(tmp_path).floors == {"line": 3}, "and is written again"
    damage(tmp_path / "active.json")
    assert SlotStore(tmp_path).floors == {"line": 3}


class _Interrupted(Exception):
    pass


def _interrupt_at(size):
    def progress(done, _total):
        if done >= size:
            raise _Interrupted

    return progress


def test_a_device_in_another_deployment_is_busy_until_that_is_silent(broker, network, tmp_path):
    artefact = large_artefact(network, tmp_path / "large")
    with Running(broker, "dep9", tmp_path / "state"):
        with pytest.raises(_Interrupted):
            deploy(broker, "dep9", artefact, options=DeployOptions(window=4), progress=_interrupt_at(4 * BLOCK_BYTES))
        with pytest.raises(DeviceBusyError, match="another deployment"):
            deploy(broker, "dep9", network.whole, options=DeployOptions(timeout_s=0.1))
        assert deploy(broker, "dep9", artefact).state == "active", "the first one goes on"


def test_a_silent_transfer_gives_way(tmp_path):
    now, states = [0.0], []
    deployments = Deployments(
        SlotStore(tmp_path),
        Gatekeeper(tmp_path, "this", unsigned=True),
        boot="0" * 16,
        report=states.append,
        activate=None,
        clock=lambda: now[0],
    )

    def start(number):
        name = str(number) * 16
        return DeployStart(boot=name, transfer=name, artefact=4 * name, zip_sha256=4 * name, size=BLOCK_BYTES + 1)

    deployments.begin(start(1))
    now[0] = 9.0
    deployments.begin(start(2))
    deployments.add("1" * 16, Block(0, bytes(BLOCK_BYTES)))
    now[0] = 18.0
    deployments.begin(start(2))
    now[0] = 20.0
    deployments.begin(start(2))
    assert [status.state for status in states] == ["receiving", "busy", "busy", "receiving"]


def test_a_model_that_fails_its_golden_vectors_is_rejected_and_the_old_one_stays(broker, network, tmp_path):
    files = {path: network.whole.path(path).read_bytes() for path in network.whole.manifest.files_by_path}
    files["golden/o"] = bytes(32)
    wrong = write_artefact(tmp_path / "wrong", msgspec.structs.replace(network.whole.manifest, files=()), files)
    with Running(broker, "dep3", tmp_path / "state"):
        deploy(broker, "dep3", network.whole)
        with pytest.raises(RejectedError, match="golden"):
            deploy(broker, "dep3", wrong)
    store = SlotStore(tmp_path / "state")
    assert store.active.whole == network.whole.id
    assert [path.name for path in (store.folder / "artefacts").iterdir()] == [network.whole.id]


def test_class_names_that_are_no_text_are_rejected_and_the_old_model_stays(broker, network, tmp_path):
    files = {path: network.whole.path(path).read_bytes() for path in network.whole.manifest.files_by_path}
    manifest = msgspec.structs.replace(network.whole.manifest, files=(), postprocessing=Postprocessing(labels="names"))
    hostile = write_artefact(tmp_path / "hostile", manifest, {**files, "names": b"cat\n\xff\xfe"})
    with Running(broker, "dep5", tmp_path / "state"):
        deploy(broker, "dep5", network.whole)
        with pytest.raises(RejectedError, match="UTF-8"):
            deploy(broker, "dep5", hostile)
    assert SlotStore(tmp_path / "state").active.whole == network.whole.id


def test_whatever_goes_wrong_on_the_device_the_host_hears_of_it_and_the_old_model_stays(
    broker, network, tmp_path, monkeypatch
):
    artefact = large_artefact(network, tmp_path / "large")
    with Running(broker, "dep6", tmp_path / "state") as device:
        deploy(broker, "dep6", network.whole)

        def fail():
            raise MemoryError("no room")

        monkeypatch.setattr(device.agent, "_build", fail)
        with pytest.raises(RejectedError, match="MemoryError: no room"):
            deploy(broker, "dep6", artefact)
    assert SlotStore(tmp_path / "state").active.whole == network.whole.id


def test_counters_go_on_over_a_deployment(broker, network, tmp_path):
    source = Newest(endless(network.x), fps=200)
    with Running(broker, "dep7", tmp_path / "state", source) as device:
        deploy(broker, "dep7", network.whole)
        assert device.enough.wait(20)
        deploy(broker, "dep7", large_artefact(network, tmp_path / "large"))
        old = device.agent._pipeline
        while device.agent._pipeline is old and device.agent._next is not None:
            device.enough.wait(0.01)
        beat = msgspec.json.decode(device.agent._heartbeat().payload)
        assert beat["local"] >= 5


def test_a_state_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SlotError, match="--state"):
        SlotStore(tmp_path / "file" / "state")


def test_devices_that_are_not_there_or_cannot_run_it_are_named(broker, network, tmp_path):
    with pytest.raises(UnknownDeviceError, match="edge-agent run"):
        deploy(broker, "nobody", network.whole, options=DeployOptions(hello_timeout_s=0.2))
    with Running(broker, "left", tmp_path / "left") as device:
        device.agent._link.wait_connected(10)
    with pytest.raises(UnknownDeviceError, match="has left"):
        deploy(broker, "left", network.whole, options=DeployOptions(hello_timeout_s=0.5))
    with pytest.raises(DeployError, match="tail"):
        deploy(broker, "nobody", network.tail)
    engine = Engine(name="tensorrt", built="10.3")
    tensorrt = large_artefact(network, tmp_path / "trt", engine=engine)
    with pytest.raises(EngineMismatchError, match="JetPack 4 and 5"):
        check_engine(tensorrt, "jetson-nano", ("tensorrt",))
    with pytest.raises(EngineMismatchError, match="onnxruntime"):
        check_engine(network.whole, "rpi-5", ("litert",))
    check_engine(network.whole, "a-board-of-the-future", ("onnxruntime",))


def test_the_window_sends_what_is_missing_and_never_more_than_its_size():
    window = Window(10, 4)
    assert window.take() == [0, 1, 2, 3]
    assert window.take() == []
    assert window.confirm(bytes([0b0101]), again=False)
    assert window.take() == [4, 5]
    assert not window.confirm(bytes([0b0101]), again=True), "asked again: what was not confirmed is lost"
    assert window.take() == [1, 3, 4, 5]
    assert window.confirm(b"\xff\x03", again=False)
    assert window.take() == []
    assert window.confirmed == 10


def test_the_agent_command_runs_a_folder_and_writes_results(broker, network, tmp_path):
    (tmp_path / "counted_frames.py").write_text(
        "import numpy\ndef frames():\n    for i in range(3):\n        yield numpy.full((1, 8), i, numpy.float32)\n"
    )
    command = [
        sys.executable,
        "-c",
        "from edge_runtime.cli import main; main()",
        "run",
        "--broker",
        broker,
        "--device",
        "cli",
    ]
    command += [
        "--state",
        str(tmp_path / "state"),
        "--whole",
        str(network.whole.folder),
        "--source",
        "counted_frames:frames",
    ]
    command += ["--keep-all", "--results", "-"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.getcwd()])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(row["seq"], row["source"], row["top"][0]["score"]) for row in rows] == [
        (i, "local", 2.0 * i + 1) for i in range(3)
    ]
    shutil.rmtree(tmp_path / "state")


def test_results_that_cannot_be_written_are_named(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["run", "--broker", "x", "--device", "d", "--results", str(tmp_path / "missing" / "results.jsonl")])
    assert ended.value.code == 1
    assert "ResultsError: Wanted to write results" in capsys.readouterr().err


def test_the_state_of_a_user_is_in_the_user_s_own_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert str(default_state()) == "/var/lib/headtail"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert default_state() == tmp_path / "headtail"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert str(default_state()) == "/home/me/.local/state/headtail"
