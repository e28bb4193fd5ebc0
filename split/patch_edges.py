"""All ways to run a block of operators: which kinds and grids exist, and the block each one gives."""

from __future__ import annotations

from split.patch_block import Block, EdgeContext
from split.patch_plan import EdgeKind
from split.patch_stream_edge import stream_block
from split.patch_tile_edge import patch_block, tile_block, tiled_tensor

MOST_TILES = 16
PATCH_SIDES = (1, 2, 3, 4, 5, 6, 8)

Grid = tuple[int, int]


def possible_grids(
    context: EdgeContext, first: int, stop: int, kinds: tuple[EdgeKind, ...]
) -> list[tuple[EdgeKind, Grid]]:
    """Return the kinds and grids (patches down, patches across) worth trying for ops[first:stop]."""
    found: list[tuple[EdgeKind, Grid]] = []
    single = EdgeKind.LAYER if stop == first + 1 else EdgeKind.STREAM
    if single in kinds:
        found.append((single, (1, 1)))
    pulled = context.pulled_by(first) is not None
    target = None if pulled or stop < first + 2 else tiled_tensor(context, first, stop)
    if target is None:
        return found
    shape = context.graph.tensors[target]
    if EdgeKind.TILE in kinds:
        found += [(EdgeKind.TILE, (1, across)) for across in _even_counts(shape.width, MOST_TILES)]
    if EdgeKind.PATCH in kinds:
        downs = [1, *_even_counts(shape.height, PATCH_SIDES[-1])]
        acrosses = [1, *_even_counts(shape.width, PATCH_SIDES[-1])]
        grids = [(p, q) for p in downs for q in acrosses if p in PATCH_SIDES and q in PATCH_SIDES and p * q > 1]
        found += [(EdgeKind.PATCH, grid) for grid in grids]
    return found


def _even_counts(extent: int, most: int) -> list[int]:
    """Numbers of parts from 2 up that give different largest parts."""
    counts: dict[int, int] = {}
    for count in range(2, min(extent, most) + 1):
        counts.setdefault(-(-extent // count), count)
    return list(counts.values())


def build_block(
    context: EdgeContext, kind: EdgeKind, first: int, stop: int, grid: Grid, *, sketch: bool = False
) -> Block | None:
    """Return ops[first:stop] under a kind and grid, or None if the operators cannot run that way.

    A sketch may lack all passes but the first; everything else is complete.
    """
    if kind is EdgeKind.TILE:
        return tile_block(context, first, stop, grid[1], sketch=sketch)
    if kind is EdgeKind.PATCH:
        return patch_block(context, first, stop, grid, sketch=sketch)
    return stream_block(context, first, stop)
