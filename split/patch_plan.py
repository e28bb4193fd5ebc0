"""The result of patch planning: segments with buffers at fixed arena offsets and the row steps that fill them.

A plan is executed segment by segment: do ``moves``, clear the accumulators, then for every pass run its steps in order.
An element (tensor t, row r, column x, channel c) of a buffer lies at

    arena + buffer.offset + (r % buffer.rows) * buffer.row_bytes + (x - base) * channels + c

where ``base`` is 0 for a buffer of full width and the pass's ``Extent.x0`` of that tensor for a ``local`` one. A row
outside [0, height) is a border (NULL). A buffer with ``row_offsets`` has an address of its own for every row instead
(``PlanRequest.row_tables``); it is never local and never read as one contiguous block.

Buffers of one segment may share addresses: the planner proves (and ``check_plan`` re-checks by executing the steps)
that no step writes over bytes that a later step, or the step itself, still reads; the one exception is an exact
in-place row (``PatchOp.in_place``): same address for output and input row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from split.patch_graph import PatchGraph, PatchGraphError

ROW_TABLE_REACH = 4 * 0xFFFF  # largest row address: tables hold 16-bit word addresses


class EdgeKind(str, Enum):
    """How the operators of one segment are scheduled."""

    LAYER = "layer"  # one operator over all its rows
    STREAM = "stream"  # several operators, row rings, one pass, nothing computed twice
    TILE = "tile"  # stream in several passes, each over a range of columns; column halos are recomputed
    PATCH = "patch"  # MCUNetV2: p x q passes, each operator by operator over its halo range; halos are recomputed


class InputMode(str, Enum):
    """Where the first network input lives. Further inputs are always resident."""

    RESIDENT = "resident"  # in the arena, intact until its last reader's segment is done
    OVERWRITTEN = "overwritten"  # in the arena, rows are reused as soon as they are consumed
    PULLED = "pulled"  # a callback writes one row at a time into a ring
    EXTERNAL = "external"  # the caller's own memory, random access, not counted


class StepKind(str, Enum):
    """What a step does; see :class:`Step`."""

    ROWS = "rows"
    PULL = "pull"
    ACCUMULATE = "accumulate"
    FINISH = "finish"


@dataclass(frozen=True)
class Step:
    """A run of ``count`` rows of one operator, ascending from ``row``.

    ROWS: compute output rows of ops[op] at columns [x0, x1) of the pass's extent of its output tensor.
    PULL: the callback fills rows of tensor graph.inputs[0] (op is -1); always full width.
    ACCUMULATE: add *input* rows, columns [x0, x1) of the pass's extent of the input tensor, to ops[op]'s accumulator.
    FINISH: write the output of the reducing ops[op] from its accumulator (row 0, count 1).
    """

    kind: StepKind
    op: int
    row: int
    count: int = 1


@dataclass(frozen=True)
class Extent:
    """The part of a tensor that one pass produces (or, for a segment input, reads): rows [y0, y1), columns [x0, x1)."""

    tensor: int
    y0: int
    y1: int
    x0: int
    x1: int


@dataclass(frozen=True)
class Pass:
    """One sweep of a segment: a layer or stream segment has one, a tile or patch segment one per tile or patch.

    All passes of a stream or tile segment have equal steps (the same tuple object).
    """

    extents: tuple[Extent, ...]  # one for each tensor that the segment reads or writes
    steps: tuple[Step, ...]

    def extent(self, tensor: int) -> Extent:
        """Return the extent of one tensor of the segment."""
        return next(e for e in self.extents if e.tensor == tensor)


@dataclass(frozen=True)
class Buffer:
    """Storage of one tensor in one segment: a ring of ``rows`` rows (rows = height: a plain tensor)."""

    tensor: int
    offset: int  # bytes from the arena start; -1: the caller's own memory (InputMode.EXTERNAL)
    rows: int
    row_bytes: int  # distance between rows
    local: bool = False  # addresses start at the pass's x0, not at column 0
    row_offsets: tuple[int, ...] = ()  # if not empty: row r lies at arena + row_offsets[r] (-1: never produced)

    @property
    def size_bytes(self) -> int:
        """Bytes occupied."""
        return self.rows * self.row_bytes


@dataclass(frozen=True)
class Accumulator:
    """int32 accumulator of one reducing operator, 4-byte aligned, zeroed at the start of its segment."""

    op: int
    offset: int
    size_bytes: int


@dataclass(frozen=True)
class Move:
    """memmove of a whole tensor before a segment starts (ranges may overlap)."""

    tensor: int
    source: int
    target: int
    size_bytes: int


@dataclass(frozen=True)
class Segment:
    """Operators [first_op, last_op] of the graph under one schedule.

    ``buffers`` holds every tensor that is read, written or merely kept alive during the segment; a tensor that lives on
    has the same offset in the next segment unless that one starts with a Move of it.
    """

    kind: EdgeKind
    first_op: int
    last_op: int
    buffers: tuple[Buffer, ...]
    accumulators: tuple[Accumulator, ...]
    scratch_offset: int
    scratch_bytes: int  # largest scratch of the segment's operators
    moves: tuple[Move, ...]
    passes: tuple[Pass, ...]
    macs: int  # with recomputation
    arena_bytes: int  # end of the highest byte used

    def buffer(self, tensor: int) -> Buffer:
        """Return the storage of one tensor during this segment."""
        return next(b for b in self.buffers if b.tensor == tensor)


@dataclass(frozen=True)
class FrontPoint:
    """One point of the Pareto front: no schedule of the space needs both fewer bytes and fewer MACs."""

    arena_bytes: int
    macs: int
    mac_factor: float


@dataclass(frozen=True)
class Plan:
    """A complete schedule of a network with one static arena."""

    graph: PatchGraph
    input_mode: InputMode
    segments: tuple[Segment, ...]
    arena_bytes: int
    live_bound_bytes: int  # no placement of this schedule's buffers can be smaller
    certificate: (
        str  # "live-bound" (arena = bound), "exhaustive" (search space exhausted) or "greedy" (search cut short)
    )
    macs: int
    mac_factor: float  # macs / graph.macs


@dataclass(frozen=True)
class PlanRequest:
    """What the caller wants of a plan.

    Attributes:
        schedule: ``"layer"``, ``"patch"``, ``"stream"`` or ``"auto"`` (all edge kinds).
        input_mode: Where the first input lives.
        max_ram_bytes: The arena must not be larger; None: no limit.
        max_mac_factor: MACs / MACs without recomputation must not be larger; None: no limit with ``optimise`` "speed".
        optimise: ``"ram"``: fewest bytes within max_mac_factor, then fewest MACs; ``"speed"``: fewest MACs within
            max_ram_bytes, then fewest bytes.
        alignment: Every buffer offset is a multiple of this, itself a multiple of 4 (accumulators are int32).
        row_tables: Rows of rings may get single addresses (``Buffer.row_offsets``), so that rings share memory: fewer
            bytes of RAM for one table entry of flash per row.
    """

    schedule: str = "auto"
    input_mode: InputMode = InputMode.OVERWRITTEN
    max_ram_bytes: int | None = None
    max_mac_factor: float | None = 1.0
    optimise: str = "ram"
    alignment: int = 4
    row_tables: bool = True

    def __post_init__(self) -> None:
        """Check the limit that is no integer.

        Raises:
            PatchGraphError: ``max_mac_factor`` is NaN or infinite.
        """
        if self.max_mac_factor is not None and not math.isfinite(self.max_mac_factor):
            raise PatchGraphError(
                f"Wanted a finite number for --max-macs-factor, found {self.max_mac_factor}. "
                "1 computes nothing twice, 1.3 allows 30 % more work, a large number as much as helps."
            )
