"""Random small planning problems and their solution by trying everything, from the definitions alone."""

import itertools
import math
import random
from itertools import combinations

from device_profiles.link import Link
from edge_runtime.manifest import MAX_TENSORS, Quantisation
from split.cut_graph import CutGraph, CutNode, CutTensor
from split.plan_chain import Chain, Measure, PlaceType
from split.plan_heads import answer_bytes, message_bytes
from split.plan_problem import RAW_FP32, RAW_INT8, Cost, Encoder, TwoPlaces, make_problem

STEP = Quantisation(scale=0.5, zero_point=3)
LINKS = (
    Link(up_bytes_per_s=2e6, down_bytes_per_s=1e6, rtt_ms=1.0, jitter_ms=0.5, per_message_ms=0.1, per_byte_ms=1e-5),
    Link(up_bytes_per_s=1e5, down_bytes_per_s=1e6, rtt_ms=4.0),
)


def random_problem(seed: int, *, most: int = 9) -> TwoPlaces:
    """A connected network of 2 to `most` operators; some tensors may not cross, some operators are repeatable."""
    rng = random.Random(seed)
    count = rng.randint(2, most)
    names, nodes = ["x"], []
    for index in range(count):
        near = names[-3:] if index else names
        reads = rng.sample(near, k=min(len(near), rng.choice((1, 1, 2, 3))))
        nodes.append(
            CutNode(f"n{index}", rng.choice("abc"), tuple(reads), (f"t{index}",), rng.randint(0, 9), (f"w{index}",),
                    repeatable=rng.random() < 0.1)
        )  # fmt: skip
        names.append(f"t{index}")
    read = {name for node in nodes for name in node.inputs}
    ends = tuple(name for name in names[1:] if name not in read)
    free = 0.15 if rng.random() < 0.5 else 0.0
    tensors = {
        name: CutTensor(name, (1, rng.randint(1, 4000)), "float32")
        if name == "x" or rng.random() < free
        else CutTensor(name, (1, rng.randint(1, 4000)), "uint8", STEP)
        for name in names
    }
    constants = {f"w{index}": rng.randint(0, 5000) for index in range(count)}
    graph = CutGraph(tuple(nodes), tensors, constants, ("x",), ends)

    def costs(most_ms: float) -> list[Cost]:
        return [Cost(ms, ms * rng.uniform(1, 1.5)) for ms in (rng.uniform(0.01, most_ms) for _ in nodes)]

    encoders = (RAW_INT8, RAW_FP32, Encoder("rans", 0.4, 2e-3, 1e-3, accuracy_drop=0.01, fixed_bytes=16))
    chosen = tuple(rng.sample(encoders, k=rng.randint(1, 3)))
    return make_problem(graph, costs(4.0), costs(0.8), encoders=chosen)


def best_head_ms(problem: TwoPlaces, link: Link) -> float | None:
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


def random_chain(seed: int) -> Chain:
    """1 to 5 layers, 1 to 3 types of places, some links missing, some memories too small."""
    rng = random.Random(seed)
    layers, types = rng.randint(1, 5), rng.randint(1, 3)
    places = tuple(
        PlaceType(f"p{number}", tuple(rng.uniform(0.1, 9) for _ in range(layers)),
                  rng.choice([None, rng.randint(200, 2500)]), rng.randint(1, 2) if types < 3 else 1)
        for number in range(types)
    )  # fmt: skip

    def link() -> Link | None:
        rates = {"up_bytes_per_s": rng.uniform(1e4, 1e6), "down_bytes_per_s": rng.uniform(1e4, 1e6)}
        return None if rng.random() < 0.1 else Link(**rates, rtt_ms=rng.uniform(0, 4), per_message_ms=0.1)

    sizes = tuple(rng.randint(1, 900) for _ in range(layers + 1))
    links = tuple(tuple(link() for _ in range(types)) for _ in range(types))
    return Chain(tuple(rng.randint(0, 700) for _ in range(layers)), sizes, places, links, rng.randrange(types))


def best_chain_ms(chain: Chain, measure: Measure) -> float | None:
    """Every ordered choice of places and every way to cut the layers among them."""
    layers = len(chain.weights)
    pool = [number for number, place in enumerate(chain.places) for _ in range(place.count)]
    best = None
    for used in range(1, min(len(pool), layers) + 1):
        for order in set(itertools.permutations(pool, used)):
            for inner in itertools.combinations(range(1, layers), used - 1):
                cost = chain_ms(chain, order, (0, *inner, layers), measure)
                if cost is not None and (best is None or cost < best):
                    best = cost
    return best


def chain_ms(chain: Chain, order: tuple[int, ...], bounds: tuple[int, ...], measure: Measure) -> float | None:
    """Cost of one placement; null where it does not fit or a link is missing."""
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


def _crossing(problem: TwoPlaces, head: set[int]) -> tuple[str, ...] | None:
    """Names of the tensors that cross, or null when this is no legal head."""
    graph, free = problem.graph, problem.free
    origins: dict[str, set[str]] = {name: {name} for name in graph.inputs}
    crossing: set[str] = set()
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
