"""A device whose disk is full starts, goes on, says so, and does what it was told once there is room.

A name that leads to /dev/full is a file for which the disk has no room.
"""

import errno
import logging
from pathlib import Path

import msgspec
import pytest

from edge_runtime import follow, transfer
from edge_runtime.agent_slots import AgentPointer, AgentProbation
from edge_runtime.durable import lacks_room, no_room
from edge_runtime.follow import MEMORY_NAME, read_memory
from edge_runtime.gate import Gatekeeper
from edge_runtime.messages import DeployStatus, Models, Result, Slots
from edge_runtime.probation import ProbationOptions
from edge_runtime.results_file import ResultsFile
from edge_runtime.self_update import SelfUpdate
from edge_runtime.slots import POINTER_NAME, Pointer, Probation, SlotStore, read_pointer
from edge_runtime.transfer import TransferError
from edge_runtime.trial import Trial
from tests.edge_runtime.conftest import Host

OLD, NEW = "a" * 64, "b" * 64


def fill(path: Path) -> Path:
    """No room for this file; what it is returns is to be removed to make room."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.symlink_to("/dev/full")
    return part


def test_what_lacks_room_is_told_from_other_errors():
    with pytest.raises(TransferError) as caught:
        raise TransferError("no room") from no_room()
    assert lacks_room(caught.value)
    assert lacks_room(OSError(errno.ENOSPC, "full"))
    assert not lacks_room(OSError(errno.EACCES, "not yours"))
    assert not lacks_room(TransferError("another hash"))


def test_an_agent_starts_on_a_full_disk_follows_and_writes_once_there_is_room(
    broker,
    network,
    served,
    tmp_path,
    monkeypatch,
):
    monkeypatch.setattr(follow, "_WRITE_AGAIN_S", 0.1)
    state = tmp_path / "state"
    memory, whole = state / MEMORY_NAME, served(network.whole, 1)
    full = fill(memory)
    with Host(broker, "full1", state) as host:
        host.want(1, config={"deadline_ms": 700}, config_rev=1)
        last, _ = host.wait_for(1, "active", "failed")
        assert (last.state, last.config_rev) == ("active", 1)
        assert "Make room" in last.error
        assert read_memory(memory).rev == 0
        full.unlink()
        while last.error is not None:
            last, _ = host.wait_for(1, "active")
        assert (read_memory(memory).rev, read_memory(memory).config_rev) == (1, 1)
        host.want(2, models=Models(version="net@1", whole=whole))
        assert host.wait_for(2, "active", "failed")[0].state == "active"


@pytest.mark.parametrize("where", ["pointer", "transfer"])
def test_an_order_that_there_is_no_room_for_is_carried_out_once_there_is(
    where,
    broker,
    network,
    served,
    tmp_path,
    monkeypatch,
):
    monkeypatch.setattr(follow, "_TRY_AGAIN_S", 0.1)
    state, whole = tmp_path / "state", served(network.whole, 1)
    with Host(broker, f"full2{where}", state) as host:
        if where == "pointer":
            full = fill(state / POINTER_NAME)
        else:
            monkeypatch.setattr(transfer, "_SPARE_BYTES", 1 << 60)
        host.want(1, models=Models(version="net@1", whole=whole))
        last, _ = host.wait_for(1, "active", "failed")
        assert last.state == "failed"
        assert "room" in last.error or "No space" in last.error
        if where == "pointer":
            full.unlink()
        else:
            monkeypatch.setattr(transfer, "_SPARE_BYTES", 1)
        last, _ = host.wait_for(1, "active")
        assert (last.slots.whole, last.error) == (whole.artefact, None)


def test_an_order_that_there_was_no_room_for_is_tried_again_after_a_restart(
    broker,
    network,
    served,
    tmp_path,
    monkeypatch,
):
    state, whole = tmp_path / "state", served(network.whole, 1)
    with monkeypatch.context() as patch:
        patch.setattr(transfer, "_SPARE_BYTES", 1 << 60)
        with Host(broker, "full3", state) as host:
            host.want(1, models=Models(version="net@1", whole=whole))
            assert host.wait_for(1, "active", "failed")[0].state == "failed"
    with Host(broker, "full3", state) as host:
        assert host.wait_for(1, "active")[0].slots.whole == whole.artefact


@pytest.fixture
def pending(tmp_path):
    """A store with something on probation, and no room for its pointer file."""
    pointer = Pointer(1, Slots(whole=NEW), Slots(whole=OLD), Probation(NEW, NEW[:16], 0, 0.0, 1))
    (tmp_path / POINTER_NAME).write_bytes(msgspec.json.encode(pointer))
    return SlotStore(tmp_path)


def test_what_has_proven_itself_is_committed_once_there_is_room(pending, tmp_path, caplog):
    said: list[DeployStatus] = []
    trial = Trial(pending, ProbationOptions(), boot="0" * 16, report=said.append)
    full = fill(tmp_path / POINTER_NAME)
    assert [trial.judge() for _ in range(3)] == [None] * 3
    assert pending.probation is not None
    assert not said
    assert caplog.text.count("No space left") == 1
    full.unlink()
    assert trial.judge() is None
    assert [one.state for one in said] == ["committed"]
    assert read_pointer(tmp_path / POINTER_NAME).probation is None


def test_what_failed_goes_although_that_cannot_be_written(pending, tmp_path):
    said: list[DeployStatus] = []
    trial = Trial(pending, ProbationOptions(), boot="0" * 16, report=said.append)
    fill(tmp_path / POINTER_NAME)
    assert not trial.survived_starts(), "a start that cannot be counted is not given"
    trial.roll_back(ValueError("bad"))
    assert pending.active.whole == OLD
    assert pending.problem == "ValueError: bad"
    assert [one.state for one in said] == ["rolled-back"]


def test_a_store_whose_floors_cannot_be_copied_opens(tmp_path):
    (tmp_path / POINTER_NAME).write_bytes(msgspec.json.encode(Pointer(floors={"m": 3})))
    fill(tmp_path / "active.floors.json")
    assert SlotStore(tmp_path).floors == {"m": 3}


def test_an_agent_that_has_proven_itself_is_committed_once_there_is_room(tmp_path, caplog):
    probation = AgentProbation(artefact=NEW, rev=1, seconds=0.0, confirm_s=60.0, models_ran=False, floors={})
    (tmp_path / "agent.json").write_bytes(msgspec.json.encode(AgentPointer(active=NEW, probation=probation)))
    updates = SelfUpdate(tmp_path, Gatekeeper(tmp_path, "rpi-5", unsigned=True), None)
    updates._pending = probation  # as in its own slot
    full = fill(tmp_path / "agent.json")
    assert not any(updates.judge(connected=True, models_problem=None) for _ in range(3))
    assert updates.on_probation
    assert caplog.text.count("No space left") == 1
    full.unlink()
    assert updates.judge(connected=True, models_problem=None)
    assert not updates.on_probation


def test_results_that_there_is_no_room_for_stop_no_agent(caplog):
    caplog.set_level(logging.ERROR)
    results = ResultsFile("/dev/full")
    for number in range(1000):
        results.write(Result(boot="0" * 16, seq=number, frame="f", source="local"))
    results.close()
    assert caplog.text.count("No space left") == 1
