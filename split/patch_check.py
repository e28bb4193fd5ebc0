"""Execute a plan symbolically, byte by byte, and refuse one that would ever compute from wrong bytes.

Every byte of the arena carries the identity of the element that lies there. A step checks that each input element it
reads is in place, that it does not write over what it reads (except exactly in place), and then tags its output.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from device_profiles.errors import EdgeError
from split.patch_graph import PatchInput, PatchOp
from split.patch_plan import Accumulator, InputMode, Pass, Plan, Segment, Step, StepKind

UNKNOWN = -1


class PlanError(EdgeError):
    """A plan would read bytes that are not there, or leaves an output incomplete."""


def check_plan(plan: Plan) -> None:
    """Run a plan on element identities instead of numbers.

    Raises:
        PlanError: A step reads a wrong byte, writes over its own operand, leaves the arena, or an output is incomplete;
            the message names segment, step and tensor.
    """
    machine = _Machine(plan)
    for index in range(len(plan.segments)):
        machine.run_segment(index)
    machine.finish()


class _Machine:
    """The arena as tags: int64 element identities, shape (arena_bytes,)."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.graph = plan.graph
        sizes = [t.size_bytes for t in plan.graph.tensors]
        self.base = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self.arena: NDArray[np.int64] = np.full(plan.arena_bytes, UNKNOWN, dtype=np.int64)
        self.sums: dict[int, NDArray[np.int64]] = {}
        self.pulled = 0
        self.where = "start"
        first = plan.segments[0]
        for position, tensor in enumerate(plan.graph.inputs):
            held_elsewhere = plan.input_mode in (InputMode.PULLED, InputMode.EXTERNAL)
            if not (position == 0 and held_elsewhere):
                source = next((m.source for m in first.moves if m.tensor == tensor), first.buffer(tensor).offset)
                self.write(source, self.base[tensor], sizes[tensor])

    def fail(self, text: str) -> PlanError:
        return PlanError(f"{self.where}: {text}. This is a planner bug; please report the model.")

    def write(self, address: int, identity: int, length: int) -> None:
        if address < 0 or address + length > len(self.arena):
            raise self.fail(f"bytes [{address}, {address + length}) leave the arena of {len(self.arena)} B")
        self.arena[address : address + length] = np.arange(identity, identity + length)

    def require(self, address: int, identity: int, length: int, what: str) -> None:
        if address < 0 or address + length > len(self.arena):
            raise self.fail(f"{what} at [{address}, {address + length}) lies outside the arena")
        if not np.array_equal(self.arena[address : address + length], np.arange(identity, identity + length)):
            raise self.fail(f"{what} at [{address}, {address + length}) was overwritten or never written")

    def run_segment(self, index: int) -> None:
        segment = self.plan.segments[index]
        self.where = f"segment {index} ({segment.kind.value}), moves"
        for move in segment.moves:
            tags = self.arena[move.source : move.source + move.size_bytes].copy()
            self.arena[move.target : move.target + move.size_bytes] = tags
        for accumulator in segment.accumulators:
            operand = self.graph.tensors[self.graph.ops[accumulator.op].inputs[0].tensor]
            self.sums[accumulator.op] = np.zeros((operand.height, operand.width), dtype=np.int64)
            self.arena[accumulator.offset : accumulator.offset + accumulator.size_bytes] = UNKNOWN
        for number, one_pass in enumerate(segment.passes):
            for step in one_pass.steps:
                for row in range(step.row, step.row + step.count):
                    self.where = f"segment {index} ({segment.kind.value}), pass {number}, {step.kind.value} row {row}"
                    self.run_row(segment, one_pass, step, row)

    def span(
        self, segment: Segment, one_pass: Pass, tensor: int, row: int, columns: tuple[int, int]
    ) -> tuple[int, int, int]:
        """Return address, identity and length of part of a row."""
        shape = self.graph.tensors[tensor]
        buffer = segment.buffer(tensor)
        base = one_pass.extent(tensor).x0 if buffer.local else 0
        start, stop = columns
        if start < base or (stop - base) * shape.channels > buffer.row_bytes:
            raise self.fail(f"columns [{start}, {stop}) of {shape.name} do not fit its buffer")
        line = buffer.row_offsets[row] if buffer.row_offsets else buffer.offset + row % buffer.rows * buffer.row_bytes
        if line < 0:
            raise self.fail(f"row {row} of {shape.name} has no address")
        address = line + (start - base) * shape.channels
        identity = int(self.base[tensor]) + row * shape.row_bytes + start * shape.channels
        return address, identity, (stop - start) * shape.channels

    def external(self, tensor: int) -> bool:
        return self.plan.input_mode is InputMode.EXTERNAL and tensor == self.graph.inputs[0]

    def run_row(self, segment: Segment, one_pass: Pass, step: Step, row: int) -> None:
        if step.kind is StepKind.PULL:
            tensor = self.graph.inputs[0]
            if row != self.pulled:
                raise self.fail(f"pulls row {row} after row {self.pulled - 1}")
            self.pulled += 1
            self.write(*self.span(segment, one_pass, tensor, row, (0, self.graph.tensors[tensor].width)))
            return
        op = self.graph.ops[step.op]
        if not segment.first_op <= step.op <= segment.last_op:
            raise self.fail(f"{op.name} does not belong here")
        self.arena[segment.scratch_offset : segment.scratch_offset + op.scratch_bytes] = UNKNOWN
        if step.kind is StepKind.ACCUMULATE:
            self.accumulate(segment, one_pass, step.op, row)
        elif step.kind is StepKind.FINISH:
            self.finish_sum(segment, one_pass, step.op)
        else:
            self.compute(segment, one_pass, op, row)

    def accumulate(self, segment: Segment, one_pass: Pass, index: int, row: int) -> None:
        op = self.graph.ops[index]
        tensor = op.inputs[0].tensor
        extent = one_pass.extent(tensor)
        if not self.external(tensor):
            address, identity, length = self.span(segment, one_pass, tensor, row, (extent.x0, extent.x1))
            self.require(address, identity, length, f"row {row} of {self.graph.tensors[tensor].name}")
        self.touch_sum(segment, index)
        self.sums[index][row, extent.x0 : extent.x1] += 1

    def touch_sum(self, segment: Segment, index: int) -> None:
        """The accumulator's bytes must be its own since it was cleared."""
        accumulator = _accumulator(segment, index)
        tag = -2 - index
        region = self.arena[accumulator.offset : accumulator.offset + accumulator.size_bytes]
        if len(region) < accumulator.size_bytes or accumulator.offset % 4:
            raise self.fail(f"the accumulator at {accumulator.offset} leaves the arena or is not aligned")
        if self.sums[index].any() and not (region == tag).all():
            raise self.fail(f"the accumulator of {self.graph.ops[index].name} was overwritten")
        region[:] = tag

    def finish_sum(self, segment: Segment, one_pass: Pass, index: int) -> None:
        op = self.graph.ops[index]
        self.touch_sum(segment, index)
        if not (self.sums[index] == 1).all():
            raise self.fail(f"{op.name} finishes before every element was added exactly once")
        address, identity, length = self.span(segment, one_pass, op.output, 0, (0, 1))
        accumulator = _accumulator(segment, index)
        if address < accumulator.offset + accumulator.size_bytes and accumulator.offset < address + length:
            raise self.fail(f"{op.name} writes over its accumulator")
        self.write(address, identity, length)

    def compute(self, segment: Segment, one_pass: Pass, op: PatchOp, row: int) -> None:
        out = one_pass.extent(op.output)
        address, identity, length = self.span(segment, one_pass, op.output, row, (out.x0, out.x1))
        for operand in op.inputs:
            if not self.external(operand.tensor):
                self.read_operand(segment, one_pass, op, operand, (row, address, length))
        scratch = segment.scratch_offset
        if address < scratch + op.scratch_bytes and scratch < address + length and op.scratch_bytes:
            raise self.fail(f"{op.name} writes over its scratch")
        self.write(address, identity, length)

    def read_operand(
        self, segment: Segment, one_pass: Pass, op: PatchOp, operand: PatchInput, target: tuple[int, int, int]
    ) -> None:
        row, out_address, out_length = target
        shape = self.graph.tensors[operand.tensor]
        out = one_pass.extent(op.output)
        columns = operand.columns.reads_range(out.x0, out.x1, shape.width)
        if columns[0] >= columns[1]:
            return
        for line in range(*operand.rows.reads(row, shape.height)):
            address, identity, length = self.span(segment, one_pass, operand.tensor, line, columns)
            self.require(address, identity, length, f"row {line} of {shape.name}, read by {op.name}")
            apart = address + length <= out_address or out_address + out_length <= address
            exact = op.in_place and (address, length) == (out_address, out_length)
            if not (apart or exact):
                raise self.fail(f"{op.name} writes over row {line} of {shape.name} while reading it")

    def finish(self) -> None:
        """Every network output must be complete at its final place."""
        last = self.plan.segments[-1]
        for tensor in self.graph.outputs:
            self.where = f"end, output {self.graph.tensors[tensor].name}"
            shape = self.graph.tensors[tensor]
            self.require(last.buffer(tensor).offset, int(self.base[tensor]), shape.size_bytes, "the output")
        done = [i for segment in self.plan.segments for i in range(segment.first_op, segment.last_op + 1)]
        if done != list(range(len(self.graph.ops))):
            raise self.fail("the segments do not cover the operators in order")


def _accumulator(segment: Segment, index: int) -> Accumulator:
    return next(a for a in segment.accumulators if a.op == index)
