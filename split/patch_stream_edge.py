"""Blocks in one pass over full-width rows: the layer edge (one operator) and the stream edge (several).

Tensors at the ends of the block are whole, tensors inside are rings, and an element-wise operator whose input row dies
with it writes over that row, so both share one buffer.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from split.arena import Item, Row
from split.patch_block import Block, EdgeContext, Store, make_block
from split.patch_graph import PatchGraph
from split.patch_plan import EdgeKind, Extent, InputMode, Pass
from split.patch_stream import NEVER, RowLife, RowSchedule, merge_runs, ring_rows


def stream_block(context: EdgeContext, first: int, stop: int) -> Block:
    """Return ops[first:stop] as one row stream (one operator: the layer edge)."""
    schedule = context.schedule(first, stop)
    tensors = context.graph.tensors
    extents = {t: (0, tensors[t].height, 0, tensors[t].width) for t in schedule.lives}
    one_pass = Pass(tuple(Extent(t, *box) for t, box in sorted(extents.items())), merge_runs(schedule.steps))
    macs = sum(_rows_macs(context.graph, op, rows) for op, rows in schedule.rows_made.items())
    kind = EdgeKind.LAYER if stop == first + 1 else EdgeKind.STREAM
    stores = _stream_stores(context, first, stop, schedule)
    return make_block(context, (kind, first, stop, (1, 1)), stores, (one_pass,), macs)


def scattered_block(context: EdgeContext, block: Block) -> Block | None:
    """Return a stream block whose rings share memory row by row, or None if it has no rings to share.

    Tensors at the ends of the block stay contiguous, and so do those that an operator reads as one piece.
    """
    ops = context.graph.ops[block.first : block.stop]
    kept = {*context.facts.live_at(block.first), *context.facts.live_at(block.stop)}
    kept -= {t for t in kept if t == context.pulled_by(block.first) and t not in context.facts.live_at(block.stop)}
    kept |= {operand.tensor for op in ops if op.whole_rows for operand in op.inputs}
    lives = context.schedule(block.first, block.stop).lives
    whole = {s.shares for s in block.stores if s.tensor in kept or context.graph.tensors[s.tensor].height == 1}
    stores = tuple(replace(s, scattered=s.shares not in whole) for s in block.stores)
    rows = [row for s in stores if s.scattered and s.shares == s.tensor for row in _rows(s, stores, lives)]
    return replace(block, stores=stores, rows=tuple(rows)) if rows else None


def _rows(store: Store, stores: tuple[Store, ...], lives: dict[int, RowLife]) -> list[Row]:
    """Lives of single rows, over all tensors that share the buffer."""
    members = [lives[s.tensor] for s in stores if s.shares == store.tensor]
    found = []
    for row, birth in enumerate(lives[store.tensor].births):
        if birth != NEVER:
            death = max(life.deaths[row] for life in members)
            found.append(Row(store.tensor, row, birth, death, store.row_bytes))
    return found


def _stream_stores(context: EdgeContext, first: int, stop: int, schedule: RowSchedule) -> list[Store]:
    """Buffers of a full-width stream: rings inside, whole tensors at the ends, in-place rows merged."""
    lives = _with_input_mode(context, schedule.lives)
    shares = _in_place_roots(context, first, stop, lives)
    merged = {root: _merged_life(lives, shares, root) for root in set(shares.values())}
    ends: set[int | None] = {*context.facts.live_at(first), *context.facts.live_at(stop)}
    if context.pulled_by(first) not in context.facts.live_at(stop):
        ends -= {context.pulled_by(first)}
    whole = {shares[t] for t in lives if t in ends}
    stores = []
    for tensor in sorted(lives):
        if context.external(tensor):
            continue
        shape = context.graph.tensors[tensor]
        root = shares[tensor]
        rows = shape.height if root in whole else ring_rows(merged[root])
        item = _slots(root, rows, shape.row_bytes, merged[root])
        stores.append(Store(tensor, rows, shape.row_bytes, False, root, item))
    return stores


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
            if same and dies and not context.external(operand.tensor):
                roots[op.output] = roots[operand.tensor]
                break
    return roots


def _merged_life(lives: dict[int, RowLife], roots: dict[int, int], root: int) -> RowLife:
    """Life of a buffer that several tensors use one after the other, row by row."""
    members = [lives[t] for t, r in roots.items() if r == root]
    deaths = tuple(max(life.deaths[row] for life in members) for row in range(len(lives[root].deaths)))
    return RowLife(lives[root].births, deaths)


def _rows_macs(graph: PatchGraph, op: int, rows: int) -> int:
    """MACs of some rows of an operator."""
    operator = graph.ops[op]
    total = graph.tensors[operator.inputs[0].tensor if operator.reduces else operator.output].height
    return operator.macs * rows // total


def _slots(tensor: int, rows: int, row_bytes: int, life: RowLife) -> Item:
    """Life of every ring slot: from the first row in it to the last."""
    births = np.full(rows, NEVER, dtype=np.int64)
    deaths = np.full(rows, -2, dtype=np.int64)
    for row, (birth, death) in enumerate(zip(life.births, life.deaths, strict=True)):
        if birth != NEVER:
            births[row % rows] = min(births[row % rows], birth)
            deaths[row % rows] = max(deaths[row % rows], death)
    return Item(tensor, row_bytes, births, deaths)
