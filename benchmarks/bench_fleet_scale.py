"""10,000 jobs, 3 orchestrators and 4 workers on PostgreSQL, one orchestrator killed in the middle."""

import os
import tempfile
import time
from collections import Counter
from pathlib import Path

from sqlalchemy import func, select

from benchmarks.bench_fleet_canary import _online
from benchmarks.fleet_processes import FleetProcesses, wait_until
from benchmarks.own_postgres import own_postgres
from orchestrator.fleet import jobs
from orchestrator.fleet.jobs import NewJob, RetryPolicy
from orchestrator.fleet.sim_memory import read_lines
from orchestrator.fleet.store import Store, now_ms
from orchestrator.fleet.tables import Job, Snapshot

JOBS = int(os.environ.get("HEADTAIL_BENCH_JOBS", "10000"))
DEVICES, ORCHESTRATORS, WORKERS = 40, 3, 4
POLICY = RetryPolicy(attempts=50, attempt_s=10.0, backoff_s=0.5, longest_s=5.0)


def rows() -> list[dict[str, object]]:
    """Jobs lost, jobs done twice, and the rate."""
    with own_postgres() as url, tempfile.TemporaryDirectory() as name:
        store = Store(url)
        with FleetProcesses(url, Path(name)) as fleet:
            for index in range(ORCHESTRATORS):
                fleet.start_program(f"orchestrator-{index}", "orchestrator.fleet.brain")
                fleet.start_program(f"ingest-{index}", "orchestrator.fleet.ingest")
            for index in range(WORKERS):
                fleet.start_program(f"worker-{index}", "orchestrator.fleet.worker")
            fleet.start_devices("devices", DEVICES, 0, "--heartbeat", "2", "--slow-share", "0")
            wait_until(lambda: _online(store) == DEVICES, 180, "all devices online")
            begun = time.monotonic()
            _add_jobs(store)
            wait_until(lambda: _ended(store) >= JOBS // 3, 1200, "a third of the jobs")
            for victim in ("orchestrator-0", "ingest-0"):
                fleet.kill(victim)
            wait_until(lambda: _ended(store) >= JOBS, 1800, "all jobs to end")
            seconds = time.monotonic() - begun
            fleet.check_alive()
            return _rows(store, fleet, seconds)


def _add_jobs(store: Store) -> None:
    """A fifth for devices through the broker, the rest for workers."""
    new = [
        NewJob(id=f"d{index:05}", kind="echo", device=f"default/sim-{index % DEVICES:04}", policy=POLICY)
        if index % 5 == 0
        else NewJob(id=f"h{index:05}", kind="figures", arguments={"n": index}, policy=POLICY)
        for index in range(JOBS)
    ]
    for start in range(0, JOBS, 1000):
        with store.write() as session:
            jobs.enqueue(session, new[start : start + 1000], now_ms=now_ms())


def _ended(store: Store) -> int:
    with store.read() as session:
        return int(session.scalar(select(func.count()).where(Job.state.in_(jobs.FINAL))) or 0)


def _rows(store: Store, fleet: FleetProcesses, seconds: float) -> list[dict[str, object]]:
    effects = Counter(line.job for line in read_lines(fleet.ledger("devices")) if line.job)
    with store.read() as session:
        scopes = session.scalars(select(Snapshot.scope).where(Snapshot.scope.startswith("job:")))
        effects.update(scope.removeprefix("job:") for scope in scopes)
        states = {job: state for job, state in session.execute(select(Job.id, Job.state))}
        again = int(session.scalar(select(func.count()).where(Job.attempt > 1)) or 0)
    store.close()
    lost = sum(state != "succeeded" or effects[job] == 0 for job, state in states.items())
    twice = sum(count > 1 for count in effects.values())
    what = f"{len(states)} jobs, {ORCHESTRATORS} orchestrators and {WORKERS} workers on PostgreSQL, one orchestrator killed"
    return [
        {"id": "scale_out.lost", "what": f"{what}: lost or without effect", "value": lost, "unit": "jobs", "direction": "==", "bar": 0},
        {"id": "scale_out.twice", "what": f"{what}: with two effects", "value": twice, "unit": "jobs", "direction": "==", "bar": 0},
        {"id": "scale_out.jobs", "what": "jobs in that run", "value": len(states), "unit": "jobs", "direction": ">=", "bar": 10_000},
        {"id": "scale_out.again", "what": f"{what}: begun more than once", "value": again, "unit": "jobs", "direction": "info"},
        {"id": "scale_out.rate", "what": f"{what}: a fifth of them on simulated devices", "value": round(len(states) / seconds, 1), "unit": "jobs/s", "direction": "info"},
    ]  # fmt: skip
