"""Every valid head of a two-place problem as a candidate: exact enumeration, and min-cut where there are too many.

A candidate does not depend on the link: what it costs there is priced later, so one enumeration serves every rate.
"""

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from device_profiles.link import Link
from device_profiles.plan_table import Choice
from edge_runtime.manifest import MAX_TENSORS
from edge_runtime.wire import ENVELOPE_BYTES, FIXED_BYTES, REPLY_BYTES
from split.cuts import MAX_HEADS, all_heads, near_heads, sweep_heads
from split.plan_mincut import TENSOR_HEAD_BYTES, min_cut
from split.plan_problem import Encoder, TwoPlaces

Method = Literal["whole", "raw", "bottleneck", "early-exit", "picture"]
_LAYER_BYTES = 4
_MULTIPLIERS = (0.0, 1e-6, 1e-5, 1e-4)  # ms for each byte of weights: cuts that trade latency for memory


@dataclass(frozen=True)
class Candidate:
    """One thing that could be done. Sizes in bytes; accuracy 0..1, null is not known."""

    choice: Choice
    method: Method
    accuracy: float | None = None
    weight_bytes: int | None = 0  # that the device holds; null is not known
    peak_bytes: int | None = 0  # activations on the device; null is not known
    tensors: tuple[str, ...] = ()
    unsupported: tuple[str, ...] = ()  # operators of the head that the device cannot run
    build: tuple[str, ...] = field(default=())  # arguments of the command that builds it
    rss_bytes: int | None = (
        None  # peak of the device's process, measured or predicted; null: weights and activations count
    )


@dataclass(frozen=True)
class HeadList:
    """Candidates that cut the network. Not `exact`: only a selection of heads, with the min-cut among them."""

    candidates: tuple[Candidate, ...]
    heads: int
    exact: bool


def cut_candidates(
    problem: TwoPlaces, *, accuracy: float | None = None, links: Iterable[Link] = (), max_heads: int = MAX_HEADS
) -> HeadList:
    """Every head with every encoder.

    Args:
        problem: See `make_problem`.
        accuracy: Of the whole network.
        links: Only for graphs with more than `max_heads` heads: the min-cut is found for each of these.
        max_heads: Above it, heads are a selection: prefixes of the topological order, the smallest head with and the
            largest without each block, and the min-cuts.
    """
    blocks = problem.blocks
    if blocks.source == blocks.sink:
        return HeadList((), 0, exact=True)
    heads = all_heads(blocks, max_heads)
    exact = heads is not None
    if heads is not None:
        masks = {head.mask for head in heads}
    else:
        masks = {head.mask for head in [*sweep_heads(blocks), *near_heads(blocks)]}
        for link, encoder, multiplier in itertools.product(links, problem.encoders, _MULTIPLIERS):
            cut = min_cut(problem, encoder, link, ms_per_weight_byte=multiplier)
            masks |= set() if cut is None else {cut.mask}
    candidates = []
    for mask in sorted(masks):
        names = crossing_names(problem, mask)
        both = blocks.has_work(mask) and blocks.has_work(blocks.everything & ~mask)
        if both and 1 <= len(names) <= MAX_TENSORS:
            candidates += _with_encoders(problem, names, accuracy)
    return HeadList(tuple(candidates), len(masks), exact)


def crossing_names(problem: TwoPlaces, mask: int) -> tuple[str, ...]:
    """The tensors that leave this head, in the order in which the network makes them."""
    producers = problem.graph.producers
    names = {problem.blocks.edges[number].name for number in problem.blocks.crossing(mask)}
    return tuple(sorted(names, key=lambda name: (producers.get(name, -1), name)))


def message_bytes(problem: TwoPlaces, names: tuple[str, ...], encoder: Encoder) -> int:
    """One request: envelope, frame, tensors (docs/wire.md)."""
    payload = math.ceil(encoder.bytes_per_value * sum(problem.values_of(name) for name in names)) + encoder.fixed_bytes
    return ENVELOPE_BYTES + FIXED_BYTES + _LAYER_BYTES + TENSOR_HEAD_BYTES * len(names) + payload


def answer_bytes(payload: int, tensors: int = 1) -> int:
    """One answer: reply envelope, frame, tensors."""
    return REPLY_BYTES + FIXED_BYTES + _LAYER_BYTES + TENSOR_HEAD_BYTES * tensors + payload


def peak_bytes(problem: TwoPlaces, nodes: list[int], keep: tuple[str, ...]) -> int:
    """Largest sum of activations that are alive at once while these nodes run in order; `keep` stays to the end."""
    graph = problem.graph
    last: dict[str, int] = {}
    for position, index in enumerate(nodes):
        for name in (*graph.nodes[index].inputs, *graph.nodes[index].outputs):
            last[name] = position
    end = len(nodes)
    for name in keep:
        last[name] = end
    sizes = graph.tensors
    alive = sum(sizes[name].nbytes for name in graph.inputs if name in last)
    peak = alive
    for position, index in enumerate(nodes):
        node = graph.nodes[index]
        alive += sum(sizes[name].nbytes for name in node.outputs)
        peak = max(peak, alive)
        touched = {*node.inputs, *node.outputs}
        alive -= sum(sizes[name].nbytes for name in touched if last[name] == position)
    return peak


def _with_encoders(problem: TwoPlaces, names: tuple[str, ...], accuracy: float | None) -> list[Candidate]:
    graph = problem.graph
    head, _ = graph.reach_back(names)
    tail, _ = graph.reach_back(graph.outputs, stop=frozenset(names))
    ops = {graph.nodes[index].op for index in head}
    unsupported = () if problem.supported_ops is None else tuple(sorted(ops - problem.supported_ops))
    weights, peak = graph.constant_bytes_of(head), peak_bytes(problem, head, names)
    device = [problem.device[index] for index in head]
    host = [problem.host[index] for index in tail]
    sums = [math.fsum(costs) for costs in (
        [c.p50_ms for c in device], [c.p95_ms for c in device], [c.p50_ms for c in host], [c.p95_ms for c in host]
    )]  # fmt: skip
    found = []
    for encoder in problem.encoders:
        size = message_bytes(problem, names, encoder)
        encode, decode = size * encoder.encode_ms_per_byte, size * encoder.decode_ms_per_byte
        known = accuracy is not None and encoder.accuracy_drop is not None
        choice = Choice(
            name=f"split at {', '.join(names)} as {encoder.name}",
            kind="split",
            device_ms=sums[0] + encode,
            device_p95_ms=sums[1] + encode,
            host_ms=sums[2] + decode,
            host_p95_ms=sums[3] + decode,
            up_bytes=size,
            down_bytes=answer_bytes(problem.down_bytes, len(graph.outputs)),
            tensors=names,
        )
        found.append(
            Candidate(
                choice,
                "raw",
                accuracy=accuracy - encoder.accuracy_drop if known else None,  # type: ignore[operator]  # both are known
                weight_bytes=weights,
                peak_bytes=peak,
                tensors=names,
                unsupported=unsupported,
                build=("split", "--at", ",".join(names)),
            )
        )
    return found
