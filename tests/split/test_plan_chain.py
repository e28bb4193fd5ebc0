import itertools
import random

import pytest

from device_profiles.link import Link
from split.plan_chain import Chain, ChainError, PlaceType, chain_from_problem, plan_chain

INSTANCES = 520


def _random_chain(seed):
    rng = random.Random(seed)
    layers, types = rng.randint(1, 5), rng.randint(1, 3)
    places = tuple(
        PlaceType(f"p{number}", tuple(rng.uniform(0.1, 9) for _ in range(layers)),
                  rng.choice([None, rng.randint(200, 2500)]), rng.randint(1, 2) if types < 3 else 1)
        for number in range(types)
    )  # fmt: skip

    def link():
        rates = {"up_bytes_per_s": rng.uniform(1e4, 1e6), "down_bytes_per_s": rng.uniform(1e4, 1e6)}
        return None if rng.random() < 0.1 else Link(**rates, rtt_ms=rng.uniform(0, 4), per_message_ms=0.1)

    sizes = tuple(rng.randint(1, 900) for _ in range(layers + 1))
    links = tuple(tuple(link() for _ in range(types)) for _ in range(types))
    return Chain(tuple(rng.randint(0, 700) for _ in range(layers)), sizes, places, links, rng.randrange(types))


def _brute_force(chain, measure):
    """Every ordered choice of places and every way to cut the layers among them."""
    layers = len(chain.weights)
    pool = [number for number, place in enumerate(chain.places) for _ in range(place.count)]
    best = None
    for used in range(1, min(len(pool), layers) + 1):
        for order in set(itertools.permutations(pool, used)):
            for inner in itertools.combinations(range(1, layers), used - 1):
                cost = _cost(chain, order, (0, *inner, layers), measure)
                if cost is not None and (best is None or cost < best):
                    best = cost
    return best


def _cost(chain, order, bounds, measure):
    parts, previous = [], None
    for place, (first, end) in zip(order, itertools.pairwise(bounds), strict=True):
        limit = chain.places[place].memory_bytes
        if limit is not None and sum(chain.weights[first:end]) + chain.sizes[first] + chain.sizes[end] > limit:
            return None
        if previous is not None or place != chain.source:
            link = chain.links[chain.source if previous is None else previous][place]
            if link is None:
                return None
            size = chain.sizes[first]
            parts.append(link.occupied_ms(size) if measure == "throughput" else link.uplink_ms(size))
        parts.append(sum(chain.places[place].layer_ms[first:end]))
        previous = place
    if measure == "throughput":
        return max(parts)
    if previous != chain.source:
        link = chain.links[previous][chain.source]
        if link is None:
            return None
        parts.append(link.downlink_ms(chain.sizes[-1]))
    return sum(parts)


@pytest.mark.parametrize("measure", ["latency", "throughput"])
def test_dynamic_programming_equals_brute_force(measure):
    placed = 0
    for seed in range(INSTANCES):
        chain = _random_chain(seed)
        wanted = _brute_force(chain, measure)
        if wanted is None:
            with pytest.raises(ChainError):
                plan_chain(chain, measure)
            continue
        placed += 1
        plan = plan_chain(chain, measure)
        assert plan.cost_ms == pytest.approx(wanted, rel=1e-9), seed
        bounds = (0, *(segment.last + 1 for segment in plan.segments))
        order = tuple(segment.place for segment in plan.segments)
        assert _cost(chain, order, bounds, measure) == pytest.approx(plan.cost_ms, rel=1e-9), seed
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


def test_a_network_is_contracted_at_separating_tensors(make_random_problem):
    joined = 0
    for seed in range(200):
        problem = make_random_problem(seed)
        live = problem.graph.reach_back(problem.graph.outputs)[0]
        times = tuple(cost.p50_ms for cost in problem.device)
        chain, joints = chain_from_problem(problem, [PlaceType("a", times)], ((None,),), input_bytes=5, answer_bytes=6)
        assert len(chain.weights) == len(joints) + 1
        assert sum(chain.places[0].layer_ms) == pytest.approx(sum(times[index] for index in live))
        assert plan_chain(chain, "latency").cost_ms == pytest.approx(sum(times[index] for index in live))
        joined += len(joints)
    assert joined > 40
