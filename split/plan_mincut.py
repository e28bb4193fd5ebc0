"""The head with the least latency by a minimum cut: for graphs with too many heads to list.

Source side = device. A block's edge to the sink costs its device time, the edge from the source its host time; a tensor
is one vertex with one edge of its transfer time, so it is paid once however many blocks read it (Hu et al. 2019, DADS,
INFOCOM, section IV). Edges of infinite capacity from readers back to makers forbid a way back. Capacities are whole
picoseconds, so the flow is exact. Constraints are not part of it: multipliers on bytes stand in for memory.
"""

from dataclasses import dataclass

import networkx as nx

from device_profiles.link import Link
from split.plan_problem import Encoder, TwoPlaces

TENSOR_HEAD_BYTES = 8  # of a frame, for each tensor
_UNITS_PER_MS = 10**9


@dataclass(frozen=True)
class MinCut:
    """The best head with the source block in it and the sink block not. `variable_ms` leaves out what all heads share."""

    mask: int
    variable_ms: float


def min_cut(problem: TwoPlaces, encoder: Encoder, link: Link, *, ms_per_weight_byte: float = 0.0) -> MinCut | None:
    """The head with the least p50 latency among those that leave an operator on both sides.

    Args:
        problem: Two places; blocks that no cut separates are merged already.
        encoder: How crossing tensors travel.
        link: Rate and cost per byte; round trip and message costs are the same for every head.
        ms_per_weight_byte: Multiplier that makes heads with many weights dearer (Lagrange); 0 for none.

    Returns:
        Null where the device cannot run what every head holds, or nothing can be cut.
    """
    blocks = problem.blocks
    if blocks.source == blocks.sink:
        return None
    flow = _network(problem, encoder, link, ms_per_weight_byte)
    working = [block for block in range(blocks.count) if blocks.working >> block & 1]
    first = [block for block in working if not blocks.ancestors[block] & blocks.working]
    last = [block for block in working if not blocks.descendants[block] & blocks.working]
    found = [_cut(flow.copy(), start, end, blocks.count) for start in first for end in last if start != end]
    return min((cut for cut in found if cut is not None), key=lambda cut: cut.variable_ms, default=None)


def _cut(flow: nx.DiGraph, start: int, end: int, count: int) -> MinCut | None:
    flow.add_edge("device", start)  # without a capacity: infinite
    flow.add_edge(end, "host")
    flow["device"][start].pop("capacity", None)
    flow[end]["host"].pop("capacity", None)
    try:
        value, (head_side, _) = nx.minimum_cut(flow, "device", "host")
    except nx.NetworkXUnbounded:
        return None
    mask = sum(1 << block for block in range(count) if block in head_side)
    return MinCut(mask, value / _UNITS_PER_MS)


def _network(problem: TwoPlaces, encoder: Encoder, link: Link, ms_per_weight_byte: float) -> nx.DiGraph:
    blocks = problem.blocks
    flow = nx.DiGraph()
    for block in range(blocks.count):
        nodes = blocks.members[block]
        device = sum(problem.device[index].p50_ms for index in nodes)
        device += ms_per_weight_byte * problem.graph.constant_bytes_of(list(nodes))
        flow.add_edge("device", block, capacity=_units(sum(problem.host[index].p50_ms for index in nodes)))
        flow.add_edge(block, "host", capacity=_units(device))
        if not problem.supports(nodes):
            del flow[block]["host"]["capacity"]
        for earlier in range(block):
            if blocks.predecessors[block] >> earlier & 1:
                flow.add_edge(block, earlier)
    del flow["device"][blocks.source]["capacity"]
    flow[blocks.sink]["host"].pop("capacity", None)
    per_byte = link.up_ms_per_byte + encoder.encode_ms_per_byte + encoder.decode_ms_per_byte
    for number, edge in enumerate(blocks.edges):
        size = encoder.bytes_per_value * problem.values_of(edge.name) + TENSOR_HEAD_BYTES
        flow.add_edge(edge.maker, ("tensor", number), capacity=_units(size * per_byte))
        for reader in range(edge.maker + 1, blocks.count):
            if edge.readers >> reader & 1:
                flow.add_edge(("tensor", number), reader)
    return flow


def _units(ms: float) -> int:
    return round(ms * _UNITS_PER_MS)
