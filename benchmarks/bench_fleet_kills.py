"""200 random SIGKILLs of broker, orchestrator, ingest, worker and devices, under jobs and rollouts."""

import os
import random
import tempfile
import time
from collections import Counter
from pathlib import Path

from sqlalchemy import func, select

from benchmarks.bench_fleet_canary import _online
from benchmarks.fleet_processes import FleetProcesses, wait_until
from orchestrator.fleet import jobs
from orchestrator.fleet.jobs import NewJob, RetryPolicy
from orchestrator.fleet.rollouts import active_rollouts, create_rollout
from orchestrator.fleet.sim_memory import read_lines
from orchestrator.fleet.state import RolloutSpec, Stage
from orchestrator.fleet.store import Store, default_url, now_ms
from orchestrator.fleet.supervisor import register_demo
from orchestrator.fleet.tables import Job, RolloutRow, Snapshot

KILLS = int(os.environ.get("HEADTAIL_BENCH_KILLS", "200"))
SEED = 20_260
DEVICES = 10  # in each of two processes
POLICY = RetryPolicy(attempts=100, attempt_s=3.0, backoff_s=0.5, longest_s=5.0)
SPEC = {"to": "all", "stages": (Stage(count=3, soak_s=0.5), Stage(share=1.0, soak_s=0)), "probation_s": 0.3, "update_timeout_s": 10.0, "attempts": 20}  # fmt: skip


def rows() -> list[dict[str, object]]:
    """Lost jobs, jobs with two effects, and rollouts that do not end."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = Store(default_url(folder))
        register_demo(store)
        with FleetProcesses(store.url, folder) as fleet:
            for program, module in (("ingest", "ingest"), ("orchestrator", "brain"), ("worker", "worker")):
                fleet.start_program(program, f"orchestrator.fleet.{module}")
            for index in range(2):
                fleet.start_devices(f"devices-{index}", DEVICES, index * DEVICES, "--heartbeat", "1", "--slow-share", "0", "--drops-per-hour", "60", "--reboots-per-hour", "30")  # fmt: skip
            wait_until(lambda: _online(store) == 2 * DEVICES, 120, "all devices online")
            killed = _kill_at_random(fleet, store)
            wait_until(lambda: _all_ended(store), 600, "every job and rollout to end")
            return _rows(store, fleet, killed)


def _kill_at_random(fleet: FleetProcesses, store: Store) -> Counter[str]:
    chance, killed, number = random.Random(SEED), Counter[str](), 0
    while sum(killed.values()) < KILLS:
        number += 1
        _add_work(store, number)
        time.sleep(chance.uniform(0.1, 1.5))
        victim = chance.choice(fleet.names)
        fleet.kill(victim)
        killed[victim.split("-")[0]] += 1
        time.sleep(chance.uniform(0, 0.5))
        fleet.restart(victim)
        fleet.check_alive()
    return killed


def _add_work(store: Store, number: int) -> None:
    """Three jobs for devices and three for the worker; a rollout whenever none is under way."""
    devices = [f"default/sim-{(number * 3 + index) % (2 * DEVICES):04}" for index in range(3)]
    new = [NewJob(id=f"d{number}-{index}", kind="echo", device=device, policy=POLICY) for index, device in enumerate(devices)]  # fmt: skip
    new += [NewJob(id=f"h{number}-{index}", kind="figures", arguments={"n": 1}, policy=POLICY) for index in range(3)]
    with store.write() as session:
        jobs.enqueue(session, new, now_ms=now_ms())
        if not active_rollouts(session):
            spec = RolloutSpec(version=f"demo@{number % 2 + 1}", **SPEC)  # type: ignore[arg-type] # the fields' own types
            create_rollout(session, f"r{number}", spec, actor="bench", now_ms=now_ms())


def _all_ended(store: Store) -> bool:
    with store.read() as session:
        open_jobs = session.scalar(select(func.count()).where(Job.state.in_(("queued", "leased"))))
        return not open_jobs and not active_rollouts(session)


def _rows(store: Store, fleet: FleetProcesses, killed: Counter[str]) -> list[dict[str, object]]:
    effects: Counter[str] = Counter()
    for index in range(2):
        effects.update(line.job for line in read_lines(fleet.ledger(f"devices-{index}")) if line.job)
    with store.read() as session:
        scopes = session.scalars(select(Snapshot.scope).where(Snapshot.scope.startswith("job:")))
        effects.update(scope.removeprefix("job:") for scope in scopes)
        done = [tuple(row) for row in session.execute(select(Job.id, Job.state).where(Job.rollout.is_(None)))]
        phases = Counter(session.scalars(select(RolloutRow.phase)))
    lost = sum(state != "succeeded" or effects[job] == 0 for job, state in done)
    twice = sum(count > 1 for count in effects.values())
    stuck = sum(count for phase, count in phases.items() if phase != "done")
    what = f"{sum(killed.values())} random SIGKILLs ({', '.join(f'{name} {count}' for name, count in sorted(killed.items()))})"
    store.close()
    return [
        {"id": "kills.lost", "what": f"{what}: of {len(done)} jobs, lost or without effect", "value": lost, "unit": "jobs", "direction": "==", "bar": 0},
        {"id": "kills.twice", "what": f"{what}: of {len(done)} jobs, with two effects", "value": twice, "unit": "jobs", "direction": "==", "bar": 0},
        {"id": "kills.rollouts", "what": f"{what}: of {sum(phases.values())} rollouts, not brought to their end", "value": stuck, "unit": "rollouts", "direction": "==", "bar": 0},
        {"id": "kills.count", "what": "SIGKILLs in that run", "value": sum(killed.values()), "unit": "kills", "direction": ">=", "bar": 200},
    ]  # fmt: skip
