"""From a PatchGraph and a PlanRequest to a Plan: enumerate edges, search, choose, place, explain a misfit."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

from device_profiles.errors import FitError
from split.arena import Placement
from split.patch_block import Block, EdgeContext
from split.patch_edges import build_block, possible_grids
from split.patch_graph import PatchGraph, PatchGraphError
from split.patch_layout import lay_out
from split.patch_plan import ROW_TABLE_REACH, EdgeKind, FrontPoint, Plan, PlanRequest
from split.patch_reads import study
from split.patch_search import Edge, Path, search, tidy
from split.patch_stream_edge import scattered_block

LONGEST_BLOCK = 200  # operators; the C step format holds 256 in a segment
MOST_BLOCKS = 12_000  # about; longer networks get shorter blocks, so that planning stays quick
UNUSABLE = 1 << 61  # bytes of an edge that cannot be taken
SCHEDULES = {
    "layer": (EdgeKind.LAYER,),
    "patch": (EdgeKind.LAYER, EdgeKind.PATCH),
    "stream": (EdgeKind.LAYER, EdgeKind.STREAM),
    "auto": (EdgeKind.LAYER, EdgeKind.STREAM, EdgeKind.TILE, EdgeKind.PATCH),
}


def plan(graph: PatchGraph, request: PlanRequest | None = None) -> Plan:
    """Schedule a network and give every buffer an address.

    Args:
        graph: The network.
        request: What is wanted; the default is the least RAM without recomputation.

    Returns:
        The chosen plan, laid out in one arena.

    Raises:
        PatchGraphError: The graph contradicts itself or the request names no schedule.
        FitError: No schedule of the space meets the request; the message names the missing bytes and the layer.
    """
    return _Planner(graph, request or PlanRequest()).plan()


def pareto_front(graph: PatchGraph, request: PlanRequest | None = None) -> tuple[FrontPoint, ...]:
    """Return every schedule that nothing beats in both RAM and MACs, ascending in RAM; limits are ignored.

    The bytes are those of the largest segment. A plan may need a few more where tensors that pass from segment to
    segment find no room to change places; it then says how many.
    """
    return _front(graph, _Planner(graph, replace(request or PlanRequest(), max_mac_factor=None)).paths())


def plan_and_front(graph: PatchGraph, request: PlanRequest | None = None) -> tuple[Plan, tuple[FrontPoint, ...]]:
    """Return ``plan`` and ``pareto_front`` of one search, in about the time of the latter."""
    request = request or PlanRequest()
    planner = _Planner(graph, replace(request, max_mac_factor=None))
    paths = planner.paths()
    planner.request = request
    return planner.finish(paths), _front(graph, paths)


def _front(graph: PatchGraph, paths: list[Path]) -> tuple[FrontPoint, ...]:
    return tuple(FrontPoint(p.arena_bytes, p.macs, _factor(p.macs, graph)) for p in paths)


def _factor(macs: int, graph: PatchGraph) -> float:
    return macs / graph.macs if graph.macs else 1.0


class _Planner:
    """Caches blocks and placements of one planning run."""

    def __init__(self, graph: PatchGraph, request: PlanRequest) -> None:
        if request.schedule not in SCHEDULES:
            raise PatchGraphError(f"Schedule {request.schedule!r} is unknown; take one of {', '.join(SCHEDULES)}.")
        if not graph.ops:
            raise PatchGraphError(f"{graph.name} has no operators to schedule.")
        self.graph = graph
        self.request = request
        self.context = EdgeContext(study(graph), request.input_mode)
        self.all_edges: list[Edge] = []
        self.blocks: dict[Edge, Block] = {}
        self.placements: dict[Edge, Placement] = {}

    def edges(self) -> list[Edge]:
        """Every edge of the request's schedule."""
        count = len(self.graph.ops)
        single = [len(self.context.facts.live_at(i)) == 1 for i in range(count)] + [True]
        longest = max(16, min(LONGEST_BLOCK, MOST_BLOCKS // count))
        found = []
        for first in range(count):
            for stop in range(first + 1, min(first + longest, count) + 1):
                if stop == first + 1 or (single[first] and single[stop]):
                    found += self._edges_between(first, stop)
        return found

    def _edges_between(self, first: int, stop: int) -> list[Edge]:
        """Edges over ops[first:stop]; passes that need no less than one pass, or too many MACs, are left out."""
        found: list[Edge] = []
        whole = self._whole_bytes(first, stop)
        enough = 1 << 62
        spare = self._spare_macs() + sum(op.macs for op in self.graph.ops[first:stop])
        for kind, grid in possible_grids(self.context, first, stop, SCHEDULES[self.request.schedule]):
            passes = kind in (EdgeKind.TILE, EdgeKind.PATCH)
            if passes and whole >= enough:
                break
            block = build_block(self.context, kind, first, stop, grid, sketch=True)
            if block is None or (passes and block.macs > spare):
                continue
            bound = block.live_bound()
            if not passes:
                enough = bound
            runs = len(block.passes[0].steps) * grid[0] * grid[1]
            if not passes or bound < enough:
                found.append(Edge(kind, first, stop, grid, bound, block.macs, runs))
            if kind is EdgeKind.STREAM and self.request.row_tables:
                shared = scattered_block(self.context, block)
                if shared is not None:
                    runs += len(shared.rows)
                    found.append(Edge(kind, first, stop, grid, shared.live_bound(), block.macs, runs, scattered=True))
        return found

    def _whole_bytes(self, first: int, stop: int) -> int:
        """Bytes that exist through all passes of a tiled block."""
        facts = self.context.facts
        whole = set(facts.live_at(first)) | set(facts.live_at(stop))
        return sum(self.graph.tensors[t].size_bytes for t in whole if not self.context.external(t))

    def _spare_macs(self) -> int:
        """MACs that a plan within the request's factor may spend on recomputation."""
        factor = self.request.max_mac_factor
        return 1 << 62 if factor is None else int(Fraction(factor - 1) * self.graph.macs)

    def block(self, edge: Edge) -> Block:
        """Return the block of an edge."""
        if edge not in self.blocks:
            block = build_block(self.context, edge.kind, edge.first, edge.stop, edge.grid)
            if edge.scattered and block is not None:
                block = scattered_block(self.context, block)
            assert block is not None
            self.blocks[edge] = block
        return self.blocks[edge]

    def refine(self, edge: Edge, enough: int) -> int:
        """Place an edge; see :func:`split.patch_search.search`."""
        known = self.placements.get(edge)
        if known is None or known.size_bytes > enough:
            found = self.block(edge).place(self.request.alignment, enough)
            if known is None or found.size_bytes < known.size_bytes:
                self.placements[edge] = found
        size = self.placements[edge].size_bytes
        return UNUSABLE if edge.scattered and size > ROW_TABLE_REACH else size

    def paths(self) -> list[Path]:
        """The Pareto front."""
        self.all_edges = self.edges()
        return search(self.all_edges, len(self.graph.ops), self.refine)

    def plan(self) -> Plan:
        """Choose, lay out and describe."""
        return self.finish(self.paths())

    def finish(self, paths: list[Path]) -> Plan:
        """Make a plan of the path of the front that the request wants."""
        chosen = self._choose(paths)
        chosen = tidy(self.all_edges, len(self.graph.ops), chosen, self.refine)
        placements = [self.placements[edge] for edge in chosen.edges]
        blocks = [self.block(edge) for edge in chosen.edges]
        segments = lay_out(self.graph, blocks, placements, self.request.alignment)
        arena = max(segment.arena_bytes for segment in segments)
        most = self.request.max_ram_bytes
        if most is not None and arena > most:
            raise FitError(
                f"{self.graph.name} needs {arena} B of RAM but {most} B are allowed ({arena - most} B over): its "
                f"segments fit one by one, but tensors that pass between them find no room to move. Allow {arena} B."
            )
        bound = max(edge.bound_bytes for edge in chosen.edges)
        exact = all(p.exact for p in placements if p.size_bytes == arena)
        certificate = "live-bound" if arena - bound < self.request.alignment else "exhaustive" if exact else "greedy"
        return Plan(
            graph=self.graph,
            input_mode=self.request.input_mode,
            segments=tuple(segments),
            arena_bytes=arena,
            live_bound_bytes=bound,
            certificate=certificate,
            macs=chosen.macs,
            mac_factor=_factor(chosen.macs, self.graph),
        )

    def _choose(self, paths: list[Path]) -> Path:
        request = self.request
        most = None if request.max_mac_factor is None else Fraction(request.max_mac_factor) * self.graph.macs
        cheap = [p for p in paths if most is None or p.macs <= most]
        if not cheap:
            least = paths[-1].macs
            raise FitError(
                f"{self.graph.name}: schedule {request.schedule!r} needs at least {least} MACs, a factor of "
                f"{_factor(least, self.graph):.3f}, but {request.max_mac_factor} is the limit. Raise --max-macs-factor."
            )
        fitting = [p for p in cheap if request.max_ram_bytes is None or p.arena_bytes <= request.max_ram_bytes]
        if not fitting:
            raise FitError(self._misfit(cheap[0], paths[0]))
        return fitting[0] if request.optimise == "ram" else fitting[-1]

    def _misfit(self, best: Path, least: Path) -> str:
        assert self.request.max_ram_bytes is not None
        worst = max(best.edges, key=lambda edge: self.placements[edge].size_bytes)
        layer, held = self.block(worst).peak(self.graph)
        over = best.arena_bytes - self.request.max_ram_bytes
        advice = "Try --schedule auto, a row-by-row input, a smaller resolution or a larger board."
        if least.arena_bytes <= self.request.max_ram_bytes:
            advice = f"It fits with --max-macs-factor {_factor(least.macs, self.graph):.2f}."
        return (
            f"{self.graph.name} needs {best.arena_bytes} B of RAM but {self.request.max_ram_bytes} B are allowed "
            f"({over} B over). They are held at layer {layer} by {held}. {advice}"
        )
