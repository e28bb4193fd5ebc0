"""Where to cut a network into consecutive segments over several places, and which place runs which segment.

Dynamic programming over (layers done, places of each type used, type of the last place), as PipeEdge does it
(Hu et al. 2021, arXiv:2110.14895): counting places of a type instead of naming them keeps the state small. Latency adds
up segments and transfers; throughput is bounded by the slowest segment or transfer.
"""

import itertools
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from device_profiles.errors import EdgeError
from device_profiles.link import Link
from split.cuts import sweep_heads
from split.plan_problem import TwoPlaces

Measure = Literal["latency", "throughput"]
MAX_STATES = 2_000_000


class ChainError(EdgeError):
    """A chain problem is not well-formed, too large, or has no placement that fits."""


@dataclass(frozen=True)
class PlaceType:
    """`count` equal places. `layer_ms` is the time of each layer there; `memory_bytes` null: not limited."""

    name: str
    layer_ms: tuple[float, ...]
    memory_bytes: int | None = None
    count: int = 1


@dataclass(frozen=True)
class Chain:
    """Layers 0..n-1 in order. `sizes[i]` is what travels into layer i (0: the input), `sizes[n]` the answer; bytes.

    `links[a][b]` joins places of type a and b (a == b: two of one type); null where there is none.
    """

    weights: tuple[int, ...]  # bytes of each layer
    sizes: tuple[int, ...]
    places: tuple[PlaceType, ...]
    links: tuple[tuple[Link | None, ...], ...]
    source: int = 0  # type of the place where the input is and the answer goes; it may run layers or not


@dataclass(frozen=True)
class Segment:
    """Layers `first` to `last` (inclusive) on one place."""

    place: int
    first: int
    last: int


@dataclass(frozen=True)
class ChainPlan:
    """`cost_ms` is the latency of one request, or the time between two with the pipeline full."""

    segments: tuple[Segment, ...]
    cost_ms: float


def plan_chain(chain: Chain, measure: Measure) -> ChainPlan:
    """The best placement: exact. Any subset of the places, in any order.

    A segment may run where the input is (type `source`) without a transfer only as the first one. For throughput the
    time of sending answers back is left out: it is small, and on the other direction of the link.

    Raises:
        ChainError: Not well-formed, more than `MAX_STATES` steps, or nothing fits.
    """
    check_chain(chain)
    layers, types = len(chain.weights), len(chain.places)
    counts = [range(place.count + 1) for place in chain.places]
    states = math.prod(len(one) for one in counts) * layers * types
    if states * layers * types > MAX_STATES * 8 or states > MAX_STATES:
        raise ChainError(
            f"Wanted a problem of at most {MAX_STATES} states, found {states} ({layers} layers, {types} types of places). "
            "Give equal places as one type with a count."
        )
    segments = _segments(chain)
    Best = dict[tuple[tuple[int, ...], int], tuple[float, tuple[Segment, ...]]]
    best: list[Best] = [{} for _ in range(layers + 1)]
    join: Callable[[float, float], float] = max if measure == "throughput" else operator.add
    for end in range(1, layers + 1):
        for place in range(types):
            used = tuple(int(place == one) for one in range(types))
            start = _entry(chain, place, measure)
            if (place, 0, end) in segments and start < math.inf:
                cost = join(start, segments[place, 0, end])
                _keep(best[end], (used, place), cost, (Segment(place, 0, end - 1),))
    for done in range(1, layers):
        for (used, last), (cost, path) in best[done].items():
            for place, end in itertools.product(range(types), range(done + 1, layers + 1)):
                link = chain.links[last][place]
                if used[place] == chain.places[place].count or link is None or (place, done, end) not in segments:
                    continue
                size = chain.sizes[done]
                step = join(
                    link.occupied_ms(size) if measure == "throughput" else link.uplink_ms(size),
                    segments[place, done, end],
                )
                now = (*used[:place], used[place] + 1, *used[place + 1 :])
                _keep(best[end], (now, place), join(cost, step), (*path, Segment(place, done, end - 1)))
    ends = [(cost + _way_back(chain, place, measure), path) for (_, place), (cost, path) in best[layers].items()]
    found = min(ends, key=lambda one: one[0], default=(math.inf, ()))
    if found[0] == math.inf:
        raise ChainError(
            "Wanted a placement of all layers that fits the memories and links, found none. Add places or memory."
        )
    return ChainPlan(found[1], found[0])


def check_chain(chain: Chain) -> None:
    """Refuse a chain that is not well-formed.

    Raises:
        ChainError: Lengths that differ, times or sizes out of range, no places.
    """
    layers = len(chain.weights)
    if not layers or not chain.places or len(chain.sizes) != layers + 1 or not 0 <= chain.source < len(chain.places):
        raise ChainError(
            f"Wanted n layers, n + 1 sizes and at least one place, found {layers}, {len(chain.sizes)}, {len(chain.places)}."
        )
    if len(chain.links) != len(chain.places) or any(len(row) != len(chain.places) for row in chain.links):
        raise ChainError(f"Wanted a link for each pair of {len(chain.places)} types, found {len(chain.links)} rows.")
    if any(size < 0 for size in (*chain.weights, *chain.sizes)):
        raise ChainError("Wanted sizes >= 0 B, found a negative one.")
    for place in chain.places:
        good = all(math.isfinite(ms) and ms >= 0 for ms in place.layer_ms)
        if len(place.layer_ms) != layers or not good or place.count < 1:
            raise ChainError(
                f"Wanted {layers} finite times >= 0 and a count >= 1 of place {place.name!r}, found {place}."
            )


def chain_from_problem(problem: TwoPlaces, places: Sequence[PlaceType], links: tuple[tuple[Link | None, ...], ...],
                       *, input_bytes: int, answer_bytes: int) -> tuple[Chain, tuple[tuple[str, ...], ...]]:  # fmt: skip
    """Contract a network at the tensors that separate it; times of the places are for each node of the graph.

    Returns:
        The chain, and for each of its inner joints the tensors that cross there (one each).
    """
    graph, blocks = problem.graph, problem.blocks
    joints: list[tuple[str, frozenset[int], int]] = []
    for head in sweep_heads(blocks):
        names = [blocks.edges[number].name for number in head.crossing]
        if len(names) == 1:
            joints.append((names[0], frozenset(graph.reach_back((names[0],))[0]), problem.values_of(names[0])))
    everything = frozenset(graph.reach_back(graph.outputs)[0])
    bounds = [frozenset[int](), *(nodes for _, nodes, _ in joints), everything]
    layers = [sorted(after - before) for before, after in itertools.pairwise(bounds)]
    size = problem.encoders[0].bytes_per_value
    chain = Chain(
        weights=tuple(graph.constant_bytes_of(layer) for layer in layers),
        sizes=(input_bytes, *(math.ceil(size * values) for _, _, values in joints), answer_bytes),
        places=tuple(
            PlaceType(one.name, tuple(math.fsum(one.layer_ms[index] for index in layer) for layer in layers),
                      one.memory_bytes, one.count)
            for one in places
        ),
        links=links,
    )  # fmt: skip
    return chain, tuple((name,) for name, _, _ in joints)


def _segments(chain: Chain) -> dict[tuple[int, int, int], float]:
    """(place, first layer, layer after the last) -> ms, of those that fit: weights and buffers of both ends."""
    fitting = {}
    for number, place in enumerate(chain.places):
        for first in range(len(chain.weights)):
            ms, weights = 0.0, 0
            for end in range(first + 1, len(chain.weights) + 1):
                ms += place.layer_ms[end - 1]
                weights += chain.weights[end - 1]
                need = weights + chain.sizes[first] + chain.sizes[end]
                if place.memory_bytes is None or need <= place.memory_bytes:
                    fitting[number, first, end] = ms
    return fitting


def _entry(chain: Chain, place: int, measure: Measure) -> float:
    if place == chain.source:
        return 0.0
    link = chain.links[chain.source][place]
    if link is None:
        return math.inf
    return link.occupied_ms(chain.sizes[0]) if measure == "throughput" else link.uplink_ms(chain.sizes[0])


def _way_back(chain: Chain, place: int, measure: Measure) -> float:
    if place == chain.source or measure == "throughput":
        return 0.0
    link = chain.links[place][chain.source]
    return math.inf if link is None else link.downlink_ms(chain.sizes[-1])


def _keep(
    best: dict[tuple[tuple[int, ...], int], tuple[float, tuple[Segment, ...]]],
    state: tuple[tuple[int, ...], int],
    cost: float,
    path: tuple[Segment, ...],
) -> None:
    if state not in best or cost < best[state][0]:
        best[state] = (cost, path)
