"""Records that today's checks refuse (an earlier version wrote them): each is named and passed over, the others go on."""

import msgspec
import pytest
from sqlalchemy import select, update

from edge_runtime.messages import Models, Reported
from orchestrator.cli import run
from orchestrator.fleet import jobs, presence, records, registry
from orchestrator.fleet.brain import Brain, refresh_config
from orchestrator.fleet.jobs import NewJob
from orchestrator.fleet.queries import list_devices, list_rollouts, list_versions, show_device, show_rollout, summarise
from orchestrator.fleet.rollouts import advance, create_rollout
from orchestrator.fleet.state import RolloutSpec, Stage
from orchestrator.fleet.store import Store, now_ms
from orchestrator.fleet.tables import DesiredState, Job, OutboxRow, Presence, ReportedState, RolloutRow, TargetRow
from tests.orchestrator.fleet.conftest import add_versions, bear, boot

NOBODY = "mqtt://127.0.0.1:1"
TOO_LONG = {"note": "x" * 501}  # of a setting 500 are the most


@pytest.fixture(autouse=True)
def nothing_said():
    """Each test has a log of its own."""
    records.say_refused.cache_clear()


@pytest.fixture
def brain(store):
    return Brain(Store(store.url), NOBODY, owner="one")


def roll_out(store, name, *devices, version="m@1"):
    """A rollout whose updates are queued."""
    with store.write() as session:
        registry.define_group(session, f"g{name}", devices=devices, actor="test", now_ms=now_ms())
        spec = RolloutSpec(version=version, to=f"g{name}", stages=(Stage(share=1.0, soak_s=0),))
        create_rollout(session, name, spec, actor="test", now_ms=now_ms())


def spoil(store, table, column, where, **changes):
    """Change fields of a row's document past its checks."""
    with store.write() as session:
        row = session.scalars(select(table).where(where)).one()
        document = msgspec.json.decode(getattr(row, column))
        setattr(row, column, msgspec.json.encode({**document, **changes}).decode())


def ordered(store):
    """Devices with an order in the outbox."""
    with store.read() as session:
        return sorted(topic.split("/")[3] for topic in session.scalars(select(OutboxRow.topic)))


def states(store):
    with store.read() as session:
        return {job.device: (job.state, job.error) for job in session.scalars(select(Job))}


def test_a_bad_desired_state_is_written_anew_with_the_next_order(store, brain, caplog):
    add_versions(store, "m@1")
    bear(store, "a", "b", "c", now_ms=now_ms())
    with store.write() as session:
        for _ in range(3):
            registry.change_desired(session, "default/b", now_ms=1)
        session.execute(OutboxRow.__table__.delete())
    spoil(store, DesiredState, "document", DesiredState.device == "default/b", config=TOO_LONG)
    roll_out(store, "r1", "default/a", "default/b", "default/c")
    with store.write() as session:
        advance(session, "r1", now_ms=now_ms())
    assert brain._dispatch() == 3
    assert ordered(store) == ["a", "b", "c"]
    assert set(states(store).values()) == {("leased", None)}
    assert "desired state 3 of default/b" in caplog.text
    with store.read() as session:
        desired = show_device(session, "default/b", now_ms=now_ms()).desired
    assert (desired.rev, desired.models.version, desired.config) == (4, "m@1", {})


def test_a_bad_memory_of_what_ran_before_holds_up_no_other_order(store, brain, caplog):
    add_versions(store, "m@1")
    bear(store, "a", "b", now_ms=now_ms())
    roll_out(store, "r1", "default/a")
    roll_out(store, "r2", "default/b")
    for rollout, device in (("r1", "default/a"), ("r2", "default/b")):
        new = NewJob(id=f"{rollout}:j", kind="update", arguments={"revert": True}, device=device, rollout=rollout)
        with store.write() as session:
            jobs.enqueue(session, [new], now_ms=now_ms())
    spoil(store, TargetRow, "before", TargetRow.device == "default/a", version=7)
    with store.write() as session:  # of no rollout at all
        jobs.enqueue(session, [NewJob(id="stray", kind="update", device="default/a")], now_ms=now_ms())
    assert brain._dispatch() == 3
    assert ordered(store) == ["b"]
    assert "r1:j" in caplog.text
    assert "stray" in caplog.text


def test_a_bad_rollout_holds_up_no_other(store, brain, caplog, capsys):
    add_versions(store, "m@1")
    bear(store, "a", "b", now_ms=now_ms())
    roll_out(store, "r1", "default/a")
    roll_out(store, "r2", "default/b")
    with store.read() as session:
        spec = msgspec.json.decode(session.get(RolloutRow, "r1").document)["spec"]
    spoil(store, RolloutRow, "document", RolloutRow.id == "r1", spec={**spec, "abort_share": 7})
    for _ in range(3):
        brain._led = 0.0
        brain._lead()
    assert set(states(store)) == {"default/b"}
    assert caplog.text.count("rollout r1: ") == caplog.text.count("passed over") == 1, caplog.text
    brain._leadership.close()
    with store.read() as session:
        assert [one.rollout.id for one in list_rollouts(session, now_ms=now_ms())] == ["r2"]
        assert show_rollout(session, "r2", now_ms=now_ms())
    assert run(["fleet", "status", "r1", "--store", store.url]) == 1
    assert "abort_share" in capsys.readouterr().err


def test_bad_documents_of_a_device_leave_the_others_readable(store, caplog):
    add_versions(store, "m@1")
    bear(store, "a", "b")
    with store.write() as session:
        for device in ("default/a", "default/b"):
            registry.change_desired(session, device, now_ms=1, models=Models(version="m@1"))
            told = Reported(boot=boot(1), seq=1, rev=1, state="active", version="m@1")
            presence.record_reported(session, device, told, now_ms=1)
    with store.read() as session:
        birth = msgspec.json.decode(msgspec.json.encode(list_devices(session, now_ms=1)[0].birth))
    spoil(store, DesiredState, "document", DesiredState.device == "default/a", config=TOO_LONG)
    spoil(store, ReportedState, "document", ReportedState.device == "default/a", error="x" * 501)
    with store.write() as session:
        session.execute(update(Presence).where(Presence.device == "default/a").values(heartbeat='{"seq": -1}'))
        device = registry.get_device(session, "default/a")
        device.birth = msgspec.json.encode({**birth, "agent": "x" * 501}).decode()
        registry.set_config(session, "all", "fps", 5, actor="test", now_ms=1)
    for _ in range(2):
        with store.read() as session:
            bad, good = list_devices(session, now_ms=2)
            assert (bad.desired, bad.reported, bad.heartbeat, bad.birth) == (None,) * 4
            assert good.in_step
            assert summarise(session, now_ms=2).devices == 2
            assert list_versions(session)[0].devices == 1
    assert caplog.text.count("Wanted Desired of default/a") == 1
    with store.write() as session:
        assert refresh_config(session, now_ms=3) == 2
    with store.read() as session:
        bad, good = (view.desired for view in list_devices(session, now_ms=4))
    assert bad.config == good.config == {"fps": 5}
    assert (bad.models, good.models.version) == (None, "m@1"), "what cannot be read is left to the device"


def test_a_bad_policy_of_a_job_counts_as_the_usual_one(store, brain, caplog):
    bear(store, "a", now_ms=now_ms())
    with store.write() as session:
        jobs.enqueue(session, [NewJob(id=name, kind="echo", device="default/a") for name in "jk"], now_ms=now_ms())
        session.execute(update(Job).where(Job.id == "j").values(policy={"attempts": 0}))
    assert brain._dispatch() == 2
    assert "j" in caplog.text
    with store.write() as session:
        assert jobs.reap(session, now_ms=now_ms() + 70_000) == 2
        assert {job.state for job in session.scalars(select(Job))} == {"queued"}
