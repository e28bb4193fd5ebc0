"""Choose the blocks: all Pareto-optimal paths from the network's inputs to its outputs, RAM against MACs.

Nodes are positions between operators, edges are blocks with a RAM need and a MAC count. The RAM of a path is the
largest of its edges, its MACs their sum. Label-correcting dynamic programming keeps every non-dominated pair, so the
front is exact over the edges. Edges enter with their live bound; only edges of paths that win are really placed, and a
path stands once all its edges are proven to fit (lazy evaluation).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from split.patch_plan import EdgeKind

MOST_FAILURES = 60  # edges that may turn out larger than their bound before untested ones are given up
UNPROVEN = 1 << 62


@dataclass(frozen=True)
class Edge:
    """One way to execute ops[first:stop]."""

    kind: EdgeKind
    first: int
    stop: int
    grid: tuple[int, int]
    bound_bytes: int
    macs: int
    runs: int  # runs of rows over all passes (and row addresses), the cost that breaks ties
    scattered: bool = False  # rings share memory row by row


@dataclass(frozen=True)
class Path:
    """A schedule: consecutive edges from position 0 to the end."""

    arena_bytes: int
    macs: int
    edges: tuple[Edge, ...]


@dataclass(frozen=True)
class _Label:
    size: int
    macs: int
    edge: int
    parent: _Label | None


def pareto_paths(edges: Sequence[Edge], positions: int, sizes: Sequence[int]) -> list[tuple[int, int, list[int]]]:
    """Return every non-dominated (bytes, MACs, edge indices), ascending in bytes.

    Args:
        edges: All edges, any order.
        positions: The path leads from 0 to this position.
        sizes: RAM of each edge in bytes.
    """
    arriving: list[list[int]] = [[] for _ in range(positions + 1)]
    for index, edge in enumerate(edges):
        arriving[edge.stop].append(index)
    labels: list[list[_Label]] = [[_Label(0, 0, -1, None)]] + [[] for _ in range(positions)]
    for position in range(1, positions + 1):
        fresh = [
            _Label(max(label.size, sizes[index]), label.macs + edges[index].macs, index, label)
            for index in arriving[position]
            for label in labels[edges[index].first]
        ]
        fresh.sort(key=lambda label: (label.size, label.macs))
        kept = labels[position]
        for label in fresh:
            if not kept or label.macs < kept[-1].macs:
                kept.append(label)
    return [(label.size, label.macs, _walk(label)) for label in labels[positions]]


def _walk(label: _Label) -> list[int]:
    found: list[int] = []
    node: _Label | None = label
    while node is not None and node.parent is not None:
        found.append(node.edge)
        node = node.parent
    return found[::-1]


def search(edges: Sequence[Edge], positions: int, refine: Callable[[Edge, int], int]) -> list[Path]:
    """Return the Pareto front with every path proven to fit.

    After MOST_FAILURES disappointments only tested edges and single operators remain, which bounds the time on long
    networks of equal layers; the front is then what the tested edges give.

    Args:
        edges: All edges with their live bounds.
        positions: Number of operators.
        refine: ``refine(edge, enough)`` places an edge and returns the bytes it really needs, searching no further once
            ``enough`` is met.
    """
    sizes = [edge.bound_bytes for edge in edges]
    proven = [UNPROVEN] * len(edges)  # bytes with which an edge is known to fit
    failures = 0
    while True:
        front = pareto_paths(edges, positions, sizes)
        changed = False
        for size, _, path in front:
            for index in path:
                if proven[index] > size:
                    proven[index] = refine(edges[index], size)
                    if proven[index] > size:
                        sizes[index] = proven[index]
                        changed = True
                        failures += 1
        if failures > MOST_FAILURES:
            _drop_unproven(edges, proven, sizes)
        if not changed:
            return [Path(size, macs, tuple(edges[i] for i in path)) for size, macs, path in front]


def _drop_unproven(edges: Sequence[Edge], proven: Sequence[int], sizes: list[int]) -> None:
    """Give up on edges whose bound was never tested; single operators stay, so that a path always exists."""
    for index, edge in enumerate(edges):
        if proven[index] == UNPROVEN and edge.stop > edge.first + 1:
            sizes[index] = UNPROVEN


def tidy(edges: Sequence[Edge], positions: int, path: Path, refine: Callable[[Edge, int], int]) -> Path:
    """Return a path as good in bytes and MACs with the fewest runs of rows.

    Args:
        edges: All edges.
        positions: Number of operators.
        path: The chosen path.
        refine: As for :func:`search`.
    """
    usable = [e for e in edges if e.bound_bytes <= path.arena_bytes]
    while True:
        best: list[tuple[int, int, list[Edge]] | None] = [(0, 0, [])] + [None] * positions
        for edge in sorted(usable, key=lambda e: e.stop):
            before = best[edge.first]
            if before is None:
                continue
            macs, runs = before[0] + edge.macs, before[1] + edge.runs
            known = best[edge.stop]
            if known is None or (macs, runs) < known[:2]:
                best[edge.stop] = (macs, runs, [*before[2], edge])
        final = best[positions]
        assert final is not None
        misfits = {edge for edge in final[2] if refine(edge, path.arena_bytes) > path.arena_bytes}
        if not misfits:
            return Path(path.arena_bytes, final[0], tuple(final[2]))
        usable = [e for e in usable if e not in misfits]
