"""The planner against brute force over all subsets of operators, and enumeration against the minimum cut."""

import math
from itertools import combinations

import pytest

from device_profiles.link import Link
from edge_runtime.manifest import MAX_TENSORS
from split.plan import Goal, PlanError, Power, make_plan, price
from split.plan_heads import answer_bytes, crossing_names, cut_candidates, message_bytes
from split.plan_mincut import min_cut

INSTANCES = 520
LINKS = (
    Link(up_bytes_per_s=2e6, down_bytes_per_s=1e6, rtt_ms=1.0, jitter_ms=0.5, per_message_ms=0.1, per_byte_ms=1e-5),
    Link(up_bytes_per_s=1e5, down_bytes_per_s=1e6, rtt_ms=4.0),
)


def _brute_force(problem, link):
    """Least p50 over every subset of the non-repeatable operators that is a legal head, from the definition alone."""
    graph, free = problem.graph, problem.free
    real = [index for index in range(len(graph.nodes)) if index not in free]
    best = None
    for size in range(1, len(real)):
        for head in combinations(real, size):
            names = _crossing(problem, set(head))
            if names is None or not 1 <= len(names) <= MAX_TENSORS:
                continue
            inside = math.fsum(problem.device[index].p50_ms for index in head)
            outside = math.fsum(problem.host[index].p50_ms for index in real if index not in head)
            for encoder in problem.encoders:
                up = message_bytes(problem, names, encoder)
                ms = inside + outside + up * (encoder.encode_ms_per_byte + encoder.decode_ms_per_byte)
                ms += link.uplink_ms(up) + link.downlink_ms(answer_bytes(problem.down_bytes, len(graph.outputs)))
                best = ms if best is None else min(best, ms)
    return best


def _crossing(problem, head):
    """Names of the tensors that cross, or null when this is no legal head."""
    graph, free = problem.graph, problem.free
    origins = {name: {name} for name in graph.inputs}
    crossing = set()
    for index, node in enumerate(graph.nodes):
        seen = set().union(*(origins[name] for name in node.inputs))
        for name in node.outputs:
            origins[name] = seen if index in free else {name}
        if index in free:
            continue
        for origin in seen:
            maker = graph.producers.get(origin)
            made_here = maker is None or maker in head
            if index in head and not made_here:
                return None
            if index not in head and made_here:
                crossing.add(origin)
    for name in graph.outputs:
        for origin in origins[name]:
            maker = graph.producers.get(origin)
            if maker is None or maker in head:
                if graph.producers[name] not in free:
                    return None  # the tail makes every output
                crossing.add(origin)
    if any(not graph.tensors[name].may_cross for name in crossing):
        return None
    return tuple(sorted(crossing))


def test_enumeration_and_minimum_cut_equal_brute_force(make_random_problem):
    cut = 0
    for seed in range(INSTANCES):
        problem = make_random_problem(seed)
        link = LINKS[seed % len(LINKS)]
        wanted = _brute_force(problem, link)
        candidates = cut_candidates(problem).candidates
        assert (wanted is None) == (not candidates), seed
        if wanted is None:
            continue
        cut += 1
        found = min(price(candidate, link).p50_ms for candidate in candidates)
        assert found == pytest.approx(wanted, rel=1e-12), seed
        best = min(_mincut_latency(problem, encoder, link) for encoder in problem.encoders)
        assert best == pytest.approx(wanted, abs=5e-3), seed  # bytes are rounded up only in a message
        assert best >= wanted - 1e-9, seed
    assert cut > INSTANCES / 2  # most instances have something to cut


def _mincut_latency(problem, encoder, link):
    cut = min_cut(problem, encoder, link)
    if cut is None:
        return math.inf
    names = crossing_names(problem, cut.mask)
    wanted = [
        c
        for c in cut_candidates(problem).candidates
        if c.tensors == names and c.choice.name.endswith(f"as {encoder.name}")
    ]
    return price(wanted[0], link).p50_ms if wanted else math.inf


def test_a_wide_graph_falls_back_to_a_selection_with_the_minimum_cut_in_it(make_random_problem):
    for seed in range(60):
        problem = make_random_problem(seed, most=9)
        link = LINKS[0]
        exact = cut_candidates(problem).candidates
        if not exact:
            continue
        few = cut_candidates(problem, links=(link,), max_heads=1)
        assert few.exact == (cut_candidates(problem).heads == 1)
        best = min(price(one, link).p50_ms for one in exact)
        assert min(price(one, link).p50_ms for one in few.candidates) == pytest.approx(best, abs=5e-3)


def test_constraints_equal_filtering_by_hand(make_random_problem):
    power = Power(idle_w=1, active_w=4, tx_w=2)
    for seed in range(80):
        problem = make_random_problem(seed)
        candidates = cut_candidates(problem, accuracy=0.9).candidates
        if not candidates:
            continue
        goal = Goal(objective=("latency", "energy", "uplink", "p95")[seed % 4], deadline_ms=12.0, min_accuracy=0.895,
                    ram_bytes=22_000, flash_bytes=12_000)  # fmt: skip
        legal = [
            one for one in candidates
            if one.weight_bytes <= 12_000 and one.weight_bytes + one.peak_bytes <= 22_000 and one.accuracy >= 0.895
            and price(one, LINKS[0], power).p95_ms <= 12.0
        ]  # fmt: skip
        if not legal:
            with pytest.raises(PlanError, match="none among"):
                make_plan(candidates, LINKS[0], goal, power)
            continue
        plan = make_plan(candidates, LINKS[0], goal, power)
        assert plan.chosen.candidate in legal
        key = {"latency": "p50_ms", "energy": "energy_mj", "uplink": "uplink_bytes", "p95": "p95_ms"}[goal.objective]
        assert getattr(plan.chosen, key) == min(getattr(price(one, LINKS[0], power), key) for one in legal)
        assert sum(plan.left_out.values()) + len(legal) == len(candidates)
