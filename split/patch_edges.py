"""One block of operators under one edge kind: its buffers, steps, MACs and the least arena it needs.

A block may start and end at any position; tensors that merely live through it are carried. Layer and stream blocks run
in one pass; tile blocks stream column ranges one after the other; patch blocks run operator by operator over p x q
patches. Column and row halos of tiles and patches are recomputed, and counted exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from split.arena import Item, fullest_step, live_bound
from split.patch_graph import PatchGraph
from split.patch_plan import EdgeKind, Extent, InputMode, Pass
from split.patch_reads import GraphFacts
from split.patch_stream import NEVER, RowLife, RowSchedule, merge_runs, ring_rows, stream_rows

SCRATCH = -1  # item key of the kernels' scratch
ACCUMULATOR = -2  # item key of the accumulator of operator i: ACCUMULATOR - i


@dataclass(frozen=True)
class Store:
    """Storage of one tensor in a block, before it has an address."""

    tensor: int
    rows: int
    row_bytes: int
    local: bool
    shares: int  # tensor whose buffer this one lies in exactly (in place); its own index otherwise
    item: Item  # lives of the slots, over all passes and all tensors that share the buffer


@dataclass(frozen=True)
class Block:
    """ops[first:stop] under one kind, with everything but addresses."""

    kind: EdgeKind
    first: int
    stop: int
    grid: tuple[int, int]  # patches down, patches across
    stores: tuple[Store, ...]
    accumulators: tuple[Item, ...]
    scratch_bytes: int
    passes: tuple[Pass, ...]
    macs: int

    def items(self) -> list[Item]:
        """Everything that needs an address; keys are tensor indices, ACCUMULATOR - op, and SCRATCH."""
        found = [store.item for store in self.stores if store.shares == store.tensor]
        found += self.accumulators
        if self.scratch_bytes:
            found.append(Item(SCRATCH, self.scratch_bytes, np.array([0]), np.array([NEVER])))
        return found

    def live_bound(self) -> int:
        """Most bytes alive at one step: a lower bound of the block's arena."""
        return live_bound(self.items())

    def peak(self, graph: PatchGraph) -> tuple[str, str]:
        """Return the layer at the fullest step and the buffers that fill it, largest first, in words."""
        items = self.items()
        step, alive = fullest_step(items)
        row = 0
        layer = graph.ops[self.first].name
        for run in self.passes[0].steps:
            row += run.count
            if run.op >= 0:
                layer = graph.ops[run.op].name
            if row > step:
                break
        names = [f"{_item_name(graph, key)} ({size} B)" for key, size in alive[:3]]
        return layer, ", ".join(names)


@dataclass(frozen=True)
class EdgeContext:
    """What all blocks of one planning run share."""

    facts: GraphFacts
    input_mode: InputMode

    @property
    def graph(self) -> PatchGraph:
        """The network."""
        return self.facts.graph

    def pulled_by(self, first: int) -> int | None:
        """Return the input that a block starting at ``first`` pulls, if any."""
        return self.graph.inputs[0] if self.input_mode is InputMode.PULLED and first == 0 else None

    def allows(self, first: int, stop: int) -> bool:
        """A pulled input must be consumed by one block, the first."""
        if self.input_mode is not InputMode.PULLED:
            return True
        return first > 0 or stop > self.facts.last_use[self.graph.inputs[0]]


def possible_grids(context: EdgeContext, first: int, stop: int) -> list[tuple[EdgeKind, tuple[int, int]]]:
    """Return the kinds and grids worth trying for ops[first:stop]."""
    kind = EdgeKind.LAYER if stop == first + 1 else EdgeKind.STREAM
    return [(kind, (1, 1))]


def build_block(context: EdgeContext, kind: EdgeKind, first: int, stop: int, grid: tuple[int, int]) -> Block | None:
    """Return a block, or None if the operators cannot run that way."""
    return stream_block(context, first, stop)


def stream_block(context: EdgeContext, first: int, stop: int) -> Block:
    """Return ops[first:stop] as one row stream (one operator: the layer edge)."""
    schedule = stream_rows(context.facts, first, stop, pulled=context.pulled_by(first))
    tensors = context.graph.tensors
    extents = {t: (0, tensors[t].height, 0, tensors[t].width) for t in schedule.lives}
    one_pass = Pass(tuple(Extent(t, *box) for t, box in sorted(extents.items())), merge_runs(schedule.steps))
    macs = sum(_part(context.graph, op, rows) for op, rows in schedule.rows_made.items())
    kind = EdgeKind.LAYER if stop == first + 1 else EdgeKind.STREAM
    stores = _stream_stores(context, first, stop, schedule)
    return _block(context, (kind, first, stop, (1, 1)), stores, (one_pass,), macs)


def _part(graph: PatchGraph, op: int, rows: int) -> int:
    """MACs of some rows of an operator."""
    operator = graph.ops[op]
    total = graph.tensors[operator.inputs[0].tensor if operator.reduces else operator.output].height
    return operator.macs * rows // total


def _block(
    context: EdgeContext,
    where: tuple[EdgeKind, int, int, tuple[int, int]],
    stores: list[Store],
    passes: tuple[Pass, ...],
    macs: int,
) -> Block:
    kind, first, stop, grid = where
    ops = context.graph.ops[first:stop]
    sums = tuple(
        Item(ACCUMULATOR - first - i, op.accumulator_bytes, np.array([0]), np.array([NEVER]))
        for i, op in enumerate(ops)
        if op.reduces
    )
    scratch = max(op.scratch_bytes for op in ops)
    return Block(kind, first, stop, grid, tuple(stores), sums, scratch, passes, macs)


def _stream_stores(context: EdgeContext, first: int, stop: int, schedule: RowSchedule) -> list[Store]:
    """Buffers of a full-width stream: rings inside, whole tensors at the ends, in-place rows merged."""
    lives = _with_input_mode(context, schedule.lives)
    shares = _in_place_roots(context, first, stop, lives)
    merged = {root: _merged_life(lives, shares, root) for root in set(shares.values())}
    ends = set(context.facts.live_at(first)) | set(context.facts.live_at(stop))
    pulled = context.pulled_by(first)
    whole = {shares[t] for t in lives if t in ends and t != pulled}
    stores = []
    for tensor in sorted(lives):
        if _external(context, tensor):
            continue
        shape = context.graph.tensors[tensor]
        root = shares[tensor]
        rows = shape.height if root in whole else ring_rows(merged[root])
        item = _slots(root, rows, shape.row_bytes, merged[root])
        stores.append(Store(tensor, rows, shape.row_bytes, False, root, item))
    return stores


def _external(context: EdgeContext, tensor: int) -> bool:
    return context.input_mode is InputMode.EXTERNAL and tensor == context.graph.inputs[0]


def _with_input_mode(context: EdgeContext, lives: dict[int, RowLife]) -> dict[int, RowLife]:
    """A resident input stays intact to the end of every block that it lives into."""
    source = context.graph.inputs[0]
    if context.input_mode is InputMode.RESIDENT and source in lives:
        return {**lives, source: RowLife(lives[source].births, (NEVER,) * len(lives[source].deaths))}
    return lives


def _in_place_roots(context: EdgeContext, first: int, stop: int, lives: dict[int, RowLife]) -> dict[int, int]:
    """Map every tensor to the tensor whose buffer it takes over row by row."""
    roots = {t: t for t in lives}
    tensors = context.graph.tensors
    for index in range(first, stop):
        op = context.graph.ops[index]
        if not op.in_place:
            continue
        out = tensors[op.output]
        for operand in op.inputs:
            source = tensors[operand.tensor]
            same = (source.height, source.width, source.channels) == (out.height, out.width, out.channels)
            dies = lives[operand.tensor].deaths == lives[op.output].births
            if same and dies and not _external(context, operand.tensor):
                roots[op.output] = roots[operand.tensor]
                break
    return roots


def _merged_life(lives: dict[int, RowLife], roots: dict[int, int], root: int) -> RowLife:
    """Life of a buffer that several tensors use one after the other, row by row."""
    members = [lives[t] for t, r in roots.items() if r == root]
    deaths = tuple(max(life.deaths[row] for life in members) for row in range(len(lives[root].deaths)))
    return RowLife(lives[root].births, deaths)


def _slots(tensor: int, rows: int, row_bytes: int, life: RowLife) -> Item:
    """Life of every ring slot: from the first row in it to the last."""
    births = np.full(rows, NEVER, dtype=np.int64)
    deaths = np.full(rows, -2, dtype=np.int64)
    for row, (birth, death) in enumerate(zip(life.births, life.deaths, strict=True)):
        if birth != NEVER:
            births[row % rows] = min(births[row % rows], birth)
            deaths[row % rows] = max(deaths[row % rows], death)
    return Item(tensor, row_bytes, births, deaths)


def _item_name(graph: PatchGraph, key: int) -> str:
    if key >= 0:
        return graph.tensors[key].name
    return "kernel scratch" if key == SCRATCH else f"the accumulator of {graph.ops[ACCUMULATOR - key].name}"
