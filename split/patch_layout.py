"""Give the blocks of a schedule their addresses: one arena for all, tensors that cross a border stay put or are moved.

Each block alone needs at least its own placement; the arena is the largest of these. A tensor that crosses from one
block into the next keeps its address if the next block can be placed around it, otherwise a memmove brings it to where
that block wants it, so the arena never has to be larger than the worst block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from split.arena import Placement, place_around
from split.patch_block import ACCUMULATOR, SCRATCH, Block
from split.patch_graph import PatchGraph
from split.patch_plan import Accumulator, Buffer, Move, Segment

BEAM = 4  # partial layouts kept per block border


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
    """Place all blocks in one arena of max(placement sizes) bytes with few moves.

    Args:
        graph: The network.
        blocks: The schedule.
        placements: Each block's own placement; only its size and, if a move is needed, its offsets count.
        alignment: Offsets are multiples of it.
    """
    limit = max(p.size_bytes for p in placements)
    states = [_State(0, {}, (), ())]
    for number, (block, alone) in enumerate(zip(blocks, placements, strict=True)):
        after = _crossing(blocks[number + 1]) if number + 1 < len(blocks) else []
        grown: list[_State] = []
        for state in states:
            for candidate in _candidates(block, alone, state, limit, (alignment, after)):
                moves = _moves(graph, block, state.offsets, candidate)
                if moves is None:
                    continue
                moved = state.moved_bytes + sum(m.size_bytes for m in moves)
                roots = {s.tensor: s.shares for s in block.stores}
                offsets = {t: candidate.offsets[roots[t]] for t in after if t in roots}
                grown.append(_State(moved, offsets, (*state.placements, candidate), (*state.moves, tuple(moves))))
        grown.sort(key=lambda s: s.moved_bytes)
        states = grown[:BEAM]
    best = states[0]
    rows = zip(blocks, best.placements, best.moves, strict=True)
    return [_segment(graph, block, placement, moves) for block, placement, moves in rows]


def _crossing(block: Block) -> list[int]:
    """Tensors that exist before a block: they have slots born before its first step."""
    return [s.tensor for s in block.stores if s.shares == s.tensor and int(s.item.births.min()) < 0]


def _candidates(
    block: Block, alone: Placement, state: _State, limit: int, wanted: tuple[int, list[int]]
) -> list[Placement]:
    alignment, after = wanted
    items = block.items()
    fixed = {t: state.offsets[t] for t in _crossing(block) if t in state.offsets}
    roots = {s.tensor: s.shares for s in block.stores}
    ends = [roots[t] for t in after if t in roots and roots[t] not in fixed]
    found: list[Placement] = []
    for high in ((), ends):
        around = place_around(items, fixed, limit, alignment=alignment, high=high)
        if around is not None:
            found.append(around)
    if not found or fixed:
        found.append(alone)
    return found


def _moves(graph: PatchGraph, block: Block, before: dict[int, int], placement: Placement) -> list[Move] | None:
    """Order the memmoves so that none clobbers a tensor that still has to move or has arrived; None if impossible."""
    pending = []
    settled: list[tuple[int, int]] = []
    for tensor in _crossing(block):
        size = graph.tensors[tensor].size_bytes
        target = placement.offsets[tensor]
        if tensor in before and before[tensor] != target:
            pending.append(Move(tensor, before[tensor], target, size))
        else:
            settled.append((target, target + size))
    ordered: list[Move] = []
    while pending:
        ready = next((m for m in pending if _clear(m, pending, settled)), None)
        if ready is None:
            return None
        pending.remove(ready)
        settled.append((ready.target, ready.target + ready.size_bytes))
        ordered.append(ready)
    return ordered


def _clear(move: Move, pending: list[Move], settled: list[tuple[int, int]]) -> bool:
    occupied = [(m.source, m.source + m.size_bytes) for m in pending if m is not move] + settled
    return all(move.target + move.size_bytes <= low or high <= move.target for low, high in occupied)


def _segment(graph: PatchGraph, block: Block, placement: Placement, moves: tuple[Move, ...]) -> Segment:
    offsets = placement.offsets
    buffers = [Buffer(s.tensor, offsets[s.shares], s.rows, s.row_bytes, s.local) for s in block.stores]
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
