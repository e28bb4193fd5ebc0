"""`headtail fleet ..` as a person types it, against simulated devices: orders of rollouts, groups, labels, jobs, logs."""

import json
import threading

import pytest

from orchestrator.broker import BrokerOptions, free_port
from orchestrator.cli import run
from orchestrator.fleet.supervisor import Supervisor

DEVICES = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A fleet's folder with simulated devices."""
    place = tmp_path_factory.mktemp("commands")
    ports = {"files": free_port(), "dashboard": free_port()}
    with Supervisor(place, options=BrokerOptions(port=0), ports=ports, demo=DEVICES):
        yield place


@pytest.fixture
def fleet(folder, capsys):
    """Runs a command of the fleet: its exit status and what it printed, JSON where it was asked for."""

    def command(*words):
        status = run(["fleet", *words, "--folder", str(folder)])
        said = capsys.readouterr()
        return (status, json.loads(said.out)) if "--json" in words and not status else (status, said.out + said.err)

    until(lambda: command("status", "--json")[1]["fleet"]["by_status"] == {"online": DEVICES})
    return command


def until(condition):
    pause = threading.Event()
    for _ in range(300):
        if condition():
            return
        pause.wait(0.1)
    raise AssertionError("did not come about in time")


def phase(fleet, rollout):
    """Phase, whether paused, and stage."""
    shown = fleet("status", rollout, "--json")[1]["rollouts"][0]["rollout"]
    return shown["phase"], shown["paused"], shown["stage"]


def test_a_rollout_is_paused_resumed_approved_and_taken_back(fleet):
    quick = ("--soak", "0", "--probation", "0", "--approve-each", "--json")
    rollout = fleet("rollout", "demo@1", "--to", "all", "--stages", "1,2,100%", *quick)[1]["rollout"]
    until(lambda: phase(fleet, rollout) == ("awaiting_approval", False, 0))
    assert fleet("pause", rollout) == (0, f"rollout {rollout}: awaiting approval, paused\n")
    assert fleet("resume", rollout) == (0, f"rollout {rollout}: awaiting approval\n")
    assert fleet("approve", rollout) == (0, f"rollout {rollout}: running\n")
    until(lambda: phase(fleet, rollout) == ("awaiting_approval", False, 1))
    status, said = fleet("status", rollout)
    assert status == 0
    assert "awaiting approval" in " ".join(said.split())
    assert fleet("rollback", rollout, "--reason", "second thoughts") == (0, f"rollout {rollout}: rolling back\n")
    until(lambda: phase(fleet, rollout)[0] == "rolled_back")
    assert fleet("devices", "--json")[1][0]["reported"]["version"] is None
    assert "second thoughts" in fleet("audit")[1]
    status, said = fleet("approve", rollout)
    assert (status, "found it rolled back" in said) == (1, True)
    assert fleet("resume", "r-0")[0] == 1


def test_a_paused_rollout_touches_nobody_else(fleet):
    quick = ("--stages", "1,100%", "--soak", "0", "--probation", "0", "--approve-each", "--json")
    rollout = fleet("rollout", "demo@2", "--to", "all", *quick)[1]["rollout"]
    until(lambda: phase(fleet, rollout)[0] == "awaiting_approval")
    assert fleet("pause", rollout)[0] == 0
    assert fleet("approve", rollout) == (0, f"rollout {rollout}: running, paused\n")
    assert fleet("job", "echo", "n=1", "--to", "all", "--job-id", "meanwhile")[0] == 0
    until(lambda: sum(job["kind"] == "echo" for job in fleet("jobs", "--state", "succeeded", "--json")[1]) == DEVICES)
    assert fleet("status", rollout, "--json")[1]["rollouts"][0]["progress"]["touched"] == 1, (
        "jobs went on, the rollout did not"
    )
    assert fleet("resume", rollout) == (0, f"rollout {rollout}: running\n")
    until(lambda: fleet("status", rollout, "--json")[1]["rollouts"][0]["progress"]["touched"] == DEVICES)
    assert fleet("rollback", rollout)[0] == 0
    until(lambda: phase(fleet, rollout)[0] == "rolled_back")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--abort-at", "7"), "abort_share"),
        (("--abort-at", "nan"), "abort_share"),
        (("--soak", "-1"), "soak_s"),
        (("--soak", "inf"), "soak_s"),
        (("--parallel", "0"), "max_parallel"),
        (("--stages", "5%,x"), "'x'"),
        (("--stages", "0,100%"), "'0'"),
        (("--stages", "150%"), "'150%'"),
    ],
)
def test_a_rollout_that_could_not_be_read_again_is_refused(fleet, words, told):
    status, said = fleet("rollout", "demo@1", "--to", "all", *words)
    assert (status, told in said) == (1, True), said
    assert fleet("status")[0] == 0, "nothing of it is in the database"


def test_wrong_versions_and_settings_are_told_with_what_there_is(fleet):
    assert "found demo@1, demo@2, demo@bad" in fleet("rollout", "demo", "--to", "all")[1]
    assert "KEY=VALUE" in fleet("config", "all", "heartbeat_s")[1]
    status, said = fleet("config", "all", "heartbeat_s=fast")
    assert (status, "pass over it" in said) == (0, True), "an agent of a later version may know it"
    assert fleet("config", "all", "heartbeat_s-")[0] == 0


def test_simulated_devices_need_a_broker_and_a_count(fleet):
    assert "found: [Errno" in fleet("simulate", "--devices", "1", "--broker", f"mqtt://127.0.0.1:{free_port()}")[1]
    assert "one device or more" in fleet("simulate", "--devices", "-5")[1]


def test_groups_labels_settings_and_jobs_are_kept_and_wrong_names_are_told(fleet, tmp_path):
    assert fleet("label", "sim-0001", "site=lab", "gpu") == (0, "1 device labelled\n")
    assert [view["id"] for view in fleet("devices", "site=lab,gpu", "--json")[1]] == ["default/sim-0001"]
    assert fleet("label", "site=lab", "gpu-") == (0, "1 device labelled\n")
    assert fleet("devices", "gpu", "--json")[0] == 1
    assert fleet("groups", "lab", "--selector", "site=lab", "--json")[1][0]["devices"] == ["default/sim-0001"]
    assert fleet("config", "group:lab", "heartbeat_s=3") == (0, "1 device with another configuration\n")
    assert fleet("config", "group:lab", "heartbeat_s-") == (0, "1 device with another configuration\n")
    assert fleet("job", "echo", "n=1", "--to", "lab", "--job-id", "once")[1] == "once: queued for 1 of 1 devices\n"
    assert fleet("job", "echo", "n=1", "--to", "lab", "--job-id", "once")[1] == "once: queued for 0 of 1 devices\n"
    for wrong in (
        ("groups", "nobody"),
        ("config", "group:nobody", "a=1"),
        ("config", "device:nobody", "a=1"),
        ("config", "nobody", "a=1"),
        ("cancel", "nothing"),
        ("logs", "nothing"),
        ("logs", "--lines", "-1"),
        ("devices", "--store", f"sqlite:///{tmp_path}/none.sqlite"),
        ("status", "r-0"),
    ):
        status, said = fleet(*wrong)
        assert (status, "Wanted" in said) == (1, True), wrong
    assert not list(tmp_path.iterdir()), "looking makes no database"
    assert fleet("jobs", "--state", "nothing")[0] == 2


def test_a_job_for_who_is_away_can_be_cancelled(fleet, folder):
    assert fleet("simulate", "--devices", "1", "--prefix", "away", "--seconds", "1.5")[0] == 0
    until(lambda: [one["status"] for one in fleet("devices", "away-0000", "--json")[1]] == ["offline"])
    assert fleet("job", "echo", "--to", "away-0000", "--job-id", "late")[0] == 0
    assert fleet("cancel", "late:default:away-0000")[0] == 0
    assert [job["state"] for job in fleet("jobs", "--device", "default/away-0000", "--json")[1]] == ["cancelled"]
    assert "ready" in fleet("logs", "ingest")[1]


def test_a_port_that_is_taken_is_named_before_anything_runs(folder, tmp_path, capsys):
    assert run(["fleet", "up", "--folder", "/proc/nowhere"]) == 1
    assert "Wanted to keep a fleet in /proc/nowhere" in capsys.readouterr().err
    taken = json.loads((folder / "fleet.json").read_text())["ports"]["dashboard"]
    ports = ["--port", "0", "--files-port", str(free_port()), "--dashboard-port", str(taken)]
    assert run(["fleet", "up", "--folder", str(tmp_path / "second"), *ports]) == 1
    assert "Give another --dashboard-port" in capsys.readouterr().err
