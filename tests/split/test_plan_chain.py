import pytest

from benchmarks.plan_instances import best_chain_ms, chain_ms, random_chain, random_problem
from split.plan_chain import Chain, ChainError, PlaceType, chain_from_problem, plan_chain

INSTANCES = 520


@pytest.mark.parametrize("measure", ["latency", "throughput"])
def test_dynamic_programming_equalsbest_chain_ms(measure):
    placed = 0
    for seed in range(INSTANCES):
        chain = random_chain(seed)
        wanted = best_chain_ms(chain, measure)
        if wanted is None:
            with pytest.raises(ChainError):
                plan_chain(chain, measure)
            continue
        placed += 1
        plan = plan_chain(chain, measure)
        assert plan.cost_ms == pytest.approx(wanted, rel=1e-9), seed
        bounds = (0, *(segment.last + 1 for segment in plan.segments))
        order = tuple(segment.place for segment in plan.segments)
        assert chain_ms(chain, order, bounds, measure) == pytest.approx(plan.cost_ms, rel=1e-9), seed
    assert placed > INSTANCES / 2


def test_bad_chains_are_refused():
    place = PlaceType("p", (1.0, 1.0))
    good = Chain((1, 1), (1, 1, 1), (place,), ((None,),))
    assert plan_chain(good, "latency").cost_ms == 2
    for bad in (
        Chain((), (1,), (PlaceType("p", ()),), ((None,),)),
        Chain((1, 1), (1, 1), (place,), ((None,),)),
        Chain((1, -1), (1, 1, 1), (place,), ((None,),)),
        Chain((1, 1), (1, 1, 1), (PlaceType("p", (1.0, float("nan"))),), ((None,),)),
        Chain((1, 1), (1, 1, 1), (PlaceType("p", (1.0,)),), ((None,),)),
        Chain((1, 1), (1, 1, 1), (place,), ()),
    ):
        with pytest.raises(ChainError):
            plan_chain(bad, "latency")
    with pytest.raises(ChainError, match="none"):
        plan_chain(Chain((1, 1), (1, 1, 1), (PlaceType("p", (1.0, 1.0), memory_bytes=2),), ((None,),)), "latency")


def test_a_network_is_contracted_at_separating_tensors():
    joined = 0
    for seed in range(200):
        problem = random_problem(seed)
        live = problem.graph.reach_back(problem.graph.outputs)[0]
        times = tuple(cost.p50_ms for cost in problem.device)
        chain, joints = chain_from_problem(problem, [PlaceType("a", times)], ((None,),), input_bytes=5, answer_bytes=6)
        assert len(chain.weights) == len(joints) + 1
        assert sum(chain.places[0].layer_ms) == pytest.approx(sum(times[index] for index in live))
        assert plan_chain(chain, "latency").cost_ms == pytest.approx(sum(times[index] for index in live))
        joined += len(joints)
    assert joined > 40
