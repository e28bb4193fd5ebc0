"""Row streaming of a block of operators: the demand-driven order of row steps and the rings it needs.

To produce row r of a tensor, first produce the rows of its inputs that r reads, then emit one step. Nothing is computed
twice, and a residual branch gets exactly the delay it needs. One operator alone gives the layer schedule.
"""

from __future__ import annotations

from dataclasses import dataclass

from split.patch_plan import Step, StepKind
from split.patch_reads import GraphFacts

NEVER = 1 << 30  # a row that lives past the end of the block


@dataclass(frozen=True)
class RowLife:
    """When each row of a tensor is written and last read, in steps of the block.

    ``births[r]`` is -1 for rows that exist before the block, NEVER for rows that are never produced; ``deaths[r]`` is
    NEVER for rows that live on, and ``births[r]`` for a row that nobody reads.
    """

    births: tuple[int, ...]
    deaths: tuple[int, ...]


@dataclass(frozen=True)
class RowSchedule:
    """Row steps of one block and the life of every row."""

    steps: tuple[Step, ...]  # single rows: every count is 1
    lives: dict[int, RowLife]
    rows_made: dict[int, int]  # per operator, output rows computed (input rows for a reducing one)


class _Demand:
    """Simulation state of one block."""

    def __init__(self, facts: GraphFacts, first: int, stop: int, pulled: int | None) -> None:
        self.facts = facts
        self.first = first
        self.stop = stop
        self.pulled = pulled
        self.made: dict[int, int] = {}
        self.births: dict[int, list[int]] = {}
        self.deaths: dict[int, list[int]] = {}
        self.steps: list[tuple[StepKind, int, int]] = []

    def open(self, tensor: int, birth: int) -> None:
        height = self.facts.graph.tensors[tensor].height
        self.births[tensor] = [birth] * height
        self.deaths[tensor] = [birth] * height

    def need(self, tensor: int, rows: int) -> None:
        """Produce rows [0, rows) of a tensor as far as they are missing."""
        made = self.made.get(tensor)
        if made is None:  # a tensor from before the block
            return
        while made < rows:
            self._make(tensor, made)
            made += 1
            self.made[tensor] = made

    def _make(self, tensor: int, row: int) -> None:
        if tensor == self.pulled:
            self._emit(StepKind.PULL, -1, tensor, row)
            return
        index = self.facts.producer[tensor]
        if self.facts.graph.ops[index].reduces:
            self._reduce(index, tensor)
            return
        reads = self.facts.reads[index]
        for read in reversed(reads):
            self.need(read.tensor, read.highs[row] if read.highs[row] > read.lows[row] else 0)
        now = len(self.steps)
        for read in reads:
            deaths = self.deaths[read.tensor]
            for r in range(read.lows[row], read.highs[row]):
                deaths[r] = now
        self._emit(StepKind.ROWS, index, tensor, row)

    def _reduce(self, index: int, tensor: int) -> None:
        source = self.facts.graph.ops[index].inputs[0].tensor
        for row in range(self.facts.graph.tensors[source].height):
            self.need(source, row + 1)
            self.deaths[source][row] = len(self.steps)
            self.steps.append((StepKind.ACCUMULATE, index, row))
        self._emit(StepKind.FINISH, index, tensor, 0)

    def _emit(self, kind: StepKind, op: int, tensor: int, row: int) -> None:
        now = len(self.steps)
        self.births[tensor][row] = now
        self.deaths[tensor][row] = max(self.deaths[tensor][row], now)
        self.steps.append((kind, op, row))


def stream_rows(facts: GraphFacts, first: int, stop: int, *, pulled: int | None = None) -> RowSchedule:
    """Simulate ops[first:stop] as one row stream.

    Args:
        facts: The graph.
        first: First operator of the block.
        stop: One past its last operator.
        pulled: Network input that a callback delivers row by row inside this block, or None. Read later too, it is
            pulled completely.

    Returns:
        The steps in order. Tensors that live past the block are produced completely, others as far as they are read.
    """
    demand = _Demand(facts, first, stop, pulled)
    inside = [facts.graph.ops[i].output for i in range(first, stop)]
    for tensor in facts.live_at(first):
        if tensor != pulled:
            demand.open(tensor, -1)
    made = inside if pulled is None else [pulled, *inside]
    for tensor in made:
        demand.open(tensor, NEVER)
        demand.deaths[tensor] = [-1] * len(demand.deaths[tensor])
        demand.made[tensor] = 0
    after = facts.live_at(stop)
    targets = [t for t in made if t in after]
    for tensor in reversed(targets):
        demand.need(tensor, facts.graph.tensors[tensor].height)
    for tensor in after:
        demand.deaths[tensor] = [NEVER] * len(demand.deaths[tensor])
    return _freeze(demand)


def _freeze(demand: _Demand) -> RowSchedule:
    lives = {t: RowLife(tuple(demand.births[t]), tuple(demand.deaths[t])) for t in demand.births}
    made: dict[int, int] = {}
    for kind, op, _ in demand.steps:
        if kind in (StepKind.ROWS, StepKind.ACCUMULATE):
            made[op] = made.get(op, 0) + 1
    return RowSchedule(tuple(Step(*step) for step in demand.steps), lives, made)


def ring_rows(life: RowLife) -> int:
    """Return the smallest ring for which no row is overwritten while it is still to be read.

    R = max over rows r of r - (lowest row still needed when r is written) + 1.
    """
    needed = 1
    oldest = 0
    for row, birth in enumerate(life.births):
        if birth == NEVER:
            continue
        while oldest < row and life.deaths[oldest] < birth:
            oldest += 1
        needed = max(needed, row - oldest + 1)
    return needed


def merge_runs(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """Join steps that continue each other into runs."""
    merged: list[Step] = []
    for step in steps:
        last = merged[-1] if merged else None
        if last and last.kind == step.kind and last.op == step.op and last.row + last.count == step.row:
            merged[-1] = Step(last.kind, last.op, last.row, last.count + step.count)
        else:
            merged.append(step)
    return tuple(merged)
