"""A block: a run of operators under one edge kind, with buffers, steps and MACs, but without addresses yet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from split.arena import Item, Placement, Row, fullest_step, live_bound, place, place_around
from split.patch_graph import PatchGraph
from split.patch_plan import EdgeKind, InputMode, Pass
from split.patch_reads import GraphFacts, Range
from split.patch_stream import NEVER, RowSchedule, stream_rows
from split.scatter import scatter

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
    scattered: bool = False  # every row has its own address (Block.rows), the item is not placed


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
    rows: tuple[Row, ...] = ()  # of scattered stores; Row.tensor is the tensor whose buffer is shared

    def items(self) -> list[Item]:
        """Everything that needs one address; keys are tensor indices, ACCUMULATOR - op, and SCRATCH."""
        found = [store.item for store in self.stores if store.shares == store.tensor and not store.scattered]
        found += self.accumulators
        if self.scratch_bytes:
            found.append(Item(SCRATCH, self.scratch_bytes, np.array([0]), np.array([NEVER])))
        return found

    def live_bound(self) -> int:
        """Most bytes alive at one step: a lower bound of the block's arena."""
        return live_bound(self.items(), self.rows)

    def place(self, alignment: int, enough: int) -> Placement:
        """Place the block alone; see :func:`split.arena.place`."""
        if not self.rows:
            return place(self.items(), alignment, enough=enough)
        found = scatter(self.items(), self.rows, alignment, enough=max(enough, self.live_bound()))
        assert found is not None
        return found

    def place_around(
        self, fixed: Mapping[int, int], limit: int, alignment: int, high: Iterable[int]
    ) -> Placement | None:
        """Place the block around tensors that have addresses; see :func:`split.arena.place_around`."""
        if not self.rows:
            return place_around(self.items(), fixed, limit, alignment=alignment, high=high)
        return scatter(self.items(), self.rows, alignment, enough=limit, fixed=fixed)

    def peak(self, graph: PatchGraph) -> tuple[str, str]:
        """Return the layer at the fullest step and the buffers that fill it, largest first, in words."""
        items = [store.item for store in self.stores if store.shares == store.tensor and store.scattered]
        items += self.items()
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


@dataclass(frozen=True, eq=False)
class EdgeContext:
    """What all blocks of one planning run share."""

    facts: GraphFacts
    input_mode: InputMode
    schedules: dict[tuple[int, int], RowSchedule] = field(default_factory=dict)  # the latest stream simulation
    ranges: dict[tuple[int, int], dict[tuple[int, bool], list[dict[int, Range]] | None]] = field(default_factory=dict)

    @property
    def graph(self) -> PatchGraph:
        """The network."""
        return self.facts.graph

    def pulled_by(self, first: int) -> int | None:
        """Return the input that a block starting at ``first`` pulls, if any."""
        return self.graph.inputs[0] if self.input_mode is InputMode.PULLED and first == 0 else None

    def schedule(self, first: int, stop: int) -> RowSchedule:
        """Return ops[first:stop] as a row stream; the latest one is remembered, as tilings ask for it many times."""
        if (first, stop) not in self.schedules:
            self.schedules.clear()
            self.schedules[first, stop] = stream_rows(self.facts, first, stop, pulled=self.pulled_by(first))
        return self.schedules[first, stop]

    def remember(self, block: tuple[int, int]) -> dict[tuple[int, bool], list[dict[int, Range]] | None]:
        """Return the ranges of tilings of one block that were worked out so far; the latest block is remembered."""
        if block not in self.ranges:
            self.ranges.clear()
            self.ranges[block] = {}
        return self.ranges[block]

    def external(self, tensor: int) -> bool:
        """Whether a tensor lies in the caller's memory."""
        return self.input_mode is InputMode.EXTERNAL and tensor == self.graph.inputs[0]


def _item_name(graph: PatchGraph, key: int) -> str:
    if key >= 0:
        return graph.tensors[key].name
    return "kernel scratch" if key == SCRATCH else f"the accumulator of {graph.ops[ACCUMULATOR - key].name}"


def make_block(
    context: EdgeContext,
    where: tuple[EdgeKind, int, int, tuple[int, int]],
    stores: list[Store],
    passes: tuple[Pass, ...],
    macs: int,
) -> Block:
    """Complete a block with its accumulators and scratch; ``where`` is kind, first, stop, grid."""
    kind, first, stop, grid = where
    ops = context.graph.ops[first:stop]
    sums = tuple(
        Item(ACCUMULATOR - first - i, op.accumulator_bytes, np.array([0]), np.array([NEVER]))
        for i, op in enumerate(ops)
        if op.reduces
    )
    scratch = max(op.scratch_bytes for op in ops)
    return Block(kind, first, stop, grid, tuple(stores), sums, scratch, passes, macs)
