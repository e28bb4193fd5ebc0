import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select, text
from sqlalchemy.exc import DataError

from edge_runtime.messages import Death, Desired, Heartbeat, JobStatus, MessageError, Models, Reported, Slots
from orchestrator.fleet import jobs, presence, registry
from orchestrator.fleet.audit import append_audit, read_audit, verify_audit
from orchestrator.fleet.brain import refresh_config
from orchestrator.fleet.errors import AuditError, ConflictError, SelectorError, StoreError, UnknownError
from orchestrator.fleet.ingest import Ingest
from orchestrator.fleet.jobs import NewJob
from orchestrator.fleet.queries import list_devices, list_groups, list_versions, resolve, show_device, summarise
from orchestrator.fleet.selectors import parse_selector
from orchestrator.fleet.store import Store, hide_secret
from orchestrator.fleet.tables import Enrolment, OutboxRow
from tests.orchestrator.fleet.conftest import add_agent, add_versions, bear, birth, boot

D = "default/a"


def beat(number, seq, *, device=D, rev=0, at_ms=2000):
    heartbeat = Heartbeat(
        boot=boot(number),
        seq=seq,
        uptime_s=1,
        frames=seq,
        dropped=0,
        remote=0,
        local=0,
        failed=0,
        late=0,
        rss_bytes=None,
        slots=Slots(),
        desired_rev=rev,
    )
    return presence.Beat(device, heartbeat, msgspec.json.encode(heartbeat).decode(), at_ms)


def write(store, function, *arguments, **more):
    with store.write() as session:
        return function(session, *arguments, **more)


def view(store, device=D, now_ms=3000):
    with store.read() as session:
        return show_device(session, device, now_ms=now_ms)


def outbox(store):
    with store.read() as session:
        return [
            (row.topic, row.payload, row.retain) for row in session.scalars(select(OutboxRow).order_by(OutboxRow.id))
        ]


def test_a_device_is_known_from_its_birth_and_offline_after_the_death_of_that_boot(store):
    bear(store, "a", labels={"site": "lab"})
    assert (view(store).status, view(store).board, view(store).labels["site"]) == ("online", "rpi-5", "lab")
    assert not write(store, presence.record_death, D, Death(boot=boot(9)), now_ms=2000), "the will of another boot"
    assert view(store).status == "online"
    assert write(store, presence.record_death, D, Death(boot=boot(1)), now_ms=2000)
    assert (view(store).status, view(store).since_ms) == ("offline", 2000)


def test_an_older_birth_that_comes_late_changes_nothing(store):
    bear(store, "a")
    assert write(store, presence.record_birth, D, birth(2, boot_count=2), now_ms=2000)
    assert not write(store, presence.record_birth, D, birth(1, boot_count=1), now_ms=2500)
    assert view(store).birth.boot == boot(2)
    write(store, presence.record_death, D, Death(boot=boot(2)), now_ms=2600)
    assert write(store, presence.record_birth, D, birth(3, boot_count=1), now_ms=2700), "its counter was wiped"


def test_heartbeats_may_come_twice_and_in_any_order(store):
    bear(store, "a")
    for seq in (2, 5, 3, 5):
        write(store, presence.record_heartbeats, [beat(1, seq)])
    write(store, presence.record_heartbeats, [beat(1, 7), beat(1, 6), beat(8, 99)])
    assert view(store).heartbeat.seq in (5, 7)
    write(store, presence.record_heartbeats, [beat(1, 8)])
    assert view(store).heartbeat.seq == 8
    write(store, presence.record_heartbeats, [beat(4, 50)])
    assert view(store).heartbeat.seq == 8, "of a boot that is not current"


def test_silence_makes_stale_then_offline(store):
    bear(store, "a")
    assert view(store, now_ms=30_000).status == "stale"
    write(store, presence.sweep_presence, now_ms=70_000)
    assert view(store, now_ms=70_000).status == "offline"


def test_the_desired_state_grows_by_revisions_and_is_sent_until_it_was_seen(store):
    bear(store, "a")
    write(store, registry.change_desired, D, now_ms=1000, models=Models(version="m@1"))
    desired = write(store, registry.change_desired, D, now_ms=1000, config={"fps": 5})
    assert (desired.rev, desired.models.version, desired.config) == (2, "m@1", {"fps": 5})
    sent = outbox(store)
    assert [(topic, retain) for topic, _, retain in sent] == [("ht/v1/default/a/down/desired", True)] * 2
    assert msgspec.json.decode(sent[-1][1], type=Desired) == desired
    assert write(store, presence.sweep_presence, now_ms=4000) == 0
    assert write(store, presence.sweep_presence, now_ms=7000) == 1
    write(store, presence.record_heartbeats, [beat(1, 1, rev=2, at_ms=9000)])
    assert write(store, presence.sweep_presence, now_ms=20_000) == 0
    assert write(store, presence.record_birth, D, birth(2, boot_count=2, desired_rev=1), now_ms=30_000)
    assert len(outbox(store)) == 4, "back without the newest revision: the broker forgot it"


def test_a_report_ends_the_job_that_it_carries_out_once_and_only_for_the_newest_revision(store):
    bear(store, "a")
    write(store, jobs.enqueue, [NewJob(id="u", kind="update", device=D)], now_ms=0)
    (lease,) = write(store, jobs.claim_for_devices, "o", now_ms=0, limit=5)
    write(store, registry.change_desired, D, now_ms=0, job=lease.id)
    write(store, registry.change_desired, D, now_ms=0, job=lease.id)
    old = Reported(boot=boot(1), seq=1, rev=1, job="u", state="failed", error="bad")
    assert write(store, presence.record_reported, D, old, now_ms=1)
    assert summary(store).jobs == {"leased": 1}
    new = Reported(boot=boot(1), seq=2, rev=2, job="u", state="active", version="m@1")
    assert write(store, presence.record_reported, D, new, now_ms=2)
    assert not write(store, presence.record_reported, D, new, now_ms=3)
    assert summary(store).jobs == {"succeeded": 1}
    assert view(store).in_step
    foreign = msgspec.structs.replace(new, boot=boot(5), seq=9)
    assert not write(store, presence.record_reported, D, foreign, now_ms=4)


def summary(store):
    with store.read() as session:
        return summarise(session, now_ms=5000)


def test_a_job_status_counts_for_the_device_of_the_topic_alone(store):
    bear(store, "a", "b")
    write(store, jobs.enqueue, [NewJob(id="j", kind="echo", device=D)], now_ms=0)
    write(store, jobs.claim_for_devices, "o", now_ms=0, limit=5)
    status = JobStatus(boot=boot(1), job="j", attempt=1, state="succeeded", result={"x": 1})
    assert not write(store, presence.record_job_status, "default/b", status, now_ms=1)
    assert write(store, presence.record_job_status, D, status, now_ms=1)
    assert not write(store, presence.record_job_status, D, status, now_ms=1)


def test_a_blocked_device_is_not_listened_to(store):
    bear(store, "a")
    write(store, registry.block_device, D, blocked=True, actor="me", now_ms=1)
    assert not write(store, presence.record_birth, D, birth(2, boot_count=2), now_ms=2)
    assert view(store).blocked


def test_groups_are_members_and_whatever_the_selector_finds(store):
    bear(store, "a", "b", "c")
    write(store, registry.set_labels, "default/b", {"site": "lab", "gpu": ""}, actor="me", now_ms=1)
    write(store, registry.define_group, "g", devices=[D], selector="site=lab", actor="me", now_ms=1)
    with store.read() as session:
        assert resolve(session, "g", now_ms=1) == [D, "default/b"]
        assert resolve(session, "a", now_ms=1) == [D]
        assert resolve(session, "!gpu,board=rpi-5", now_ms=1) == [D, "default/c"]
        assert len(resolve(session, "all", now_ms=1)) == 3
        assert [group.devices for group in list_groups(session, now_ms=1)] == [(D, "default/b")]
        assert [one.name for one in list_devices(session, now_ms=1, to="g")] == ["a", "b"]
        with pytest.raises(UnknownError, match="'nobody'"):
            resolve(session, "nobody", now_ms=1)
    with pytest.raises(SelectorError):
        write(store, registry.define_group, "h", selector="a=b=c", actor="me", now_ms=1)


def test_a_group_has_a_name_of_its_own(store):
    bear(store, "a", "b")
    for name in ("all", "b"):
        with pytest.raises(ConflictError, match=f"'{name}'"):
            write(store, registry.define_group, name, devices=[D], actor="me", now_ms=1)


def test_a_desired_state_that_no_device_would_take_is_refused_and_leaves_no_trace(store):
    bear(store, "a")
    before = view(store).desired
    for wrong in ({"probation_s": 100_000.0}, {"config": {"note": "a" * 501}}, {"config": {"n": 2**60}}):
        with pytest.raises(MessageError):
            write(store, registry.change_desired, D, now_ms=1, **wrong)
        assert view(store).desired == before
    assert write(store, registry.change_desired, D, now_ms=1, config={"note": "a" * 500}).rev


def test_settings_that_are_too_many_together_hold_up_no_other_device(store):
    bear(store, "a", "b")
    for number in range(40):
        for scope in ("all", f"device:{D}"):
            write(store, registry.set_config, scope, f"{scope[:3]}{number}", number, actor="me", now_ms=1)
    with pytest.raises(MessageError):  # 64 are the most
        write(store, refresh_config, now_ms=1)
    assert write(store, refresh_config, now_ms=1, passes_over=True) == 1
    assert view(store).desired is None
    assert len(view(store, "default/b").desired.config) == 40


def test_settings_of_the_narrowest_scope_win(store):
    bear(store, "a")
    with pytest.raises(UnknownError, match="the group 'g'"):
        write(store, registry.set_config, "group:g", "fps", 2, actor="me", now_ms=1)
    write(store, registry.define_group, "g", devices=[D], actor="me", now_ms=1)
    for scope, value in (("all", 1), ("group:g", 2), (f"device:{D}", 3)):
        write(store, registry.set_config, scope, "fps", value, actor="me", now_ms=1)
        write(store, registry.set_config, scope, scope[:3], True, actor="me", now_ms=1)
    with store.read() as session:
        assert registry.config_for(session, D, ["g"]) == {"fps": 3, "all": True, "gro": True, "dev": True}
        assert registry.config_for(session, "default/z", [])["fps"] == 1
    write(store, registry.set_config, f"device:{D}", "fps", None, actor="me", now_ms=1)
    with store.read() as session:
        assert registry.config_for(session, D, ["g"])["fps"] == 2


def test_a_version_is_fixed_once_registered(store):
    add_versions(store, "m@1", "m@2")
    with store.read() as session:
        assert {version.name for version in list_versions(session)} == {"m@1", "m@2"}
    with pytest.raises(ConflictError, match="other artefacts"):
        write(store, registry.register_version, "m@1", whole=f"{2:064x}", actor="me", now_ms=2)
    with pytest.raises(UnknownError, match="not registered"):
        write(store, registry.register_version, "m@3", whole="f" * 64, actor="me", now_ms=2)
    with pytest.raises(ConflictError, match="neither"):
        write(store, registry.register_version, "m@3", tail=f"{2:064x}", actor="me", now_ms=2)


def test_an_agent_is_a_version_of_its_own(store):
    add_versions(store, "m@1")
    add_agent(store, "agent@2")
    with store.read() as session:
        found = {one.name: one for one in list_versions(session)}
    agent, model = found["agent@2"].agent, found["m@1"].whole
    with pytest.raises(ConflictError, match="alone"):
        write(store, registry.register_version, "both@1", agent=agent, whole=model, actor="test", now_ms=2)
    with pytest.raises(ConflictError, match="other artefacts"):
        write(store, registry.register_version, "agent@2", whole=model, actor="test", now_ms=2)


def test_a_token_is_good_once_for_its_device_until_it_expires(store):
    def token(digest, device=None, expires_ms=1000):
        enrolment = Enrolment(token_sha256=digest, device=device, tenant="default", labels={"site": "x"}, created_ms=0, expires_ms=expires_ms)  # fmt: skip
        write(store, registry.add_enrolment, enrolment, actor="me")

    token("1"), token("2", device="default/b"), token("3", expires_ms=5)
    write(store, registry.use_enrolment, "1", D, now_ms=10)
    assert view(store).status == "never"
    assert view(store).labels["site"] == "x"
    for digest, device in (("1", D), ("2", D), ("3", D), ("2", "other/b"), ("9", D)):
        with pytest.raises(UnknownError, match="Ask for a new one"):
            write(store, registry.use_enrolment, digest, device, now_ms=10)
    write(store, registry.use_enrolment, "2", "default/b", now_ms=10)


def test_the_audit_log_shows_any_change_made_to_it_later(store):
    for number in range(5):
        write(store, append_audit, "me", "try", f"thing-{number}", {"n": number}, now_ms=number)
    with store.read() as session:
        assert verify_audit(session) == 5
        newest = read_audit(session, limit=1)[0]
        assert verify_audit(session, until=newest.hash) == 5
        assert [line.subject for line in read_audit(session, subject="thing-2")] == ["thing-2"]
    with store.write() as session:
        session.execute(text("DELETE FROM audit WHERE seq = 5"))
    with store.read() as session:
        assert verify_audit(session) == 4
        with pytest.raises(AuditError, match="cut off"):
            verify_audit(session, until=newest.hash)
    with store.write() as session:
        session.execute(text("UPDATE audit SET actor = 'you' WHERE seq = 2"))
    with store.read() as session, pytest.raises(AuditError, match="line 2"):
        verify_audit(session)


def test_what_was_not_committed_leaves_no_trace(store):
    class Broken(Exception):
        pass

    def break_off(session):
        registry.add_device(session, D, actor="me", now_ms=1)
        raise Broken

    with pytest.raises(Broken):
        write(store, break_off)
    with store.read() as session:
        assert list_devices(session, now_ms=1) == []
        assert read_audit(session) == []


@given(st.dictionaries(st.sampled_from("abc"), st.sampled_from(["", "1", "2"])))
def test_selectors_follow_their_terms(labels):
    assert parse_selector("a")(labels) == ("a" in labels)
    assert parse_selector("!a")(labels) != parse_selector("a")(labels)
    assert parse_selector("a=1")(labels) != parse_selector("a!=1")(labels)
    assert parse_selector("a=1, b")(labels) == (labels.get("a") == "1" and "b" in labels)


@pytest.mark.parametrize("wrong", ["", "a,,b", "!a=1", "a=b=c", "a b", "=1"])
def test_selectors_that_cannot_be_read_are_named(wrong):
    with pytest.raises(SelectorError, match="between commas"):
        parse_selector(wrong)


def test_databases_that_cannot_be_opened_are_named_without_their_password(tmp_path):
    with pytest.raises(StoreError, match="sqlite:///FILE"):
        Store("mysql://x")
    (tmp_path / "file").write_text("no database, but long enough to be taken for one" * 50)
    with pytest.raises(StoreError, match="not a database"):
        Store(f"sqlite:///{tmp_path / 'file'}")
    assert hide_secret("postgresql://me:secret@host/x") == "postgresql://me:...@host/x"
    with pytest.raises(StoreError) as found:
        Store("postgresql://me:secret@127.0.0.1:1/x")
    assert "secret" not in str(found.value)


def test_a_database_of_a_newer_version_is_refused(lite):
    with lite.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StoreError, match="newer headtail"):
        Store(lite.url)


def test_the_migrations_make_the_tables_that_the_code_declares(store):
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    from orchestrator.fleet.tables import Base

    with store.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []


def test_a_message_that_the_database_refuses_does_not_hold_up_the_others(lite, monkeypatch):
    ingest = Ingest(Store(lite.url), "mqtt://localhost:1", group=None)
    write_in, written = ingest._write_in, []

    def refuse_the_second(session, batch):
        if any(topic == "b" for topic, *_ in batch):
            raise DataError("insert", {}, ValueError("out of range"))
        written.extend(topic for topic, *_ in batch)
        write_in(session, [])

    monkeypatch.setattr(ingest, "_write_in", refuse_the_second)
    ingest._write([(topic, b"", 1) for topic in "abc"])
    assert written == ["a", "c"]
    assert (ingest.written, ingest.refused) == (2, 1)
