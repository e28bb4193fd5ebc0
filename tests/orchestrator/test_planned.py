"""A device that follows a plan table, over a real broker."""

import time

import numpy as np
import pytest

from device_profiles.link import parse_link
from device_profiles.plan_table import (
    Choice,
    PlanTable,
    PlanTableError,
    check_plan_table,
    dump_plan_table,
    load_plan_table,
)
from edge_runtime.adapt import Rules
from edge_runtime.agent import Agent, AgentOptions
from edge_runtime.offloader import OffloadOptions
from edge_runtime.pipeline import PlanChoice
from edge_runtime.planned import PlannedOffloader, PlannedOptions, bind
from edge_runtime.sources import Frame, Newest
from orchestrator.link_proxy import Link, LinkProxy
from orchestrator.tail_server import TailServer, serve_artefact

FAST = PlannedOptions(window_s=0.02, probe_every_s=0.05, rules=Rules(rest=1))


def table(network, *, deadline_ms=None, extra=()):
    """Split on a link of 2 ms, local on one of 200 ms; the local model is said to take 50 ms."""
    local = Choice(name="local", kind="local", device_ms=50.0, device_p95_ms=50.0)
    (latent,) = [spec.engine_name for spec in network.head.manifest.outputs]
    split = Choice(
        name="split", kind="split", device_ms=1.0, device_p95_ms=1.0, host_ms=1.0, host_p95_ms=1.0, up_bytes=96,
        down_bytes=100, tensors=(latent,),
    )  # fmt: skip
    return check_plan_table(
        PlanTable(
            model="m", device="d", host="h", rates_bytes_per_s=(1e6,), rtts_ms=(2.0, 200.0),
            choices=(local, split, *extra), cells=((1, 0),), link=parse_link("8mbit/2ms"), deadline_ms=deadline_ms,
        )
    )  # fmt: skip


def test_every_answer_names_its_plan_and_shows_where_the_time_went(broker, network):
    plans = table(network)
    with (
        TailServer(broker, [serve_artefact(network.tail)]),
        PlannedOffloader(broker, "dev", plans, heads=[network.head], whole=network.whole) as device,
    ):
        device.wait_connected()
        answers = [device.infer(network.x, deadline_ms=5000) for _ in range(20)]
    for answer in answers:
        np.testing.assert_array_equal(answer.outputs[0], network.y)
        assert answer.plan_id == plans.choices[1].plan_id
    ms = answers[-1].breakdown
    assert answers[-1].source == "remote"
    assert ms.head_ms > 0
    assert ms.uplink_ms + ms.downlink_ms > 0
    assert 0 <= ms.unaccounted_ms < ms.total_ms
    assert device.changes == []


def test_a_slow_link_changes_the_plan_once(broker, network):
    host, port = broker.removeprefix("mqtt://").split(":")
    plans = table(network)
    with (
        TailServer(broker, [serve_artefact(network.tail)]),
        LinkProxy((host, int(port)), Link(8e6, 0.15)) as proxy,
        PlannedOffloader(proxy.url, "dev", plans, heads=[network.head], whole=network.whole, planned=FAST) as device,
    ):
        device.wait_connected()
        ends = time.monotonic() + 60
        while device.current.kind != "local" and time.monotonic() < ends:
            device.infer(network.x, deadline_ms=5000)
        assert [change.plan.name for change in device.changes] == ["local"]
        assert "local takes 50.0 ms" in device.changes[0].why
        answer = device.infer(network.x, deadline_ms=5000)
        np.testing.assert_array_equal(answer.outputs[0], network.y)


def test_a_deadline_that_the_plan_would_miss_is_kept_by_the_local_model(broker, network):
    with PlannedOffloader(broker, "dev", table(network), heads=[network.head], whole=network.whole) as device:
        begun = time.monotonic()
        answer = device.infer(network.x, deadline_ms=3.0)  # p95 of the plan and the guard do not fit
        assert answer.source == "local"
        assert answer.plan_id == device.current.plan_id or answer.why_local == "the plan is local"
        assert time.monotonic() - begun < 2


def test_plans_without_their_artefacts_are_left_out(broker, network):
    other = Choice(name="other", kind="split", device_ms=0.1, device_p95_ms=0.1, tensors=("nowhere",))
    plans = table(network, extra=(other,))
    assert bind(other, [network.head], network.whole) is None
    with PlannedOffloader(broker, "dev", plans, heads=[], whole=network.whole) as device:
        assert device.current.kind == "local"
        assert device.infer(network.x).source == "local"
    with pytest.raises(PlanTableError, match="Deploy its head"):
        PlannedOffloader(broker, "dev", plans, heads=[], whole=None, options=OffloadOptions())


def test_the_agents_results_name_the_plan_and_all_stages(broker, network, tmp_path):
    plan = tmp_path / "plan.json"
    plan.write_bytes(dump_plan_table(table(network)))
    results = []
    options = AgentOptions(
        broker=broker,
        device="dev",
        state=tmp_path / "state",
        offload=OffloadOptions(deadline_ms=5000),
        plan=PlanChoice(load_plan_table(plan), (network.head,)),
    )
    source = Newest(iter([Frame(number, str(number), network.x) for number in range(50)]), keep_all=True)
    with TailServer(broker, [serve_artefact(network.tail)]):
        Agent(options, source=source, on_result=results.append, whole=network.whole).run()
    assert {result.source for result in results} <= {"local", "remote"}
    assert results[-1].plan_id in {choice.plan_id for choice in table(network).choices}
    stages = dict(results[-1].ms)
    assert set(stages) >= {"preprocess_ms", "uplink_ms", "downlink_ms", "postprocess_ms", "unaccounted_ms"}
    assert stages.pop("total_ms") == pytest.approx(sum(stages.values()), abs=0.02)
