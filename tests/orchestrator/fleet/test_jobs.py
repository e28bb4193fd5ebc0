import threading

import pytest

from edge_runtime.messages import MessageError
from orchestrator.fleet import jobs
from orchestrator.fleet.errors import ConflictError, UnknownError
from orchestrator.fleet.jobs import NewJob, RetryPolicy
from orchestrator.fleet.queries import list_jobs, show_job
from orchestrator.fleet.store import Store
from tests.orchestrator.fleet.conftest import bear


def put(store, *new, now_ms=0):
    with store.write() as session:
        return jobs.enqueue(session, new, now_ms=now_ms)


def take(store, owner="w", *, now_ms=0, limit=10, **more):
    with store.write() as session:
        return jobs.claim(session, owner, now_ms=now_ms, limit=limit, **more)


def end(store, lease, *, now_ms=0, **more):
    with store.write() as session:
        return jobs.finish(session, lease.id, lease.attempt, now_ms=now_ms, **more)


def seen(store, job_id):
    with store.read() as session:
        return show_job(session, job_id)


def test_a_job_id_is_taken_once(store):
    assert put(store, NewJob(id="a", kind="echo")) == 1
    assert put(store, NewJob(id="a", kind="echo"), NewJob(id="b", kind="echo")) == 1
    with pytest.raises(ConflictError, match="taken by echo"):
        put(store, NewJob(id="a", kind="other"))
    with pytest.raises(UnknownError, match="no 'default/x'"):
        put(store, NewJob(id="c", kind="echo", device="default/x"))


def test_a_job_whose_order_no_device_would_take_is_not_queued(store):
    bear(store, "a")
    wrong = (
        {"arguments": {f"k{n}": "a" * 500 for n in range(40)}},  # more than a message holds
        {"arguments": {"a b": 1}},
        {"arguments": {"n": 2**64}},
        {"kind": "bad kind"},
        {"id": "a b/c"},
    )
    for changes in wrong:
        with pytest.raises(MessageError):
            put(store, NewJob(**{"id": "j", "kind": "echo", "device": "default/a", **changes}))
    with store.read() as session:
        assert list_jobs(session) == []


def test_a_job_is_leased_to_one_and_done_once(store):
    put(store, NewJob(id="a", kind="echo", arguments={"n": 1}))
    (lease,) = take(store)
    assert take(store, "other") == []
    assert lease.arguments == {"n": 1}
    assert end(store, lease, result={"n": 2})
    assert not end(store, lease, result={"n": 3}), "it has ended"
    assert (seen(store, "a").state, seen(store, "a").result) == ("succeeded", {"n": 2})


def test_a_lost_lease_is_given_to_another_and_the_first_comes_too_late(store):
    put(store, NewJob(id="a", kind="echo", policy=RetryPolicy(attempt_s=10, backoff_s=0)))
    (first,) = take(store, "one")
    with store.write() as session:
        assert jobs.reap(session, now_ms=9_999) == 0
        assert jobs.extend(session, "a", 1, until_ms=15_000)
        assert jobs.reap(session, now_ms=14_999) == 0
        assert jobs.reap(session, now_ms=15_000) == 1
        assert not jobs.extend(session, "a", 1, until_ms=20_000)
    (second,) = take(store, "two", now_ms=15_000)
    assert (second.attempt, first.attempt) == (2, 1)
    assert not end(store, first)
    assert end(store, second, now_ms=16_000)


def test_failures_are_tried_again_after_a_growing_pause_until_the_attempts_are_used_up(store):
    put(store, NewJob(id="a", kind="echo", policy=RetryPolicy(attempts=3, backoff_s=2, factor=3)))
    for now_ms, pause_ms in ((0, 2000), (2000, 6000)):
        (lease,) = take(store, now_ms=now_ms)
        end(store, lease, now_ms=now_ms, error="no luck")
        assert take(store, now_ms=now_ms + pause_ms - 1) == []
    (lease,) = take(store, now_ms=8000)
    end(store, lease, now_ms=8000, error="no luck")
    assert (seen(store, "a").state, seen(store, "a").error) == ("failed", "no luck")
    assert RetryPolicy(backoff_s=1, factor=10, longest_s=50).pause_ms(9) == 50_000


def test_what_cannot_be_retried_fails_at_once(store):
    put(store, NewJob(id="a", kind="echo"))
    (lease,) = take(store)
    end(store, lease, error="unknown kind", retry=False)
    assert seen(store, "a").state == "failed"


def test_deadlines_end_what_waits_and_what_cannot_be_tried_in_time(store):
    put(store, NewJob(id="a", kind="echo", deadline_s=10), NewJob(id="b", kind="echo", deadline_s=10))
    (lease,) = take(store, limit=1)
    assert end(store, lease, now_ms=9_000, error="x")
    assert seen(store, "a").state == "expired", "the next attempt would begin after the deadline"
    assert take(store, now_ms=10_000) == []
    with store.write() as session:
        jobs.reap(session, now_ms=10_000)
    assert seen(store, "b").state == "expired"


def test_cancel_ends_what_waits_at_once_and_what_runs_with_its_attempt(store):
    put(store, NewJob(id="a", kind="echo"), NewJob(id="b", kind="echo"))
    (lease,) = take(store, limit=1)
    with store.write() as session:
        assert jobs.cancel(session, "a", now_ms=1)
        assert jobs.cancel(session, "b", now_ms=1)
        assert not jobs.cancel(session, "b", now_ms=1)
        with pytest.raises(UnknownError):
            jobs.cancel(session, "c", now_ms=1)
    assert (seen(store, "a").state, seen(store, "b").state) == ("leased", "cancelled")
    end(store, lease, error="interrupted")
    assert seen(store, "a").state == "cancelled"
    with store.read() as session:
        assert {job.id for job in list_jobs(session, state="cancelled")} == {"a", "b"}


def test_workers_take_their_kinds_and_the_urgent_first(store):
    put(store, NewJob(id="a", kind="x"), NewJob(id="b", kind="y"), NewJob(id="c", kind="y", priority=5))
    assert [lease.id for lease in take(store, kinds=["y"])] == ["c", "b"]


def test_a_device_that_is_not_there_gets_no_order_but_its_update_waits_in_the_desired_state(store):
    bear(store, "here", "gone")
    with store.write() as session:
        from edge_runtime.messages import Death
        from orchestrator.fleet.presence import record_death

        assert record_death(session, "default/gone", Death(boot=f"{1:016x}"), now_ms=1)
    put(
        store,
        *(NewJob(id=f"{kind}-{name}", kind=kind, device=f"default/{name}") for kind in ("echo", "update") for name in ("here", "gone")),
    )  # fmt: skip
    assert take(store) == [], "no host worker takes what is for a device"
    with store.write() as session:
        leases = jobs.claim_for_devices(session, "o", now_ms=0, limit=10)
    assert {lease.id for lease in leases} == {"echo-here", "update-here", "update-gone"}


def test_many_workers_at_once_take_every_job_exactly_once(store):
    count = 200
    put(store, *(NewJob(id=f"j{index:03}", kind="echo") for index in range(count)))
    done, guard = [], threading.Lock()

    def work(number):
        own = Store(store.url, migrate=False)
        while leases := take(own, f"w{number}", limit=7):
            for lease in leases:
                assert end(own, lease)
            with guard:
                done.extend(lease.id for lease in leases)
        own.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == [f"j{index:03}" for index in range(count)]
