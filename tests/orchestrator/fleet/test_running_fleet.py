"""The programs together: simulated devices over a real broker, rollouts, and everything killed in between."""

import json
import os
import signal
import threading

import msgspec
import pytest

from edge_runtime.agent import Agent
from edge_runtime.agent_options import AgentOptions
from edge_runtime.messages import Settings
from orchestrator.broker import BrokerOptions, free_port
from orchestrator.cli import run
from orchestrator.fleet import jobs, queries
from orchestrator.fleet.brain import Brain
from orchestrator.fleet.ingest import Ingest
from orchestrator.fleet.rollouts import create_rollout, order_rollout
from orchestrator.fleet.sim_device import Behaviour
from orchestrator.fleet.sim_memory import read_lines
from orchestrator.fleet.simulator import FleetSimulator
from orchestrator.fleet.state import Ordered, RolloutSpec, Stage
from orchestrator.fleet.store import Store, now_ms
from orchestrator.fleet.supervisor import Supervisor
from tests.orchestrator.fleet.conftest import add_agent, add_versions

FAST = Behaviour(heartbeat_s=0.5, link_bytes_s=1e9, slow_share=0, verify_s=0.02, bad={"m@bad": 1.0}, connect_over_s=0.1)
STAGES = (Stage(count=2, soak_s=0.2), Stage(share=1.0, soak_s=0))


class Fleet:
    """Ingest, orchestrator and devices in threads of this process."""

    def __init__(self, store, broker, count, *, tenant, state=None):
        self.store, self.tenant, self.count = store, tenant, count
        self._parts = [
            Ingest(Store(store.url), broker, group=None),
            Brain(Store(store.url), broker, owner="one"),
            FleetSimulator(broker, count, FAST, tenant=tenant, state=state),
        ]
        self._threads = [threading.Thread(target=part.run, daemon=True) for part in self._parts]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        self.wait(lambda session: self.online(session) == self.count)
        return self

    def __exit__(self, *_):
        for part in reversed(self._parts):
            part.stop()
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()

    def online(self, session):
        views = queries.list_devices(session, now_ms=now_ms())
        return sum(view.status == "online" and view.tenant == self.tenant for view in views)

    def wait(self, condition, seconds=60):
        pause = threading.Event()
        for _ in range(int(seconds / 0.1)):
            with self.store.read() as session:
                if condition(session):
                    return
            pause.wait(0.1)
        raise AssertionError("did not come about in time")

    def roll_out(self, version, rollout_id):
        spec = RolloutSpec(
            version=version, to=f"tenant={self.tenant}", stages=STAGES, probation_s=0.05, minimum_sample=2
        )
        with self.store.write() as session:
            create_rollout(session, rollout_id, spec, actor="test", now_ms=now_ms())

    def ended(self, rollout_id, phase):
        self.wait(lambda session: queries.show_rollout(session, rollout_id, now_ms=now_ms()).rollout.phase == phase)

    def versions(self):
        with self.store.read() as session:
            views = queries.list_devices(session, now_ms=now_ms(), to=f"tenant={self.tenant}")
        return [view.reported.version for view in views]

    def agents(self):
        with self.store.read() as session:
            views = queries.list_devices(session, now_ms=now_ms(), to=f"tenant={self.tenant}")
        return {view.birth.agent_artefact for view in views}


def test_a_good_version_reaches_all_a_bad_one_its_canary_alone(store, broker):
    tenant = f"good-{store.engine.dialect.name}"
    add_versions(store, "m@1", "m@2", "m@bad")
    add_agent(store, "agent@2")
    with Fleet(store, broker, 12, tenant=tenant) as fleet:
        fleet.roll_out("m@1", "r1")
        fleet.ended("r1", "done")
        assert set(fleet.versions()) == {"m@1"}
        fleet.roll_out("m@bad", "r2")
        fleet.ended("r2", "rolled_back")
        assert set(fleet.versions()) == {"m@1"}
        with store.read() as session:
            view = queries.show_rollout(session, "r2", now_ms=now_ms())
            assert view.progress.touched == 2
            assert "golden outputs" in view.rollout.reason
        fleet.roll_out("m@2", "r3")
        fleet.ended("r3", "done")
        with store.write() as session:
            order_rollout(session, "r3", Ordered("rollback", now_ms(), "test"), actor="test")
        fleet.ended("r3", "rolled_back")
        assert set(fleet.versions()) == {"m@1"}, "everybody has what ran before"
        fleet.roll_out("agent@2", "r4")
        fleet.ended("r4", "done")
        assert fleet.agents() == {f"{ord('a'):064x}"}
        with store.read() as session:
            assert [one.devices for one in queries.list_versions(session) if one.name == "agent@2"] == [12]
        with store.write() as session:
            order_rollout(session, "r4", Ordered("rollback", now_ms(), "test"), actor="test")
        fleet.ended("r4", "rolled_back")
        assert fleet.agents() == {msgspec.UNSET}, "everybody runs the agent that was installed"
        assert set(fleet.versions()) == {"m@1"}


def test_jobs_reach_devices_and_are_done_once(lite, broker, tmp_path):
    ledger = tmp_path / "ledger.jsonl"
    with Fleet(lite, broker, 3, tenant="jobs", state=ledger) as fleet:
        arguments: Settings = {"n": 7}
        new = [
            jobs.NewJob(id=f"j{index}", kind="echo", arguments=arguments, device=f"jobs/sim-{index:04}")
            for index in range(3)
        ]
        for _ in range(2):
            with lite.write() as session:
                jobs.enqueue(session, new, now_ms=now_ms())
        fleet.wait(lambda session: len(queries.list_jobs(session, state="succeeded")) == 3)
        with lite.read() as session:
            assert queries.show_job(session, "j0").result == {"simulated": True, "n": 7}
    done = [line.job for line in read_lines(ledger) if line.job]
    assert sorted(done) == ["j0", "j1", "j2"]


def test_killing_everything_in_a_rollout_changes_nothing_but_time(tmp_path, capsys):
    folder = tmp_path / "fleet"
    ports = {"files": free_port(), "dashboard": free_port()}
    with Supervisor(folder, options=BrokerOptions(port=0), ports=ports, demo=10) as fleet:
        store = Store(fleet.store)

        def wait(condition):
            pause = threading.Event()
            for _ in range(900):
                fleet.watch()
                with store.read() as session:
                    if condition(session):
                        return
                pause.wait(0.1)
            raise AssertionError("did not come about in time")

        wait(lambda session: queries.summarise(session, now_ms=now_ms()).by_status == {"online": 10})
        command = ["fleet", "rollout", "demo@2", "--to", "all", "--stages", "2,100%", "--soak", "0.5"]
        assert run([*command, "--probation", "0.5", "--folder", str(folder), "--json"]) == 0
        rollout = json.loads(capsys.readouterr().out)["rollout"]
        for victim in ("broker", "orchestrator", "devices", "ingest"):
            pid = fleet.broker_pid if victim == "broker" else fleet.pid(victim)
            os.kill(pid, signal.SIGKILL)
            fleet.watch()
        wait(lambda session: queries.show_rollout(session, rollout, now_ms=now_ms()).rollout.phase == "done")
        assert run(["fleet", "status", rollout, "--folder", str(folder)]) == 0
        assert "10/10" in capsys.readouterr().out
        assert run(["fleet", "audit", "--verify", "--folder", str(folder)]) == 0
        assert "the chain holds" in capsys.readouterr().out
        assert run(["fleet", "audit", "--verify", "--json", "--folder", str(folder)]) == 0
        assert json.loads(capsys.readouterr().out)["holds"] is True
        assert run(["fleet", "rollout", "nothing@1", "--to", "all", "--folder", str(folder)]) == 1
        assert "Register it: headtail deploy" in capsys.readouterr().err
        store.close()


def test_deploy_to_a_group_reaches_a_real_agent_through_the_registry(network, tmp_path, capsys):
    folder = tmp_path / "fleet"
    ports = {"files": free_port(), "dashboard": free_port()}
    with Supervisor(folder, options=BrokerOptions(port=0), ports=ports) as fleet:
        agent = Agent(AgentOptions(broker=fleet.broker, device="pi-1", state=tmp_path / "state", heartbeat_s=0.5))
        thread = threading.Thread(target=agent.run, daemon=True)
        thread.start()
        store, pause = Store(fleet.store), threading.Event()
        for _ in range(600):
            fleet.watch()
            with store.read() as session:
                if queries.summarise(session, now_ms=now_ms()).by_status == {"online": 1}:
                    break
            pause.wait(0.1)
        command = ["fleet", "groups", "edge", "pi-1", "--folder", str(folder), "--json"]
        assert run(command) == 0
        whole = str(network.whole.folder)
        assert run(["deploy", whole, "--to", "edge", "--folder", str(folder), "--probation", "0.5"]) == 0
        with store.read() as session:
            view = queries.show_device(session, "default/pi-1", now_ms=now_ms())
        assert view.reported.slots.whole == network.whole.id
        assert view.reported.version == f"tiny@{network.whole.id[:12]}"
        assert run(["fleet", "config", "group:edge", "deadline_ms=700", "hue=9", "--folder", str(folder)]) == 0
        for _ in range(200):
            with store.read() as session:
                view = queries.show_device(session, "default/pi-1", now_ms=now_ms())
            if view.reported.config_rev == view.desired.config_rev == 1:
                break
            pause.wait(0.1)
        assert view.desired.config == {"deadline_ms": 700, "hue": 9}
        assert view.reported.config_rev == 1
        assert "hue" in view.reported.config_problem
        assert view.reported.version == f"tiny@{network.whole.id[:12]}", "the model stays"
        agent.stop()
        thread.join(15)
        store.close()
    assert "rollout" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", ["x", "5%,,100%", "0%", "101%"])
def test_stages_that_cannot_be_read_are_named(wrong, tmp_path, capsys):
    assert run(["fleet", "rollout", "m@1", "--to", "all", "--stages", wrong, "--folder", str(tmp_path)]) == 1
    assert "such as 5%,25%,100%" in capsys.readouterr().err


def test_commands_without_a_fleet_say_how_to_start_one(tmp_path, capsys):
    assert run(["fleet", "devices", "--folder", str(tmp_path)]) == 1
    assert "headtail fleet up" in capsys.readouterr().err
