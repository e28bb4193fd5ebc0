"""The planner against brute force over all subsets of operators, and enumeration against the minimum cut."""

import math

import pytest

from benchmarks.plan_instances import LINKS, best_head_ms, random_problem
from split.plan import Goal, PlanError, Power, make_plan, price
from split.plan_heads import crossing_names, cut_candidates
from split.plan_mincut import min_cut

INSTANCES = 520


def test_enumeration_and_minimum_cut_equalbest_head_ms():
    cut = 0
    for seed in range(INSTANCES):
        problem = random_problem(seed)
        link = LINKS[seed % len(LINKS)]
        wanted = best_head_ms(problem, link)
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


def test_a_wide_graph_falls_back_to_a_selection_with_the_minimum_cut_in_it():
    for seed in range(60):
        problem = random_problem(seed, most=9)
        link = LINKS[0]
        exact = cut_candidates(problem).candidates
        if not exact:
            continue
        few = cut_candidates(problem, links=(link,), max_heads=1)
        assert few.exact == (cut_candidates(problem).heads == 1)
        best = min(price(one, link).p50_ms for one in exact)
        assert min(price(one, link).p50_ms for one in few.candidates) == pytest.approx(best, abs=5e-3)


def test_constraints_equal_filtering_by_hand():
    power = Power(idle_w=1, active_w=4, tx_w=2)
    for seed in range(80):
        problem = random_problem(seed)
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


def test_multipliers_find_smaller_heads_that_are_no_worse_for_their_size():
    """A cut with a multiplier is optimal among all heads that hold no more weights than it does."""
    smaller = 0
    for seed in range(120):
        problem = random_problem(seed)
        encoder, exact = problem.encoders[0], cut_candidates(problem).candidates
        own = [one for one in exact if one.choice.name.endswith(f"as {encoder.name}")]
        cut = min_cut(problem, encoder, LINKS[0], ms_per_weight_byte=1e-3)
        found = [] if cut is None else [one for one in own if one.tensors == crossing_names(problem, cut.mask)]
        if not found or not all(node.constants for node in problem.graph.nodes):
            continue
        rivals = [one for one in own if one.weight_bytes <= found[0].weight_bytes]
        assert price(found[0], LINKS[0]).p50_ms <= min(price(one, LINKS[0]).p50_ms for one in rivals) + 5e-3
        smaller += found[0].weight_bytes < min(own, key=lambda one: price(one, LINKS[0]).p50_ms).weight_bytes
    assert smaller > 0
