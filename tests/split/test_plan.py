import math
from dataclasses import replace
from itertools import pairwise

import pytest

from device_profiles.link import parse_link
from device_profiles.measurement import EngineSettings, KernelTime, Percentiles, Profile, ProfileError
from device_profiles.plan_table import PlanTableError, dump_plan_table, parse_plan_table
from edge_runtime.manifest import Quantisation
from split.cut_graph import CutGraph, CutGraphError, CutNode, CutTensor
from split.plan import Goal, PlanError, Power, make_plan, pareto_front, price, prune
from split.plan_env import PlanEnv, genetic_search, random_search
from split.plan_heads import cut_candidates
from split.plan_problem import (
    RAW_FP32,
    RAW_INT8,
    Cost,
    CyclicGraphError,
    DisconnectedGraphError,
    Encoder,
    MissingKernelError,
    check_connected,
    costs_from_profile,
    let_floats_cross,
    make_problem,
    order_nodes,
)
from split.plan_sweep import break_even, make_table
from split.plan_variants import Bottleneck, Picture, bottleneck_candidate, local_candidate, picture_candidate

STEP = Quantisation(scale=0.5, zero_point=0)
SIZES = (3000, 6000, 800, 100, 10)
WIFI = parse_link("20mbit/5ms", per_message_ms=0.2)


def _chain(dtype="uint8"):
    names = [f"t{index}" for index in range(5)]
    nodes = tuple(
        CutNode(f"n{i}", "conv", ("x" if i == 0 else names[i - 1],), (names[i],), 1000, (f"w{i}",)) for i in range(5)
    )
    tensors = {"x": CutTensor("x", (1, 12000), "float32")}
    tensors |= {
        n: CutTensor(n, (1, s), dtype, STEP if dtype == "uint8" else None) for n, s in zip(names, SIZES, strict=True)
    }
    return CutGraph(nodes, tensors, {f"w{i}": 1000 * (i + 1) for i in range(5)}, ("x",), ("t4",))


def _all(device_ms=10.0, host_ms=1.0, **changes):
    graph = _chain()
    problem = make_problem(graph, [Cost(device_ms, 1.2 * device_ms)] * 5, [Cost(host_ms, 1.2 * host_ms)] * 5, **changes)
    whole = Cost(5 * host_ms, 6 * host_ms)
    pictures = [
        picture_candidate(Picture("jpeg", q, size, Cost(3, 4), Cost(1, 1), accuracy), whole, 10)
        for q, size, accuracy in ((50, 4000, 0.80), (90, 9000, 0.89))
    ]
    bottleneck = bottleneck_candidate(
        Bottleneck("bottleneck 12 ch", Cost(1.2 * device_ms, 1.5 * device_ms), Cost(4 * host_ms, 5 * host_ms), 300, 0.87,
                   2000, 9000), 10
    )  # fmt: skip
    local = local_candidate(Cost(5 * device_ms, 6 * device_ms), accuracy=0.9, weight_bytes=15_000, peak_bytes=60_000)
    return [local, *cut_candidates(problem, accuracy=0.9).candidates, *pictures, bottleneck]


def test_a_fast_host_and_link_get_the_picture_and_a_dead_link_gets_the_device():
    everything = _all()
    fast = make_plan(everything, parse_link("1000mbit/0.1ms"), Goal())
    assert fast.chosen.candidate.method == "picture"
    assert not fast.splits
    dead = make_plan(everything, parse_link("1kbit/500ms"), Goal())
    assert dead.chosen.candidate.method == "whole"
    assert dead.reason.startswith("Do not split: the whole model on the device takes 50.0 ms")
    assert dead.reason.count(". ") == 0


def test_constraints_change_the_plan_and_are_counted():
    everything = _all()
    plan = make_plan(everything, WIFI, Goal(min_accuracy=0.9, ram_bytes=55_000))
    assert plan.splits
    assert plan.chosen.candidate.method == "raw"
    assert plan.left_out["are below the accuracy floor"] == 3
    assert plan.left_out["do not fit the memory"] >= 1
    assert plan.reason.startswith("Split: ")
    with pytest.raises(PlanError, match="miss the deadline"):
        make_plan(everything, WIFI, Goal(deadline_ms=1.0))
    unsure = [local_candidate(Cost(5, 6), accuracy=None, weight_bytes=None, peak_bytes=None)]
    for goal in (Goal(min_accuracy=0.1), Goal(ram_bytes=10**9), Goal(flash_bytes=10**9)):
        with pytest.raises(PlanError, match=r"unknown|no known"):
            make_plan(unsure, WIFI, goal)


def _stream():
    """Three layers of one stream; the whole network on the device is better and late."""
    layers = [(200, 0.80), (900, 0.85), (4000, 0.88)]
    variants = [
        Bottleneck(f"{count} layers", Cost(20, 22), Cost(4, 5), size, accuracy, None, None, layers=count)
        for count, (size, accuracy) in enumerate(layers, 1)
    ]
    local = local_candidate(Cost(200, 210), accuracy=0.9, weight_bytes=15_000, peak_bytes=60_000)
    return [local, *(bottleneck_candidate(one, 10) for one in variants)]


def test_the_most_accuracy_within_a_deadline_sends_more_layers_where_the_link_carries_them():
    stream, goal = _stream(), Goal("accuracy", deadline_ms=60)
    sent = {
        rate: make_plan(stream, parse_link(f"{rate}mbit/5ms"), goal).chosen.candidate.choice.layers
        for rate in (0.2, 0.5, 20)
    }
    assert sent == {0.2: 1, 0.5: 2, 20: 3}
    fast = make_plan(stream, parse_link("20mbit/5ms"), goal)
    assert "is right in 88.0 %" in fast.reason
    assert {one.candidate.accuracy for one in fast.front} == {0.80, 0.85, 0.88}  # slower, and better
    assert make_plan(stream, WIFI, Goal("accuracy")).chosen.candidate.method == "whole"
    with pytest.raises(PlanError, match="plan of known accuracy"):
        make_plan([replace(stream[-1], accuracy=None)], WIFI, goal)


def test_of_equal_accuracy_the_faster_plan_counts_and_the_whole_model_stays_where_a_split_hardly_pays():
    rivals = [
        local_candidate(Cost(40, 44), accuracy=0.9, weight_bytes=1, peak_bytes=1),
        *(
            bottleneck_candidate(Bottleneck(f"{ms} ms", Cost(ms, ms), Cost(1, 1), 10, 0.9, None, None, layers=1), 10)
            for ms in (37, 33)
        ),
    ]
    link = parse_link("1000mbit/1ms")
    assert make_plan(rivals, link, Goal("accuracy")).chosen.candidate.choice.name == "33 ms"
    assert (
        make_plan(rivals[:1] + rivals[1:2], parse_link("1000mbit/2.4ms"), Goal("accuracy")).chosen.candidate.method
        == "whole"
    )


def test_a_table_says_what_it_is_best_for_and_one_for_latency_is_as_it_was():
    for objective, named in (("accuracy", True), ("latency", False)):
        table = make_table(_stream(), WIFI, Goal(objective, deadline_ms=60), names=("m", "d", "h"))
        written = dump_plan_table(table)
        assert (b'"objective"' in written) == named
        assert parse_plan_table(written) == table
    with pytest.raises(PlanTableError, match="objective"):
        parse_plan_table(written.replace(b'"model"', b'"objective": "luck", "model"'))


def test_operators_that_the_device_lacks_are_never_in_a_head():
    cut = [one for one in _all(supported_ops=frozenset({"relu"})) if one.method == "raw"]
    assert cut
    assert all(one.unsupported == ("conv",) for one in cut)
    with pytest.raises(PlanError, match="does not support"):
        make_plan(cut, WIFI, Goal())


def test_energy_needs_powers_and_adds_compute_sending_and_waiting():
    everything = _all()
    with pytest.raises(PlanError, match="power"):
        make_plan(everything, WIFI, Goal(objective="energy"))
    power = Power(idle_w=2, active_w=6, tx_w=3)
    one = next(candidate for candidate in everything if candidate.method == "picture")
    sending = WIFI.occupied_ms(one.choice.up_bytes)
    wait = one.choice.latency_ms(WIFI) - 3 - sending
    assert price(one, WIFI, power).energy_mj == pytest.approx(6 * 3 + 3 * sending + 2 * wait)
    assert price(one, WIFI).energy_mj is None
    assert make_plan(everything, WIFI, Goal(objective="energy"), power).chosen.energy_mj == min(
        price(each, WIFI, power).energy_mj for each in everything
    )
    with pytest.raises(PlanError):
        Power(idle_w=math.nan, active_w=1)


def test_front_and_pruning_lose_no_optimum():
    everything = _all(encoders=(RAW_INT8, RAW_FP32, Encoder("rans", 0.3, 1e-3, 1e-3)))
    few = prune(everything, Goal())
    assert len(few) < len(everything)
    for rate in ("0.05mbit", "1mbit", "20mbit", "500mbit"):
        link = parse_link(f"{rate}/5ms")
        priced = [price(one, link) for one in everything]
        front = pareto_front(priced)
        assert min(one.p50_ms for one in front) == min(one.p50_ms for one in priced)
        assert min(one.uplink_bytes for one in front) == min(one.uplink_bytes for one in priced)
        assert min(price(one, link).p50_ms for one in few) == pytest.approx(min(one.p50_ms for one in priced))
        for one in priced:
            assert any(
                f.p50_ms <= one.p50_ms and f.p95_ms <= one.p95_ms and f.uplink_bytes <= one.uplink_bytes for f in front
            )


def test_one_more_candidate_never_worsens_the_plan():
    everything = _all()
    best = math.inf
    for count in range(1, len(everything) + 1):
        now = make_plan(everything[:count], WIFI, Goal()).chosen.p50_ms
        assert now <= best * 1.03  # the whole model on the device is preferred when it is within 2 %
        best = min(best, now)


def test_break_even_covers_the_rates_and_agrees_with_the_plan():
    everything = _all()
    stretches = break_even(everything, WIFI, Goal())
    assert stretches[0].best.method == "whole"
    assert stretches[-1].best.choice.kind != "local"
    for before, after in pairwise(stretches):
        assert before.to_rate == after.from_rate
        assert before.best is not after.best
    for stretch in stretches:
        middle = math.sqrt(stretch.from_rate * stretch.to_rate)
        assert make_plan(everything, WIFI.at_rate(middle), Goal()).chosen.candidate.choice == stretch.best.choice
    none = break_even(everything, WIFI, Goal(deadline_ms=1.0))
    assert [stretch.best for stretch in none] == [None]


def test_the_table_holds_the_plan_of_each_point():
    everything, goal = _all(), Goal(min_accuracy=0.85)
    table = make_table(everything, WIFI, goal, names=("m", "rpi-4b", "this"))
    assert table.choices[table.local].kind == "local"
    for row, rate in enumerate(table.rates_bytes_per_s):
        for column, rtt in enumerate(table.rtts_ms):
            chosen = make_plan(everything, WIFI.at_rate(rate, rtt), goal).chosen.candidate.choice
            assert table.choices[table.cells[row][column]].plan_id == chosen.plan_id
    with pytest.raises(PlanError, match="accuracy"):
        make_table(everything, WIFI, Goal(min_accuracy=0.99), names=("m", "d", "h"))


def test_early_exit_counts_the_share_that_leaves():
    early = bottleneck_candidate(Bottleneck("exit", Cost(5, 6), Cost(2, 3), 1000, 0.8, 1, 1, exit_share=0.75), 10)
    assert early.method == "early-exit"
    assert price(early, WIFI).uplink_bytes == pytest.approx(0.25 * early.choice.up_bytes)
    with pytest.raises(PlanError):
        bottleneck_candidate(Bottleneck("exit", Cost(5, 6), Cost(2, 3), 1000, 0.8, 1, 1, exit_share=1.5), 10)


def test_float_networks_can_be_planned_with_int8_and_fp32_on_the_wire():
    graph = _chain("float32")
    costs = [Cost(1, 1)] * 5
    assert not cut_candidates(make_problem(graph, costs, costs)).candidates
    problem = make_problem(let_floats_cross(graph), costs, costs, encoders=(RAW_FP32, RAW_INT8))
    sizes = {one.choice.name: one.choice.up_bytes for one in cut_candidates(problem).candidates}
    assert len(sizes) == 8
    assert sizes["split at t2 as fp32"] - sizes["split at t2 as int8"] == 3 * 800


def _profile(kernels):
    whole = Percentiles(p50=20.0, p90=24.0, p95=25.0, p99=30.0, runs=50)
    return Profile(board="b", model="m", model_sha256="0", precision="int8", created="", whole=whole, kernels=kernels,
                   engine=EngineSettings(name="onnxruntime", version="1"))  # fmt: skip


def _kernel(name, nodes, ms):
    latency = Percentiles(p50=ms, p90=ms, p99=ms, runs=50)
    return KernelTime(name=name, nodes=nodes, kind="conv", macs=1, bytes=1, latency=latency)


def test_costs_add_up_to_the_whole_and_missing_kernels_are_named():
    kernels = (_kernel("a", ("n0", "n1"), 2.0), _kernel("b", ("n2",), 3.0), _kernel("c", ("n3", "n4"), 4.0))
    costs = costs_from_profile(_chain(), _profile((*kernels, _kernel("reorder", (), 1.0))))
    assert sum(cost.p50_ms for cost in costs) == pytest.approx(20)
    assert sum(cost.p95_ms for cost in costs) == pytest.approx(25)
    assert sum(cost.p50_ms for cost in costs_from_profile(_chain(), _profile(kernels), factor=4)) == pytest.approx(80)
    with pytest.raises(MissingKernelError, match="n3, n4"):
        costs_from_profile(_chain(), _profile(kernels[:2]))
    with pytest.raises(MissingKernelError, match="gave none"):
        costs_from_profile(_chain(), _profile(()))
    for bad in (0.0, -1.0, math.nan):
        with pytest.raises(ProfileError):
            costs_from_profile(_chain(), _profile(kernels), factor=bad)


def test_impossible_costs_and_encoders_are_refused():
    for bad in ((math.nan, 1.0), (-1.0, 1.0), (2.0, 1.0), (1.0, math.inf)):
        with pytest.raises(ProfileError):
            Cost(*bad)
    for values in ((0.0,), (-1.0,), (math.nan,), (1.0, -1.0)):
        with pytest.raises(ProfileError):
            Encoder("bad", *values)
    with pytest.raises(ProfileError, match="5 operators"):
        make_problem(_chain(), [Cost(1, 1)] * 4, [Cost(1, 1)] * 5)
    with pytest.raises(PlanError):
        picture_candidate(Picture("jpeg", 50, 0, Cost(1, 1), Cost(1, 1), None), Cost(1, 1), 1)
    with pytest.raises(PlanError):
        local_candidate(Cost(0, 0), accuracy=None, weight_bytes=1, peak_bytes=1)


def test_cyclic_and_disconnected_graphs_are_refused():
    ring = [CutNode("a", "op", ("x", "tb"), ("ta",)), CutNode("b", "op", ("ta",), ("tb",))]
    with pytest.raises(CyclicGraphError, match="'a'"):
        order_nodes(ring)
    tensors = {name: CutTensor(name, (1, 4), "uint8", STEP) for name in ("x", "z", "ta", "tb")}
    with pytest.raises(CutGraphError, match="order"):
        CutGraph(tuple(ring), tensors, {}, ("x",), ("tb",))
    apart = (CutNode("a", "op", ("x",), ("ta",)), CutNode("b", "op", ("z",), ("tb",)))
    with pytest.raises(DisconnectedGraphError, match="'z'"):
        check_connected(CutGraph(apart, tensors, {}, ("x", "z"), ("ta",)))
    constant = (CutNode("a", "op", ("x",), ("ta",)), CutNode("b", "op", (), ("tb",)))
    with pytest.raises(DisconnectedGraphError, match="'tb'"):
        check_connected(CutGraph(constant, tensors, {}, ("x",), ("ta", "tb")))
    backwards = list(reversed(_chain().nodes))
    assert [node.name for node in order_nodes(backwards)] == ["n0", "n1", "n2", "n3", "n4"]


def test_searches_never_beat_the_planner():
    everything = _all(encoders=(RAW_INT8, RAW_FP32))
    best = min(price(one, WIFI).p50_ms for one in everything)
    assert -random_search(PlanEnv(everything, WIFI, Goal(), budget=200), seed=1) == pytest.approx(best)
    assert best <= -genetic_search(PlanEnv(everything, WIFI, Goal(), budget=200), seed=1) <= 1.5 * best
    for search in (random_search, genetic_search):
        assert -search(PlanEnv(everything, WIFI, Goal(), budget=3), seed=1) >= best
    env = PlanEnv(everything, WIFI, Goal(deadline_ms=1.0), budget=1)
    env.reset()
    _, reward, done, _ = env.step((0, 0))
    assert (reward, done) == (-math.inf, True)
    with pytest.raises(PlanError, match="reset"):
        env.step((0, 0))
    env.reset()
    with pytest.raises(PlanError, match="action"):
        env.step((10**6, 0))


@pytest.mark.parametrize(
    "wrong",
    [{"objective": "colour"}, {"deadline_ms": 0.0}, {"deadline_ms": math.nan}, {"min_accuracy": 87.0}, {"min_accuracy": math.nan}],
)  # fmt: skip
def test_goals_out_of_range_are_refused(wrong):
    with pytest.raises(PlanError):
        Goal(**wrong)
