from sqlalchemy import select

from orchestrator.fleet import jobs
from orchestrator.fleet.errors import FleetError
from orchestrator.fleet.jobs import NewJob, RetryPolicy
from orchestrator.fleet.queries import show_job
from orchestrator.fleet.tables import Snapshot
from orchestrator.fleet.worker import HANDLERS, Worker


def put(store, **more):
    with store.write() as session:
        jobs.enqueue(session, [NewJob(id="a", **more)], now_ms=0)


def seen(store):
    with store.read() as session:
        return show_job(session, "a"), list(session.scalars(select(Snapshot.scope)))


def test_what_a_job_writes_comes_with_its_end(store):
    put(store, kind="figures", arguments={"n": 1}, deadline_s=1e10)
    worker = Worker(store, owner="w")
    assert worker.work_once() == 1
    assert worker.work_once() == 0
    job, scopes = seen(store)
    assert (job.state, job.result, scopes) == ("succeeded", {"kept": 1}, ["job:a"])


def test_a_job_whose_lease_was_lost_leaves_nothing_behind(store):
    put(store, kind="slow", policy=RetryPolicy(attempt_s=1, backoff_s=0), deadline_s=1e10)

    def slow(session, lease):
        result = HANDLERS["figures"](session, lease)
        jobs.reap(session, now_ms=lease.until_ms)  # meanwhile the leader takes the lease back
        return result

    Worker(store, owner="w", handlers={"slow": slow}).work_once()
    job, scopes = seen(store)
    assert (job.state, scopes) == ("leased", []), "undone with the transaction; the reaper will come again"


def test_a_job_that_fails_says_why(store):
    put(store, kind="bad", policy=RetryPolicy(attempts=1), deadline_s=1e10)

    def bad(_session, _lease):
        raise FleetError("Wanted luck, found none.")

    Worker(store, owner="w", handlers={"bad": bad}).work_once()
    job, _ = seen(store)
    assert (job.state, job.error) == ("failed", "FleetError: Wanted luck, found none.")
