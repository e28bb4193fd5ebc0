"""Facts about a PatchGraph that every schedule needs: which rows are read, who is alive where, backward halo ranges.

Positions count operators: position ``i`` is the moment when ops[:i] are done. Pure functions over the graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from split.patch_graph import PatchGraph, PatchGraphError

Range = tuple[int, int]  # half-open


@dataclass(frozen=True)
class RowReads:
    """The rows of one operand: output row y reads input rows [lows[y], highs[y])."""

    tensor: int
    lows: tuple[int, ...]
    highs: tuple[int, ...]


@dataclass(frozen=True)
class GraphFacts:
    """A checked graph with its look-up tables.

    Attributes:
        graph: The graph itself.
        producer: Per tensor the operator that writes it, -1 for a network input.
        last_use: Per tensor the last operator that reads it; len(ops) for a network output.
        reads: Per operator, per operand, the rows read.
    """

    graph: PatchGraph
    producer: tuple[int, ...]
    last_use: tuple[int, ...]
    reads: tuple[tuple[RowReads, ...], ...]

    def live_at(self, position: int) -> tuple[int, ...]:
        """Return the tensors that exist at a position and are read later (or are outputs), ascending."""
        return tuple(
            t
            for t in range(len(self.graph.tensors))
            if self.producer[t] < position and self.last_use[t] >= position and self.last_use[t] >= 0
        )


def study(graph: PatchGraph) -> GraphFacts:
    """Check a graph and tabulate what schedules ask of it.

    Raises:
        PatchGraphError: A tensor is written twice, read before it is written, or neither read nor an output.
    """
    count = len(graph.tensors)
    producer = [-2] * count
    last_use = [-1] * count
    for tensor in graph.inputs:
        producer[tensor] = -1
    for index, op in enumerate(graph.ops):
        for operand in op.inputs:
            if producer[operand.tensor] == -2:
                raise PatchGraphError(f"{op.name} reads {graph.tensors[operand.tensor].name} before it is written.")
            last_use[operand.tensor] = index
        if producer[op.output] != -2:
            raise PatchGraphError(f"{op.name} writes {graph.tensors[op.output].name}, which exists already.")
        out = graph.tensors[op.output]
        pools = len(op.inputs) == 1 and op.accumulator_bytes > 0 and out.height == out.width == 1
        if op.reduces and not pools:
            raise PatchGraphError(f"{op.name} reduces: it needs one operand, accumulator_bytes > 0 and a 1 x 1 output.")
        producer[op.output] = index
    for tensor in graph.outputs:
        if producer[tensor] == -2:
            raise PatchGraphError(f"Output {graph.tensors[tensor].name} is never written.")
        last_use[tensor] = len(graph.ops)
    for tensor, use in enumerate(last_use):
        if use < 0 and producer[tensor] >= -1:
            what = "operator" if producer[tensor] >= 0 else "network input"
            raise PatchGraphError(f"{graph.tensors[tensor].name} is neither read nor an output: drop its {what}.")
    reads = tuple(_op_reads(graph, index) for index in range(len(graph.ops)))
    return GraphFacts(graph, tuple(producer), tuple(last_use), reads)


def _op_reads(graph: PatchGraph, index: int) -> tuple[RowReads, ...]:
    op = graph.ops[index]
    out_rows = graph.tensors[op.output].height
    found = []
    for operand in op.inputs:
        height = graph.tensors[operand.tensor].height
        pairs = [operand.rows.reads(y, height) for y in range(out_rows)]
        found.append(RowReads(operand.tensor, tuple(p[0] for p in pairs), tuple(p[1] for p in pairs)))
    return tuple(found)


def halo_ranges(
    facts: GraphFacts, first: int, stop: int, targets: Mapping[int, Range], *, columns: bool
) -> dict[int, Range] | None:
    """Return the exact range of every tensor that ops[first:stop] must hold so that the targets come out.

    Walks backwards and takes the union (hull) where a tensor has several readers; clips at the true border.

    Args:
        facts: The graph.
        first: First operator.
        stop: One past the last operator.
        targets: Wanted half-open range per output tensor.
        columns: Column ranges (True) or row ranges (False).

    Returns:
        Range per tensor, or None if some operand lies wholly outside its tensor (only padding is read).

    Source: exact per-patch ranges, the clipped form of MCUNetV2 (arXiv:2110.15352) section 3.
    """
    ranges = dict(targets)
    tensors = facts.graph.tensors
    for index in range(stop - 1, first - 1, -1):
        op = facts.graph.ops[index]
        if op.output not in ranges:
            return None
        start, end = ranges[op.output]
        for operand in op.inputs:
            window = operand.columns if columns else operand.rows
            extent = tensors[operand.tensor].width if columns else tensors[operand.tensor].height
            lo, hi = window.reads_range(start, end, extent)
            if lo >= hi:
                return None
            known = ranges.get(operand.tensor)
            ranges[operand.tensor] = (lo, hi) if known is None else (min(lo, known[0]), max(hi, known[1]))
    return ranges
