"""Blocks in several passes: column tiles that stream their rows, and MCUNetV2's p x q patches.

The tensor at the end of the block is cut into equal parts; each pass computes one part from exactly the rows and
columns it needs (clipped at the true border), so neighbouring passes compute their halos twice, which is counted. If
the block ends in a global pool, the pool's input is cut and every pass adds its part to the accumulator.

Source: MCUNetV2 (arXiv:2110.15352), section 3, with exact instead of uniform ranges; column tiles as in StreamNet
(NeurIPS 2023) without its column cache.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from split.arena import Item
from split.patch_block import Block, EdgeContext, Store, make_block
from split.patch_plan import EdgeKind, Extent, Pass, Step, StepKind
from split.patch_reads import Range, halo_ranges
from split.patch_stream import NEVER, merge_runs, ring_rows


@dataclass(frozen=True)
class _Tiling:
    """What a tiled block is about: ops[first:stop], the tensor that is cut, and whether a pool follows it."""

    first: int
    stop: int
    target: int
    pooled: bool

    @property
    def tiled_stop(self) -> int:
        """One past the last operator that is tiled (a final pool is not)."""
        return self.stop - 1 if self.pooled else self.stop


def tiled_tensor(context: EdgeContext, first: int, stop: int) -> int | None:
    """Return the tensor that passes would cut, or None if ops[first:stop] cannot run in passes."""
    found = _tiling(context, first, stop)
    return None if found is None else found.target


def _tiling(context: EdgeContext, first: int, stop: int) -> _Tiling | None:
    ops = context.graph.ops
    inside = {ops[i].output for i in range(first, stop)}
    leaving = [t for t in context.facts.live_at(stop) if t in inside]
    last = ops[stop - 1]
    if leaving != [last.output] or any(op.reduces for op in ops[first : stop - 1]):
        return None
    target = last.inputs[0].tensor if last.reduces else last.output
    if last.reduces and target not in inside:
        return None
    return _Tiling(first, stop, target, last.reduces)


def _parts(extent: int, count: int) -> list[Range]:
    """Cut [0, extent) into parts whose sizes differ by at most one."""
    return [(extent * i // count, extent * (i + 1) // count) for i in range(count)]


def _ranges(context: EdgeContext, tiling: _Tiling, count: int, *, columns: bool) -> list[dict[int, Range]] | None:
    """Return the ranges of every tensor per part along one axis; grids of one block share them."""
    known = context.remember((tiling.first, tiling.stop))
    if (count, columns) not in known:
        known[count, columns] = _find_ranges(context, tiling, count, columns=columns)
    return known[count, columns]


def _find_ranges(context: EdgeContext, tiling: _Tiling, count: int, *, columns: bool) -> list[dict[int, Range]] | None:
    shape = context.graph.tensors[tiling.target]
    found = []
    for part in _parts(shape.width if columns else shape.height, count):
        targets = {tiling.target: part}
        ranges = halo_ranges(context.facts, tiling.first, tiling.tiled_stop, targets, columns=columns)
        if ranges is None:
            return None
        for op in context.graph.ops[tiling.first : tiling.tiled_stop]:
            if op.whole_rows and columns and ranges[op.output] != (0, context.graph.tensors[op.output].width):
                return None
        found.append(ranges)
    return found


def tile_block(context: EdgeContext, first: int, stop: int, across: int, *, sketch: bool = False) -> Block | None:
    """Return ops[first:stop] streamed over ``across`` column tiles, or None if that is impossible.

    A sketch has only its first pass, enough to weigh it.
    """
    tiling = _tiling(context, first, stop)
    columns = None if tiling is None else _ranges(context, tiling, across, columns=True)
    if tiling is None or columns is None:
        return None
    schedule = context.schedule(first, stop)
    steps = merge_runs(schedule.steps)
    unfinished = _without_finish(steps)
    tensors = context.graph.tensors
    full = {t: (0, tensors[t].height) for t in schedule.lives}
    passes = tuple(
        _pass(context, tiling, (full, ranges), steps if number == across - 1 else unfinished)
        for number, ranges in enumerate(columns[:1] if sketch else columns)
    )
    macs = sum(
        context.graph.ops[op].macs
        * rows
        * _total(columns, context.graph.ops[op].output)
        // (tensors[context.graph.ops[op].output].height * tensors[context.graph.ops[op].output].width)
        for op, rows in schedule.rows_made.items()
        if not context.graph.ops[op].reduces
    )
    stores = []
    for tensor in sorted(schedule.lives):
        life = schedule.lives[tensor]
        if context.external(tensor):
            continue
        if _is_local(context, tiling, tensor):
            rows = ring_rows(life)
            width = max(r[tensor][1] - r[tensor][0] for r in columns)
            used = [(b, d) for b, d in zip(life.births, life.deaths, strict=True) if b != NEVER]
            span = (min(b for b, _ in used), max(d for _, d in used))
            stores.append(_local_store(context, tensor, rows, width, span))
        else:
            stores.append(_whole_store(context, first, tensor))
    return make_block(context, (EdgeKind.TILE, first, stop, (1, across)), stores, passes, macs)


def patch_block(
    context: EdgeContext, first: int, stop: int, grid: tuple[int, int], *, sketch: bool = False
) -> Block | None:
    """Return ops[first:stop] computed patch by patch, operator by operator, or None if that is impossible.

    A sketch has only its first pass, enough to weigh it.
    """
    tiling = _tiling(context, first, stop)
    if tiling is None:
        return None
    rows = _ranges(context, tiling, grid[0], columns=False)
    columns = _ranges(context, tiling, grid[1], columns=True)
    if rows is None or columns is None:
        return None
    passes = []
    for number_down, down in enumerate(rows[:1] if sketch else rows):
        steps = _patch_steps(context, tiling, down)
        unfinished = _without_finish(steps)
        for number_across, right in enumerate(columns[:1] if sketch else columns):
            final = number_down == grid[0] - 1 and number_across == grid[1] - 1
            passes.append(_pass(context, tiling, (down, right), steps if final else unfinished))
    macs = 0
    for op in context.graph.ops[first : tiling.tiled_stop]:
        shape = context.graph.tensors[op.output]
        macs += op.macs * _total(rows, op.output) * _total(columns, op.output) // (shape.height * shape.width)
    stores = _patch_stores(context, tiling, rows, columns)
    return make_block(context, (EdgeKind.PATCH, first, stop, grid), stores, tuple(passes), macs)


def _total(ranges: list[dict[int, Range]], tensor: int) -> int:
    """Positions of a tensor computed over all parts."""
    return sum(r[tensor][1] - r[tensor][0] for r in ranges)


def _patch_steps(context: EdgeContext, tiling: _Tiling, rows: dict[int, Range]) -> tuple[Step, ...]:
    steps = []
    for index in range(tiling.first, tiling.tiled_stop):
        start, stop = rows[context.graph.ops[index].output]
        steps.append(Step(StepKind.ROWS, index, start, stop - start))
    if tiling.pooled:
        start, stop = rows[tiling.target]
        steps.append(Step(StepKind.ACCUMULATE, tiling.stop - 1, start, stop - start))
        steps.append(Step(StepKind.FINISH, tiling.stop - 1, 0))
    return tuple(steps)


def _without_finish(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """The same object if there is nothing to leave out, so that passes share one table."""
    if steps[-1].kind is not StepKind.FINISH:
        return steps
    return steps[:-1]


def _pass(
    context: EdgeContext, tiling: _Tiling, boxes: tuple[dict[int, Range], dict[int, Range]], steps: tuple[Step, ...]
) -> Pass:
    rows, columns = boxes
    extents = [Extent(t, *rows[t], *columns[t]) for t in sorted(columns)]
    if tiling.pooled:
        extents.append(Extent(context.graph.ops[tiling.stop - 1].output, 0, 1, 0, 1))
    return Pass(tuple(extents), steps)


def _is_local(context: EdgeContext, tiling: _Tiling, tensor: int) -> bool:
    """Whether a tensor exists only inside one pass."""
    produced = context.facts.producer[tensor]
    return tiling.first <= produced < tiling.stop and tensor != context.graph.ops[tiling.stop - 1].output


def _whole_store(context: EdgeContext, first: int, tensor: int) -> Store:
    """A tensor that lives through all passes."""
    shape = context.graph.tensors[tensor]
    exists = context.facts.producer[tensor] < first
    births = np.full(shape.height, -1 if exists else 0, dtype=np.int64)
    deaths = np.full(shape.height, NEVER, dtype=np.int64)
    return Store(tensor, shape.height, shape.row_bytes, False, tensor, Item(tensor, shape.row_bytes, births, deaths))


def _local_store(context: EdgeContext, tensor: int, rows: int, width: int, span: tuple[int, int]) -> Store:
    """A buffer inside the passes, alive as a whole from its first write to its last read in a pass."""
    row_bytes = width * context.graph.tensors[tensor].channels
    item = Item(tensor, rows * row_bytes, np.array([span[0]]), np.array([span[1]]))
    return Store(tensor, rows, row_bytes, True, tensor, item)


def _patch_stores(
    context: EdgeContext, tiling: _Tiling, rows: list[dict[int, Range]], columns: list[dict[int, Range]]
) -> list[Store]:
    alive = set(context.facts.live_at(tiling.first)) | set(context.facts.live_at(tiling.stop))
    inside = {op.output for op in context.graph.ops[tiling.first : tiling.stop]}
    stores = []
    for tensor in sorted(alive | inside):
        if context.external(tensor):
            continue
        if _is_local(context, tiling, tensor):
            height = max(r[tensor][1] - r[tensor][0] for r in rows)
            width = max(c[tensor][1] - c[tensor][0] for c in columns)
            span = (context.facts.producer[tensor], context.facts.last_use[tensor])
            stores.append(_local_store(context, tensor, height, width, span))
        else:
            stores.append(_whole_store(context, tiling.first, tensor))
    return stores
