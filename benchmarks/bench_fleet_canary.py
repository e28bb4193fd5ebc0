"""A bad model at a 5 % canary among 1,000 simulated devices: how soon it is back everywhere, and how many it touched."""

import os
import tempfile
import time
from pathlib import Path

from sqlalchemy import func, select

from benchmarks.fleet_processes import FleetProcesses, wait_until
from orchestrator.fleet import queries
from orchestrator.fleet.rollouts import create_rollout
from orchestrator.fleet.sim_memory import read_lines
from orchestrator.fleet.state import RolloutSpec, Stage
from orchestrator.fleet.store import Store, default_url, now_ms
from orchestrator.fleet.supervisor import register_demo
from orchestrator.fleet.tables import TargetRow

DEVICES = int(os.environ.get("HEADTAIL_BENCH_DEVICES", "1000"))
CANARY = 0.05


def rows() -> list[dict[str, object]]:
    """Time from the first failure to the last device back, and devices touched."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = Store(default_url(folder))
        register_demo(store)
        with FleetProcesses(store.url, folder) as fleet:
            for program, module in (("ingest", "ingest"), ("orchestrator", "brain")):
                fleet.start_program(program, f"orchestrator.fleet.{module}")
            fleet.start_devices("devices", DEVICES, 0, "--bad", "demo@bad=1", "--slow-share", "0.1")
            wait_until(lambda: _online(store) == DEVICES, 300, f"{DEVICES} devices online")
            good = RolloutSpec(version="demo@1", to="all", stages=(Stage(share=1.0, soak_s=0),), max_parallel=DEVICES)
            _roll_out(store, "good", good)
            wait_until(lambda: _phase(store, "good") == "done", 600, "the good version everywhere")
            bad = RolloutSpec(version="demo@bad", to="all", stages=(Stage(share=CANARY), Stage(share=1.0, soak_s=0)))
            _roll_out(store, "bad", bad)
            begun = time.monotonic()
            wait_until(lambda: _phase(store, "bad") == "rolling_back", 600, "the abort")
            aborted_s = time.monotonic() - begun
            wait_until(lambda: _phase(store, "bad") == "rolled_back", 600, "the rollback")
            whole_s = time.monotonic() - begun
            touched, kept = _touched(store), _kept(fleet)
        store.close()
    common = f"bad model at a {CANARY:.0%} canary among {DEVICES} simulated devices"
    return [
        {"id": "canary.rolled_back", "what": f"{common}: from the rollout's start until every canary runs the old one", "value": round(whole_s, 1), "unit": "s", "direction": "<=", "bar": 30},
        {"id": "canary.abort", "what": f"{common}: until it is aborted", "value": round(aborted_s, 1), "unit": "s", "direction": "info"},
        {"id": "canary.touched", "what": f"{common}: devices that got the order", "value": touched, "unit": "devices", "direction": "<=", "bar": int(CANARY * DEVICES) + 1},
        {"id": "canary.kept", "what": f"{common}: devices that still run it", "value": kept, "unit": "devices", "direction": "==", "bar": 0},
    ]  # fmt: skip


def _roll_out(store: Store, rollout: str, spec: RolloutSpec) -> None:
    with store.write() as session:
        create_rollout(session, rollout, spec, actor="bench", now_ms=now_ms())


def _phase(store: Store, rollout: str) -> str:
    with store.read() as session:
        return queries.load_rollout(session, rollout).rollout.phase


def _online(store: Store) -> int:
    with store.read() as session:
        return queries.summarise(session, now_ms=now_ms()).by_status.get("online", 0)


def _touched(store: Store) -> int:
    with store.read() as session:
        query = select(func.count()).where(TargetRow.rollout == "bad", TargetRow.state != "pending")
        return int(session.scalar(query) or 0)


def _kept(fleet: FleetProcesses) -> int:
    """What the devices themselves wrote down last."""
    last = {line.device: line.models.version for line in read_lines(fleet.ledger("devices")) if line.models}
    return sum(version != "demo@1" for version in last.values())
