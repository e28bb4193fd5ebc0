"""`headtail fleet doctor` and `top` against a real broker, one of them with Nagle's algorithm on."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.messages import Birth, Reported, Slots
from orchestrator.broker import BrokerOptions, MosquittoBroker
from orchestrator.cli import run
from orchestrator.commands.fleet_doctor import look_at_broker
from orchestrator.fleet.doctor import BrokerFacts, diagnose_broker, diagnose_devices
from orchestrator.fleet.presence import record_birth, record_reported
from orchestrator.fleet.queries import list_devices
from orchestrator.fleet.store import Store, now_ms


def birth(**more):
    values = {"boot": "0" * 16, "boot_count": 1, "board": "rpi-5", "agent": "0.0.1", "engines": (), "slots": Slots()}
    return Birth(max_block_bytes=65536, **{**values, **more})


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path / 'fleet.sqlite'}"


def levels(findings):
    return {finding.what: finding.level for finding in findings}


def test_the_mark_of_nagle_is_found_on_a_real_broker():
    with MosquittoBroker(BrokerOptions(port=0, nodelay=False)) as broker:
        echo = diagnose_broker(look_at_broker(broker.url))[0]
        assert (echo.level, "Nagle" in echo.found) == ("bad", True), echo


def test_an_open_broker_is_named_and_what_a_device_could_do_there(broker):
    facts = look_at_broker(broker, as_device=broker)
    assert facts.anonymous
    assert facts.crosses == ("publish as another device", "read what is sent to another device")
    assert levels(diagnose_broker(facts))["access rules"] == "bad"
    assert levels(diagnose_broker(facts))["access"] == "warn", "on loopback"
    assert diagnose_broker(look_at_broker("mqtt://127.0.0.1:1"))[0].level == "bad"


@given(st.floats(0, 200))
def test_only_echoes_near_40_and_80_ms_carry_the_mark(echo_ms):
    finding = diagnose_broker(BrokerFacts(echo_ms=echo_ms))[0]
    near = abs(echo_ms - 40) <= 8 or abs(echo_ms - 80) <= 16
    assert ("Nagle" in finding.found) == near


def test_versions_clocks_and_problems_of_devices_are_found(url):
    store, at = Store(url), now_ms()
    with store.write() as session:
        record_birth(session, "default/old", birth(), now_ms=at)
        record_birth(session, "default/sim", birth(agent="simulated"), now_ms=at)
        record_birth(session, "default/late", birth(agent="1", problem="no engine"), now_ms=at + 60_000)
        full = Reported(boot=birth().boot, seq=1, rev=0, state="active", error="No space left")
        record_reported(session, "default/old", full, now_ms=at)
    with store.read() as session:
        views = list_devices(session, now_ms=at)
    store.close()
    found = diagnose_devices(views, now_ms=at, host_version="1")
    assert levels(found) == {"devices": "ok", "versions": "warn", "clocks": "bad", "model": "bad", "device": "bad"}
    advice = next(one.next for one in found if one.what == "versions")
    assert "default/old" in advice
    assert "default/sim" not in advice, "simulated devices have no version of ours"


def test_both_commands_speak_json(url, broker, capsys):
    store = Store(url)
    with store.write() as session:
        record_birth(session, "default/cam", birth(), now_ms=now_ms())
    store.close()
    assert run(["fleet", "doctor", "--broker", broker, "--store", url, "--json"]) in (0, 1)
    assert {one["what"] for one in json.loads(capsys.readouterr().out)} >= {"echo", "devices", "versions"}
    assert run(["fleet", "top", "--broker", broker, "--store", url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["devices"][0]["device"] == "default/cam"
    assert run(["fleet", "top", "--broker", broker, "--store", url, "--once"]) == 0
    assert "default/cam" in capsys.readouterr().out
