"""Writes a plan's segments, buffers, passes and steps as C constants for ``ht_run.h``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from export.mcu.c_text import initialiser
from export.mcu.emit_ops import FROM_START, OpCode, emit_op
from export.mcu.errors import ScheduleError
from export.mcu.graph import tensor_places
from export.mcu.network import Network
from split.patch_graph import PatchGraph, Window
from split.patch_plan import ROW_TABLE_REACH, Buffer, Pass, Plan, Segment, Step, StepKind

STEP_KINDS = {StepKind.ROWS: 0, StepKind.PULL: 1, StepKind.ACCUMULATE: 2, StepKind.FINISH: 3}
TO_THE_END = 63


@dataclass(frozen=True)
class PlanCode:
    """C text of a plan.

    Attributes:
        tables: Definitions, in order, ending in ``segments``.
        segment_count: Entries of ``segments``.
        pulled: C expression of the input ring, or ``NULL``.
        row_pointers: Largest number of row pointers of one call.
        constant_bytes: Weights, biases, requantisation entries and lookup tables.
    """

    tables: tuple[str, ...]
    segment_count: int
    pulled: str
    row_pointers: int
    constant_bytes: int


def emit_plan(network: Network, plan: Plan) -> PlanCode:
    """Write a plan of ``to_patch_graph(network)``.

    Raises:
        ScheduleError: The plan does not belong to the network, or exceeds what the step format can hold.
        UnsupportedOpError: An operator's size does not fit the kernels.
    """
    if len(plan.graph.ops) != len(network.ops) or len(plan.graph.tensors) != len(network.values):
        raise ScheduleError("the plan was made for another network; plan again with to_patch_graph of this one.")
    tables: list[str] = []
    segments: list[str] = []
    pulled, pointers = "NULL", 1
    places = tensor_places(network)
    for number, segment in enumerate(plan.segments):
        writer = _SegmentWriter(network, plan.graph, segment, number, places)
        tables += writer.write()
        segments.append(writer.initialiser)
        pointers = max(pointers, writer.row_pointers)
        pulled = writer.pulled or pulled
    rows = ",\n    ".join(segments)
    tables.append(f"static const ht_segment segments[{len(segments)}] = {{\n    {rows}}};\n")
    return PlanCode(tuple(tables), len(segments), pulled, pointers, _constant_bytes(tables))


ARRAY = re.compile(r"^static const (int8_t|uint16_t|int32_t|ht_rq4) \w+\[(\d+)\]")
ELEMENT_BYTES = {"int8_t": 1, "uint16_t": 2, "int32_t": 4, "ht_rq4": 20}


def _constant_bytes(tables: list[str]) -> int:
    found = (ARRAY.match(table) for table in tables)
    return sum(ELEMENT_BYTES[match[1]] * int(match[2]) for match in found if match)


class _SegmentWriter:
    """Writes one segment; names in the file end in the segment's number."""

    def __init__(
        self, network: Network, graph: PatchGraph, segment: Segment, number: int, places: dict[int, int]
    ) -> None:
        self.network, self.graph, self.segment, self.number, self.places = network, graph, segment, number, places
        self.row_pointers = 1
        self.pulled = ""
        self.initialiser = ""
        self.touched: list[int] = []
        if segment.last_op - segment.first_op > 255:
            raise ScheduleError(f"segment {number} has more than 256 operators; the step format holds 256.")

    def write(self) -> list[str]:
        graph, segment, n = self.graph, self.segment, self.number
        ops = range(segment.first_op, segment.last_op + 1)
        for i in ops:
            for tensor in (*(read.tensor for read in graph.ops[i].inputs), graph.ops[i].output):
                if tensor not in self.touched:
                    self.touched.append(tensor)
        pulls = any(step.kind is StepKind.PULL for p in segment.passes for step in p.steps)
        if pulls:
            if graph.inputs[0] not in self.touched:
                self.touched.append(graph.inputs[0])
            self.pulled = f"&buffers_{n}[{self.touched.index(graph.inputs[0])}]"
        tables = self._buffers()
        accumulators = {a.op: a.offset for a in segment.accumulators}
        entries = []
        for i in ops:
            code = emit_op(self.network, self.network.ops[i], str(i))
            tables += code.tables
            entries.append(self._op(i, code, accumulators.get(i, -1), tables))
        body = ",\n    ".join(entries)
        tables.append(f"static const ht_op ops_{n}[{len(entries)}] = {{\n    {body}}};\n")
        tables += self._passes()
        moves = "NULL"
        if segment.moves:
            rows = ", ".join(initialiser(m.source, m.target, m.size_bytes) for m in segment.moves)
            tables.append(f"static const ht_move moves_{n}[{len(segment.moves)}] = {{{rows}}};\n")
            moves = f"moves_{n}"
        self.initialiser = initialiser(
            f"ops_{n}", f"passes_{n}", moves, max(segment.scratch_offset, 0), len(entries), len(segment.passes),
            len(segment.moves), segment.first_op,
        )  # fmt: skip
        return tables

    def _buffers(self) -> list[str]:
        rows: list[str] = []
        tables: list[str] = []
        for extent, index in enumerate(self.touched):
            tensor, buffer = self.graph.tensors[index], self.segment.buffer(index)
            if max(buffer.rows, tensor.height, tensor.width) > 32767 or tensor.channels > 65535 or extent > 255:
                raise ScheduleError(
                    "wanted at most 32767 rows and columns, 65535 channels and 256 tensors in a segment, found tensor "
                    f"{tensor.name[:80]!r} of {tensor.height} x {tensor.width} with {tensor.channels} channels, number "
                    f"{extent + 1} of segment {self.number}. Export a smaller input, or cut the network with headtail split."
                )
            shape = (buffer.rows, tensor.height, tensor.width, tensor.channels)
            words = "NULL"
            if buffer.row_offsets:
                words = f"rows_{self.number}_{extent}"
                tables.append(_row_table(words, buffer, tensor.name))
            rows.append(initialiser(buffer.offset, buffer.row_bytes, *shape, extent, int(buffer.local), words))
        body = ",\n    ".join(rows)
        return [*tables, f"static const ht_buffer buffers_{self.number}[{len(rows)}] = {{\n    {body}}};\n"]

    def _op(self, index: int, code: OpCode, accumulator: int, tables: list[str]) -> str:
        reads = list(self.graph.ops[index].inputs)
        if code.swapped:
            reads.reverse()
        operands, pointers = [], 0
        for read, origin in zip(reads, code.origins, strict=True):
            place = self.touched.index(read.tensor)
            window = _checked(read.rows, self.graph.ops[index].name)
            start = origin == FROM_START
            pointers += 1 if start else window.size
            fields = (
                f"&buffers_{self.number}[{place}]",
                *(window.size, window.stride, window.divide, window.before),
                origin,
            )
            operands.append(initialiser(*fields))
        self.row_pointers = max(self.row_pointers, pointers)
        tables.append(f"static const ht_operand inputs_{index}[{len(operands)}] = {{{', '.join(operands)}}};\n")
        output = f"&buffers_{self.number}[{self.touched.index(self.graph.ops[index].output)}]"
        return initialiser(
            code.row, code.params, code.constant, f"inputs_{index}", output, len(operands), code.aux, accumulator
        )

    def _passes(self) -> list[str]:
        n = self.number
        tables: list[str] = []
        names: dict[int, str] = {}
        rows = []
        for p, one in enumerate(self.segment.passes):
            if id(one.steps) not in names:
                names[id(one.steps)] = f"steps_{n}_{len(names)}"
                words = ", ".join(initialiser(*word) for word in self._words(one))
                tables.append(f"static const ht_step {names[id(one.steps)]}[] = {{\n    {_wrapped(words)}}};\n")
            extents = "NULL"
            if not self._full_width(one):
                extents = f"extents_{n}_{p}"
                pairs = ", ".join(initialiser(one.extent(t).x0, one.extent(t).x1) for t in self.touched)
                tables.append(f"static const ht_extent {extents}[] = {{{pairs}}};\n")
            count = f"(uint16_t)(sizeof {names[id(one.steps)]} / sizeof(ht_step))"
            rows.append(initialiser(extents, names[id(one.steps)], count))
        body = ",\n    ".join(rows)
        return [*tables, f"static const ht_pass passes_{n}[{len(rows)}] = {{\n    {body}}};\n"]

    def _full_width(self, one: Pass) -> bool:
        tensors = self.graph.tensors
        extents = {e.tensor: (e.x0, e.x1) for e in one.extents}
        local = any(self.segment.buffer(t).local for t in self.touched)
        return not local and all(extents.get(t, (0, tensors[t].width)) == (0, tensors[t].width) for t in self.touched)

    def _words(self, one: Pass) -> list[tuple[int, int]]:
        words = []
        for step in one.steps:
            words += self._split(step)
        if len(words) > 65535:
            raise ScheduleError(
                f"segment {self.number} has {len(words)} steps in one pass; the step format holds 65535."
            )
        return words

    def _split(self, step: Step) -> list[tuple[int, int]]:
        """One step as words: a count up to 62 as it is, 'to the end' as 63, anything else in pieces."""
        tensor = {
            StepKind.ROWS: lambda: self.graph.ops[step.op].output,
            StepKind.FINISH: lambda: self.graph.ops[step.op].output,
            StepKind.ACCUMULATE: lambda: self.graph.ops[step.op].inputs[0].tensor,
            StepKind.PULL: lambda: self.graph.inputs[0],
        }[step.kind]()
        local = 0 if step.kind is StepKind.PULL else step.op - self.segment.first_op
        head = STEP_KINDS[step.kind] << 14 | local
        words: list[tuple[int, int]] = []
        row, left = step.row, step.count
        while left > 0:
            if left > 1 and row + left == self.graph.tensors[tensor].height:
                return [*words, (head | TO_THE_END << 8, row)]
            count = min(left, TO_THE_END - 1)
            words.append((head | count << 8, row))
            row, left = row + count, left - count
        return words


def _row_table(name: str, buffer: Buffer, tensor: str) -> str:
    """Addresses of single rows in words; a row that is never produced gets 0."""
    if any(offset % 4 or offset > ROW_TABLE_REACH for offset in buffer.row_offsets if offset >= 0):
        raise ScheduleError(f"the rows of {tensor} do not lie at word addresses below {ROW_TABLE_REACH} B.")
    words = ", ".join(str(max(offset, 0) // 4) for offset in buffer.row_offsets)
    return f"static const uint16_t {name}[{len(buffer.row_offsets)}] = {{{words}}};\n"


def _checked(window: Window, name: str) -> Window:
    if max(window.size, window.stride, window.divide) > 65535 or abs(window.before) > 32767:
        raise ScheduleError(f"{name}: a window of {window} does not fit the step format.")
    return window


def _wrapped(words: str) -> str:
    """Break a long initialiser list after every ten entries."""
    parts = words.split("}, ")
    lines = ["}, ".join(parts[i : i + 10]) for i in range(0, len(parts), 10)]
    return "},\n    ".join(lines)
