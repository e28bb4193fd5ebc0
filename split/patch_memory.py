"""Memory over the run: bytes that hold something still needed, step by step, against the MACs done so far."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from split.patch_graph import PatchGraph
from split.patch_plan import InputMode, Pass, Plan, Segment, Step, StepKind
from split.patch_reads import GraphFacts, study


@dataclass(frozen=True)
class MemoryCurve:
    """Live bytes while a network runs.

    Attributes:
        macs: MACs done when each step ends, int64, shape (steps,), not decreasing.
        live_bytes: Bytes alive during each step, int64, shape (steps,).
        borders: Index of the first step of every segment.
    """

    macs: NDArray[np.int64]
    live_bytes: NDArray[np.int64]
    borders: tuple[int, ...]

    @property
    def peak_bytes(self) -> int:
        """Most bytes alive at one step."""
        return int(self.live_bytes.max())


def layerwise_curve(graph: PatchGraph) -> MemoryCurve:
    """Return the curve of running whole layers: every tensor exists whole from its operator to its last reader.

    This is what interpreters with a perfect allocator need; the input counts, kernel scratch does too.
    """
    facts = study(graph)
    live = []
    for index, op in enumerate(graph.ops):
        alive = set(facts.live_at(index)) | set(facts.live_at(index + 1))
        live.append(sum(graph.tensors[t].size_bytes for t in alive) + op.scratch_bytes + op.accumulator_bytes)
    macs = np.cumsum([op.macs for op in graph.ops], dtype=np.int64)
    return MemoryCurve(macs, np.array(live, dtype=np.int64), tuple(range(len(graph.ops))))


def plan_curve(plan: Plan) -> MemoryCurve:
    """Return the curve of a plan, row by row."""
    facts = study(plan.graph)
    macs: list[NDArray[np.int64]] = []
    live: list[NDArray[np.int64]] = []
    borders = []
    done = 0
    for number, segment in enumerate(plan.segments):
        borders.append(sum(len(part) for part in live))
        replay = _Replay(plan, facts, segment, last=number == len(plan.segments) - 1)
        macs.append(done + np.cumsum(replay.step_macs, dtype=np.int64))
        live.append(replay.live())
        done = int(macs[-1][-1])
    return MemoryCurve(np.concatenate(macs), np.concatenate(live), tuple(borders))


class _Replay:
    """Row lives of one segment, found by going through its steps."""

    def __init__(self, plan: Plan, facts: GraphFacts, segment: Segment, *, last: bool) -> None:
        self.plan = plan
        self.graph = plan.graph
        self.facts = facts
        self.segment = segment
        self.stays = set(plan.graph.outputs) if last else set(facts.live_at(segment.last_op + 1))
        self.step_macs: list[int] = []
        self.scratch: list[int] = []
        self.born: dict[tuple[int, int, int], int] = {}
        self.died: dict[tuple[int, int, int], int] = {}
        self.bytes: dict[tuple[int, int, int], int] = {}
        self.local = {b.tensor for b in segment.buffers if b.local}
        self._existing()
        for number, one_pass in enumerate(segment.passes):
            for step in one_pass.steps:
                for row in range(step.row, step.row + step.count):
                    self._step(number, one_pass, step, row)

    def _external(self, tensor: int) -> bool:
        return self.plan.input_mode is InputMode.EXTERNAL and tensor == self.graph.inputs[0]

    def _existing(self) -> None:
        """Tensors from before the segment."""
        pulled = self.plan.input_mode is InputMode.PULLED and self.segment.first_op == 0
        for buffer in self.segment.buffers:
            tensor = buffer.tensor
            held = not self._external(tensor) and not (pulled and tensor == self.graph.inputs[0])
            if held and self.facts.producer[tensor] < self.segment.first_op:
                keep = self.plan.input_mode is InputMode.RESIDENT and tensor == self.graph.inputs[0]
                for row in range(buffer.rows):
                    self.born[tensor, row, 0] = 0
                    self.died[tensor, row, 0] = -1 if keep else 0
                    self.bytes[tensor, row, 0] = buffer.row_bytes
                if keep:
                    self.stays.add(tensor)

    def _key(self, tensor: int, row: int, number: int) -> tuple[int, int, int]:
        return tensor, row, number if tensor in self.local else 0

    def _write(self, tensor: int, row: int, number: int, one_pass: Pass) -> None:
        key = self._key(tensor, row, number)
        now = len(self.step_macs)
        extent = one_pass.extent(tensor)
        channels = self.graph.tensors[tensor].channels
        self.bytes[key] = self.bytes.get(key, 0) + (extent.x1 - extent.x0) * channels
        self.born.setdefault(key, now)
        self.died[key] = now

    def _step(self, number: int, one_pass: Pass, step: Step, row: int) -> None:
        now = len(self.step_macs)
        if step.kind is StepKind.PULL:
            self._write(self.graph.inputs[0], row, number, one_pass)
            self._count(0, 0)
            return
        op = self.graph.ops[step.op]
        out = self.graph.tensors[op.output]
        macs = 0
        if step.kind is StepKind.ACCUMULATE:
            self.died[self._key(op.inputs[0].tensor, row, number)] = now
        elif step.kind is StepKind.FINISH:
            self._write(op.output, 0, number, one_pass)
            macs = op.macs
        else:
            for read in self.facts.reads[step.op]:
                for line in range(read.lows[row], read.highs[row]):
                    self.died[self._key(read.tensor, line, number)] = now
            self._write(op.output, row, number, one_pass)
            extent = one_pass.extent(op.output)
            macs = op.macs * (extent.x1 - extent.x0) // (out.height * out.width)
        self._count(macs, op.scratch_bytes)

    def _count(self, macs: int, scratch: int) -> None:
        self.step_macs.append(macs)
        self.scratch.append(scratch)

    def live(self) -> NDArray[np.int64]:
        """Bytes alive during each step of the segment, int64, shape (steps,)."""
        steps = len(self.step_macs)
        changes = np.zeros(steps + 1, dtype=np.int64)
        offsets = {b.tensor: b.offset for b in self.segment.buffers}
        for key, born in self.born.items():
            tensor = key[0]
            died = steps - 1 if tensor in self.stays else self.died[key]
            changes[born] += self.bytes[key]
            changes[died + 1] -= self.bytes[key]
            producer = self.facts.producer[tensor]
            if producer >= self.segment.first_op and self.graph.ops[producer].in_place:
                shared = [i.tensor for i in self.graph.ops[producer].inputs if offsets.get(i.tensor) == offsets[tensor]]
                if shared:  # written over a row that is counted for this step already
                    changes[born] -= self.bytes[key]
                    changes[min(born + 1, steps)] += self.bytes[key]
        sums = sum(a.size_bytes for a in self.segment.accumulators)
        live: NDArray[np.int64] = np.cumsum(changes)[:steps] + sums + np.array(self.scratch, dtype=np.int64)
        return live
