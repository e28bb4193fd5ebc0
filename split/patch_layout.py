"""Give the blocks of a schedule their addresses: one arena for all, tensors that cross a border stay put or are moved.

Each block alone needs at least its own placement; the arena is the largest of these. A tensor that crosses from one
block into the next keeps its address if the next block can be placed around it, otherwise a memmove brings it to where
that block wants it, so the arena never has to be larger than the worst block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from split.arena import Placement, align_up
from split.patch_block import ACCUMULATOR, SCRATCH, Block, Store
from split.patch_graph import PatchGraph
from split.patch_plan import Accumulator, Buffer, Move, Segment
from split.patch_reads import Range

BEAM = 4  # partial layouts kept per block border
GROWTH = 50  # the arena grows by 1/GROWTH while the blocks cannot be joined


@dataclass(frozen=True)
class _State:
    """A layout of the blocks so far."""

    moved_bytes: int
    offsets: dict[int, int]  # of every tensor alive at the border
    placements: tuple[Placement, ...]
    moves: tuple[tuple[Move, ...], ...]


def lay_out(
    graph: PatchGraph, blocks: Sequence[Block], placements: Sequence[Placement], alignment: int
) -> list[Segment]:
    """Place all blocks in one arena of max(placement sizes) bytes with few moved bytes.

    Args:
        graph: The network.
        blocks: The schedule.
        placements: Each block's own placement.
        alignment: Offsets are multiples of it.

    Returns:
        One segment per block. If tensors would have to change places without room to do so, the arena grows a little.
    """
    limit = max(p.size_bytes for p in placements)
    while True:
        best = _lay_out_within(graph, list(zip(blocks, placements, strict=True)), limit, alignment)
        if best is not None:
            rows = zip(blocks, best.placements, best.moves, strict=True)
            return [_segment(graph, block, placement, moves) for block, placement, moves in rows]
        limit = align_up(limit + limit // GROWTH + 1, alignment)


def _lay_out_within(
    graph: PatchGraph, steps: Sequence[tuple[Block, Placement]], limit: int, alignment: int
) -> _State | None:
    """Beam search over the block borders."""
    states = [_State(0, {}, (), ())]
    for number, (block, alone) in enumerate(steps):
        after = _crossing(steps[number + 1][0]) if number + 1 < len(steps) else []
        roots = {s.tensor: s.shares for s in block.stores}
        grown: list[_State] = []
        for state in states:
            for candidate in _candidates(block, alone, state, limit, (alignment, after)):
                moves = _moves(graph, block, state.offsets, candidate, (limit, alignment))
                if moves is None:
                    continue
                moved = state.moved_bytes + sum(m.size_bytes for m in moves)
                offsets = {t: candidate.offsets[roots[t]] for t in after if t in roots}
                grown.append(_State(moved, offsets, (*state.placements, candidate), (*state.moves, tuple(moves))))
        states = _distinct(grown)[:BEAM]
    return states[0] if states else None


def _distinct(states: list[_State]) -> list[_State]:
    """Sort by bytes moved and keep one state per set of offsets."""
    kept: dict[tuple[tuple[int, int], ...], _State] = {}
    for state in sorted(states, key=lambda s: s.moved_bytes):
        kept.setdefault(tuple(sorted(state.offsets.items())), state)
    return list(kept.values())


def _crossing(block: Block) -> list[int]:
    """Tensors that exist before a block: they have slots born before its first step."""
    return [s.tensor for s in block.stores if s.shares == s.tensor and int(s.item.births.min()) < 0]


def _candidates(
    block: Block, alone: Placement, state: _State, limit: int, wanted: tuple[int, list[int]]
) -> list[Placement]:
    """Placements around what exists, then around part of it, then free; the rest has to move."""
    alignment, after = wanted
    fixed = {t: state.offsets[t] for t in _crossing(block) if t in state.offsets}
    roots = {s.tensor: s.shares for s in block.stores}
    ends = [roots[t] for t in after if t in roots and roots[t] not in fixed]
    found = _around(block, fixed, limit, alignment, [(), ends])
    if found or not fixed:
        return found or [alone]
    if len(fixed) > 1:
        for tensor, offset in fixed.items():
            others = [t for t in fixed if t != tensor]
            found += _around(block, {tensor: offset}, limit, alignment, [(), ends, others])
    return [*found, alone, *_around(block, {}, limit, alignment, [list(fixed), ends])]


def _around(
    block: Block, fixed: dict[int, int], limit: int, alignment: int, highs: Sequence[Sequence[int]]
) -> list[Placement]:
    found = [block.place_around(fixed, limit, alignment, high) for high in highs]
    return [placement for placement in found if placement is not None]


def _moves(
    graph: PatchGraph, block: Block, before: dict[int, int], placement: Placement, room: tuple[int, int]
) -> list[Move] | None:
    """Order the memmoves so that none clobbers a tensor that still has to move or has arrived; None if impossible.

    Tensors that must change places go through a free gap of the arena; ``room`` is its size and the alignment.
    """
    pending: list[Move] = []
    settled: list[Range] = []
    for tensor in _crossing(block):
        size = graph.tensors[tensor].size_bytes
        target = placement.offsets[tensor]
        if tensor in before and before[tensor] != target:
            pending.append(Move(tensor, before[tensor], target, size))
        else:
            settled.append((target, target + size))
    ordered: list[Move] = []
    while pending:
        ready = next((m for m in pending if _is_clear(m.target, m, pending, settled)), None)
        if ready is not None:
            pending.remove(ready)
            settled.append((ready.target, ready.target + ready.size_bytes))
            ordered.append(ready)
            continue
        step_aside = _step_aside(pending, settled, room)
        if step_aside is None or len(ordered) > 2 * len(before):
            return None
        move, gap = step_aside
        ordered.append(Move(move.tensor, move.source, gap, move.size_bytes))
        pending[pending.index(move)] = Move(move.tensor, gap, move.target, move.size_bytes)
    return ordered


def _step_aside(pending: list[Move], settled: list[Range], room: tuple[int, int]) -> tuple[Move, int] | None:
    """Find a tensor and a gap outside of every source and target."""
    limit, alignment = room
    goals = [(m.target, m.target + m.size_bytes) for m in pending]
    for move in sorted(pending, key=lambda m: m.size_bytes):
        for gap in sorted({0, *(align_up(high, alignment) for _, high in settled + goals + _sources(pending))}):
            if gap + move.size_bytes <= limit and _is_clear(gap, move, pending, settled + goals):
                return move, gap
    return None


def _sources(moves: list[Move]) -> list[Range]:
    return [(m.source, m.source + m.size_bytes) for m in moves]


def _is_clear(target: int, move: Move, pending: list[Move], settled: list[Range]) -> bool:
    occupied = _sources([m for m in pending if m is not move]) + settled
    return all(target + move.size_bytes <= low or high <= target for low, high in occupied)


def _buffer(graph: PatchGraph, store: Store, placement: Placement) -> Buffer:
    if not store.scattered:
        return Buffer(store.tensor, placement.offsets[store.shares], store.rows, store.row_bytes, store.local)
    height = graph.tensors[store.tensor].height
    rows = tuple(placement.rows.get((store.shares, row), -1) for row in range(height))
    return Buffer(store.tensor, min(r for r in rows if r >= 0), height, store.row_bytes, row_offsets=rows)


def _segment(graph: PatchGraph, block: Block, placement: Placement, moves: tuple[Move, ...]) -> Segment:
    offsets = placement.offsets
    buffers = [_buffer(graph, store, placement) for store in block.stores]
    external = {e.tensor for e in block.passes[0].extents} - {s.tensor for s in block.stores}
    for tensor in sorted(external):
        shape = graph.tensors[tensor]
        buffers.append(Buffer(tensor, -1, shape.height, shape.row_bytes))
    return Segment(
        kind=block.kind,
        first_op=block.first,
        last_op=block.stop - 1,
        buffers=tuple(buffers),
        accumulators=tuple(Accumulator(ACCUMULATOR - i.key, offsets[i.key], i.row_bytes) for i in block.accumulators),
        scratch_offset=offsets.get(SCRATCH, 0),
        scratch_bytes=block.scratch_bytes,
        moves=moves,
        passes=block.passes,
        macs=block.macs,
        arena_bytes=placement.size_bytes,
    )
