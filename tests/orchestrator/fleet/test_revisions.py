"""A database that is new or was restored, and devices that have seen more revisions than it has written."""

import threading

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_runtime.agent import Agent
from edge_runtime.agent_options import AgentOptions
from edge_runtime.follow import MEMORY_NAME, Memory
from edge_runtime.messages import Desired, Models, Reported
from orchestrator.fleet import presence, queries, registry
from orchestrator.fleet.brain import Brain, refresh_config
from orchestrator.fleet.ingest import Ingest
from orchestrator.fleet.store import Store, now_ms
from orchestrator.fleet.tables import Base, DesiredState
from tests.orchestrator.fleet.conftest import bear, birth, boot
from tests.orchestrator.fleet.test_registry import D, beat, outbox, view, write


def report(store, *, rev, seq=1, job=None, state="active", number=1, device=D):
    told = Reported(boot=boot(number), seq=seq, rev=rev, job=job, state=state)
    assert write(store, presence.record_reported, device, told, now_ms=1500)


@pytest.mark.parametrize("how", ["birth", "heartbeat", "report"])
def test_a_first_revision_is_above_the_devices_own(how, store):
    bear(store, "a", desired_rev=7 if how == "birth" else 0)
    if how == "heartbeat":
        write(store, presence.record_heartbeats, [beat(1, 1, rev=7)])
    if how == "report":
        report(store, rev=7)
    assert write(store, registry.change_desired, D, now_ms=3000, config={"fps": 5}).rev == 8
    assert write(store, registry.change_desired, D, now_ms=3000, config={"fps": 6}).rev == 9


@pytest.mark.parametrize("how", ["birth", "heartbeat", "report"])
def test_a_device_ahead_of_its_row_gets_the_desired_state_anew(how, store):
    bear(store, "a", "b")
    for device in (D, "default/b"):
        write(store, registry.change_desired, device, now_ms=1000, job="j", models=Models(version="m@1"))
        write(store, presence.record_heartbeats, [beat(1, 1, rev=1, device=device)])
    if how == "birth":
        write(store, presence.record_birth, D, birth(2, boot_count=2, desired_rev=7), now_ms=1500)
    elif how == "heartbeat":
        write(store, presence.record_heartbeats, [beat(1, 2, rev=7)])
    else:
        report(store, rev=7)
    assert write(store, presence.sweep_presence, now_ms=9000) == 1
    desired = view(store).desired
    assert (desired.rev, desired.job, desired.models.version) == (8, "j", "m@1")
    topic, payload, retain = outbox(store)[-1]
    assert (topic, msgspec.json.decode(payload)["rev"], retain) == ("ht/v1/default/a/down/desired", 8, True)
    assert view(store, "default/b").desired.rev == 1
    write(store, presence.record_heartbeats, [beat(2 if how == "birth" else 1, 3, rev=8)])
    assert write(store, presence.sweep_presence, now_ms=30_000) == 0


def test_a_revision_that_the_device_decided_for_another_job_is_written_anew(store):
    bear(store, "a")
    write(store, registry.change_desired, D, now_ms=1000, job="ours", models=Models(version="m@1"))
    report(store, rev=1, seq=1, job="ours", state="idle")
    report(store, rev=1, seq=2, job="ours")
    report(store, rev=1, seq=3, job=None, state="idle")  # it begins this revision again by itself
    assert view(store).desired.rev == 1
    report(store, rev=1, seq=4, job="of-the-lost-database")
    assert (view(store).desired.rev, view(store).desired.job) == (2, "ours")
    assert len(outbox(store)) == 2


@pytest.mark.parametrize("store", ["postgresql"], indirect=True)  # SQLite has one writer
def test_a_desired_state_that_another_process_changes_meanwhile_is_not_written_over(store):
    bear(store, "a")
    write(store, registry.change_desired, D, now_ms=1000, job="older")
    with store.write() as session:
        read = session.get(DesiredState, D)
        write(store, registry.change_desired, D, now_ms=2000, job="newer")
        desired = registry.change_desired(session, D, now_ms=3000, config={"fps": 5})
        assert (desired.rev, desired.job, read.rev) == (3, "newer", 3)


def test_a_device_that_no_revision_can_follow_is_named_and_holds_up_no_other(store, caplog):
    bear(store, "a", "b", desired_rev=0)
    for device in (D, "default/b"):
        write(store, registry.change_desired, device, now_ms=1000, config={"fps": 5})
    write(store, presence.record_heartbeats, [beat(1, 1, rev=2**53), beat(1, 1, rev=7, device="default/b")])
    assert write(store, presence.sweep_presence, now_ms=9000) == 1
    assert (view(store).desired.rev, view(store, "default/b").desired.rev) == (1, 8)
    assert D in caplog.text
    caplog.clear()
    assert write(store, presence.sweep_presence, now_ms=9500) == 0
    assert not caplog.text, "once in a while, not in every round"


class Pretended:
    """Follows desired states as `Follower` does; `lose` starts it anew from an old image of its disk."""

    def __init__(self):
        self.number, self.seq, self.memory = 1, 0, (0, None)

    def follow(self, document):
        desired = msgspec.json.decode(document)
        if desired["rev"] > self.memory[0]:
            self.memory = (desired["rev"], desired.get("job"))

    def lose(self, memory):
        self.number, self.seq, self.memory = self.number + 1, 0, memory

    def say(self, store, at_ms):
        self.seq += 1
        (rev, job), known = self.memory, {"desired_rev": self.memory[0], "boot_count": self.number}
        told = Reported(boot=boot(self.number), seq=self.seq, rev=rev, job=job, state="active" if rev else "idle")
        write(store, presence.record_birth, D, birth(self.number, **known), now_ms=at_ms)
        write(store, presence.record_reported, D, told, now_ms=at_ms)
        write(store, presence.record_heartbeats, [beat(self.number, self.seq, rev=rev)])


_MEMORIES = st.tuples(st.integers(0, 5), st.sampled_from([None, "old", "lost"]))
_HAPPENINGS = st.one_of(
    st.tuples(st.just("order"), st.sampled_from(["old", "new"])),
    st.tuples(st.just("lose"), _MEMORIES),
    st.tuples(st.just("restore"), _MEMORIES),
    st.tuples(st.just("deliver"), st.integers(0, 3)),
    st.tuples(st.just("say"), st.none()),
    st.tuples(st.just("sweep"), st.none()),
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(happenings=st.lists(_HAPPENINGS, max_size=12))
def test_whatever_happens_device_and_database_settle(lite, happenings):
    device, at_ms = Pretended(), 10_000
    with lite.write() as session:
        for table in reversed(Base.metadata.sorted_tables):
            session.execute(table.delete())
    device.say(lite, at_ms)
    write(lite, registry.change_desired, D, now_ms=at_ms, job="first")
    for what, how in happenings:
        at_ms += 6000
        if what == "order":
            write(lite, registry.change_desired, D, now_ms=at_ms, job=how)
        elif what == "lose":
            device.lose(how)
        elif what == "restore":
            with lite.write() as session:
                row = session.get(DesiredState, D)
                row.rev = max(how[0], 1)
                row.document = msgspec.json.encode(Desired(boot=boot(0), rev=row.rev, job=how[1])).decode()
        elif what == "deliver":
            device.follow((outbox(lite) * 4)[-1 - how][1])  # it may come late, or again
        elif what == "say":
            device.say(lite, at_ms)
        else:
            write(lite, presence.sweep_presence, now_ms=at_ms)
    for _ in range(3):
        at_ms += 4_000_000
        device.say(lite, at_ms)
        write(lite, presence.sweep_presence, now_ms=at_ms)
        device.follow(outbox(lite)[-1][1])
    device.say(lite, at_ms)
    written, sent = view(lite).desired, len(outbox(lite))
    assert device.memory[0] == written.rev
    assert written.job in (None, device.memory[1])
    for _ in range(3):
        at_ms += 4_000_000
        device.say(lite, at_ms)
        assert write(lite, presence.sweep_presence, now_ms=at_ms) == 0
    assert (view(lite).desired, len(outbox(lite))) == (written, sent)


def test_two_databases_on_one_broker_outbid_each_other_ever_more_rarely(store, caplog):
    bear(store, "a")
    write(store, registry.change_desired, D, now_ms=1000, job="ours")
    outbids = 0
    for step in range(1, 721):  # an hour
        write(store, presence.record_heartbeats, [beat(1, step, rev=view(store).desired.rev + 1)])
        outbids += write(store, presence.sweep_presence, now_ms=10_000 + 5000 * step)
    assert 2 < outbids < 12
    assert "does another fleet write to this broker" in caplog.text
    write(store, registry.change_desired, D, now_ms=4_000_000, job="next")
    write(store, presence.record_heartbeats, [beat(1, 999, rev=view(store).desired.rev + 1)])
    assert write(store, presence.sweep_presence, now_ms=4_006_000) == 1, "an order begins anew"


@pytest.mark.parametrize("rev", [2**52, 2**53])
def test_a_device_that_no_revision_can_follow_keeps_no_other_from_its_settings(rev, store):
    bear(store, "a", "b")
    for seq in (1, 2):
        write(store, presence.record_heartbeats, [beat(1, seq, rev=rev)])
        write(store, registry.set_config, "all", "deadline_ms", 700 + seq, actor="test", now_ms=1)
        assert write(store, refresh_config, now_ms=3000) == 2
    assert [view(store, device).desired.rev for device in (D, "default/b")] == [2, 2]
    write(store, presence.record_heartbeats, [beat(1, 3, rev=0)])  # repaired
    assert write(store, presence.sweep_presence, now_ms=9000) == 2


def test_a_real_agent_follows_a_database_that_begins_anew(lite, broker, tmp_path):
    state = tmp_path / "state"
    state.mkdir()
    (state / MEMORY_NAME).write_bytes(msgspec.json.encode(Memory(rev=7, state="active", config_rev=3)))
    with lite.write() as session:  # enrolled and given settings, before it is heard of
        registry.add_device(session, "default/anew", actor="test", now_ms=now_ms())
        registry.set_config(session, "all", "deadline_ms", 700, actor="test", now_ms=now_ms())
        refresh_config(session, now_ms=now_ms())
        assert queries.show_device(session, "default/anew", now_ms=now_ms()).desired.rev == 1
    agent = Agent(AgentOptions(broker=broker, device="anew", state=state, heartbeat_s=0.5))
    parts = [Ingest(Store(lite.url), broker, group=None), Brain(Store(lite.url), broker, owner="one"), agent]
    threads = [threading.Thread(target=part.run, daemon=True) for part in parts]
    for thread in threads:
        thread.start()
    pause = threading.Event()
    for _ in range(200):
        found = view(lite, "default/anew", now_ms=now_ms())
        if found.in_step:
            break
        pause.wait(0.1)
    for part, thread in zip(reversed(parts), reversed(threads), strict=True):
        part.stop()
        thread.join(15)
    assert found.in_step
    assert (found.desired.rev, found.desired.config) == (8, {"deadline_ms": 700})
