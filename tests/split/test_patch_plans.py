"""Laws of patch plans over random small networks: every plan computes the right bytes, and its figures are exact."""

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from device_profiles.errors import FitError
from split.patch import (
    EdgeKind,
    InputMode,
    PatchGraph,
    PatchGraphError,
    PatchInput,
    PatchOp,
    PatchTensor,
    PlanError,
    PlanRequest,
    StepKind,
    Window,
    check_plan,
    pareto_front,
    plan,
    plan_and_front,
)

LAWS = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


class Builder:
    """Grows a random graph one operator at a time."""

    def __init__(self, draw):
        self.draw = draw
        self.tensors = []
        self.ops = []
        self.inputs = []

    def tensor(self, height, width, channels):
        self.tensors.append(PatchTensor(f"t{len(self.tensors)}", height, width, channels))
        return len(self.tensors) - 1

    def add(self, kind, inputs, shape, **fields):
        output = self.tensor(*shape)
        height, width, channels = shape
        macs = height * width * channels * self.draw(st.integers(1, 5))
        scratch = self.draw(st.sampled_from([0, 0, 4, 12]))
        name = f"{kind}_{len(self.ops)}"
        self.ops.append(PatchOp(name, kind, tuple(inputs), output, macs=macs, scratch_bytes=scratch, **fields))
        return output

    def pick(self):
        return self.draw(st.integers(max(0, len(self.tensors) - 3), len(self.tensors) - 1))

    def shape(self, index):
        tensor = self.tensors[index]
        return tensor.height, tensor.width, tensor.channels

    def axis(self, extent):
        kernel = self.draw(st.integers(1, 7))
        stride = self.draw(st.integers(1, 2))
        before = self.draw(st.integers(0, kernel - 1))
        after = self.draw(st.integers(0, kernel - 1))
        out = (extent + before + after - kernel) // stride + 1
        return (Window(kernel, stride, before), out) if out > 0 else (Window(), extent)

    def window(self, source):
        height, width, _ = self.shape(source)
        (rows, out_height), (columns, out_width) = self.axis(height), self.axis(width)
        channels = self.draw(st.integers(1, 6))
        return self.add("window", [PatchInput(source, rows, columns)], (out_height, out_width, channels))

    def second_input(self, image):
        """Another input of the same shape, added to a branch of the first."""
        other = self.tensor(*self.shape(image))
        self.inputs.append(other)
        branch = self.relu(image)
        self.add("add", [PatchInput(branch), PatchInput(other)], self.shape(image), in_place=True)

    def relu(self, source):
        return self.add("relu", [PatchInput(source)], self.shape(source), in_place=True)

    def residual(self, source):
        branch = self.add("branch", [PatchInput(source, Window(3, 1, 1), Window(3, 1, 1))], self.shape(source))
        return self.add("add", [PatchInput(source), PatchInput(branch)], self.shape(source), in_place=True)

    def squeeze(self, source):
        height, width, channels = self.shape(source)
        whole = PatchInput(source, Window(height, 0), Window(width, 0))
        pooled = self.add("pool", [whole], (1, 1, channels), reduces=True, accumulator_bytes=4 * channels)
        operands = [PatchInput(source), PatchInput(pooled, Window(1, 0), Window(1, 0))]
        return self.add("mul", operands, self.shape(source), in_place=True)

    def concat(self, source):
        height, width, channels = self.shape(source)
        if self.draw(st.booleans()):
            other = self.add("side", [PatchInput(source)], (height, width, 2))
            return self.add("concat", [PatchInput(source), PatchInput(other)], (height, width, channels + 2))
        parts = [PatchInput(source, Window(), Window()), PatchInput(source, Window(before=height), Window())]
        return self.add("stack", parts, (2 * height, width, channels))

    def resize(self, source):
        height, width, channels = self.shape(source)
        rows, columns = Window(1, height, 0, height + 2), Window(1, width, 0, 2 * width)
        return self.add("resize", [PatchInput(source, rows, columns)], (height + 2, 2 * width, channels))

    def dense(self, source):
        height, width, _ = self.shape(source)
        whole = PatchInput(source, Window(height, 0), Window(width, 0))
        return self.add("dense", [whole], (1, 1, self.draw(st.integers(1, 8))), whole_rows=True)


@st.composite
def graphs(draw, kinds=("window", "window", "window", "relu", "residual", "squeeze", "concat", "resize", "dense")):
    builder = Builder(draw)
    image = builder.tensor(draw(st.integers(1, 12)), draw(st.integers(1, 12)), draw(st.integers(1, 4)))
    builder.inputs.append(image)
    if draw(st.integers(0, 4)) == 0:
        builder.second_input(image)
    for _ in range(draw(st.integers(1, 5))):
        getattr(builder, draw(st.sampled_from(kinds)))(builder.pick())
    return finish(builder)


def finish(builder):
    read = {operand.tensor for op in builder.ops for operand in op.inputs}
    outputs = tuple(t for t in range(len(builder.tensors)) if t not in read | set(builder.inputs))
    return PatchGraph("random", tuple(builder.tensors), tuple(builder.ops), tuple(builder.inputs), outputs)


def computed_macs(result):
    """MACs recounted from the steps."""
    total = 0
    for segment in result.segments:
        counted = {}
        for one_pass in segment.passes:
            for step in one_pass.steps:
                if step.kind is StepKind.ROWS:
                    extent = one_pass.extent(result.graph.ops[step.op].output)
                    counted[step.op] = counted.get(step.op, 0) + step.count * (extent.x1 - extent.x0)
                elif step.kind is StepKind.FINISH:
                    counted[step.op] = 1
        for op, positions in counted.items():
            shape = result.graph.tensors[result.graph.ops[op].output]
            total += result.graph.ops[op].macs * positions // (shape.height * shape.width)
    return total


requests = st.builds(
    PlanRequest,
    schedule=st.sampled_from(["layer", "patch", "stream", "auto"]),
    input_mode=st.sampled_from(list(InputMode)),
    max_mac_factor=st.sampled_from([None, 1.0, 1.5]),
    optimise=st.sampled_from(["ram", "speed"]),
    row_tables=st.booleans(),
)


@LAWS
@given(graph=graphs(), request=requests)
def test_a_plan_never_reads_a_wrong_byte_and_its_figures_are_those_of_its_steps(graph, request):
    result = plan(graph, request)
    check_plan(result)
    assert result.arena_bytes == max(segment.arena_bytes for segment in result.segments)
    assert result.live_bound_bytes <= result.arena_bytes
    assert result.macs == sum(segment.macs for segment in result.segments) == computed_macs(result)
    if result.certificate == "live-bound":
        assert result.arena_bytes - result.live_bound_bytes < request.alignment
    for segment in result.segments:
        ends = [b.offset + b.size_bytes for b in segment.buffers if b.offset >= 0 and not b.row_offsets]
        ends += [offset + b.row_bytes for b in segment.buffers for offset in b.row_offsets]
        ends += [a.offset + a.size_bytes for a in segment.accumulators]
        assert max([*ends, segment.scratch_offset + segment.scratch_bytes]) == segment.arena_bytes


@LAWS
@given(graph=graphs(), mode=st.sampled_from(list(InputMode)))
def test_streaming_computes_no_row_twice_and_needs_no_more_than_layers(graph, mode):
    layers = plan(graph, PlanRequest(schedule="layer", input_mode=mode))
    streams = plan(graph, PlanRequest(schedule="stream", input_mode=mode))
    assert streams.arena_bytes <= layers.arena_bytes
    assert streams.macs <= layers.macs == graph.macs
    seen = [(s.op, s.kind, row) for g in streams.segments for s in g.passes[0].steps for row in _rows(s)]
    assert len(seen) == len(set(seen))
    assert all(len(segment.passes) == 1 for segment in streams.segments)


def _rows(step):
    return range(step.row, step.row + step.count)


@LAWS
@given(graph=graphs(), mode=st.sampled_from(list(InputMode)))
def test_rows_with_addresses_of_their_own_never_need_more_than_rings(graph, mode):
    rings = plan(graph, PlanRequest(schedule="stream", input_mode=mode, row_tables=False))
    shared = plan(graph, PlanRequest(schedule="stream", input_mode=mode, row_tables=True))
    assert shared.arena_bytes <= rings.arena_bytes
    assert shared.macs <= rings.macs
    assert not any(b.row_offsets for segment in rings.segments for b in segment.buffers)
    for segment in shared.segments:
        ops = graph.ops[segment.first_op : segment.last_op + 1]
        in_one_piece = {operand.tensor for op in ops if op.whole_rows for operand in op.inputs}
        kept = {*graph.inputs, *graph.outputs} if mode is not InputMode.PULLED else set(graph.outputs)
        assert not any(b.row_offsets for b in segment.buffers if b.tensor in in_one_piece | kept)


@LAWS
@given(graph=graphs(), request=requests)
def test_the_front_is_monotone_and_every_point_of_it_can_be_had(graph, request):
    free = replace(request, max_mac_factor=None)
    front = pareto_front(graph, free)
    sizes = [point.arena_bytes for point in front]
    macs = [point.macs for point in front]
    assert sizes == sorted(set(sizes))
    assert macs == sorted(set(macs), reverse=True)
    chosen, same = plan_and_front(graph, request)
    check_plan(chosen)
    assert same == front
    within = [p for p in front if request.max_mac_factor is None or p.mac_factor <= request.max_mac_factor]
    assert chosen.macs == (within[0] if request.optimise == "ram" else within[-1]).macs
    for point in front:
        limited = PlanRequest(
            schedule=request.schedule,
            input_mode=request.input_mode,
            row_tables=request.row_tables,
            max_mac_factor=None,
            max_ram_bytes=point.arena_bytes,
            optimise="speed",
        )
        assert _plan_with_room_to_move(graph, limited).macs == point.macs


def _plan_with_room_to_move(graph, request):
    """A plan; where tensors find no room to change places between segments, with the few bytes that the error names."""
    try:
        return plan(graph, request)
    except FitError as error:
        allowed = re.search(r"no room to move\. Allow (\d+) B\.", str(error))
        if allowed is None or int(allowed[1]) > request.max_ram_bytes * 1.25 + 16:
            raise
        return plan(graph, replace(request, max_ram_bytes=int(allowed[1])))


@LAWS
@given(graph=graphs(), request=requests)
def test_a_misfit_names_the_missing_bytes_and_a_layer(graph, request):
    least = pareto_front(graph, PlanRequest(schedule=request.schedule, input_mode=request.input_mode))[0].arena_bytes
    short = PlanRequest(
        schedule=request.schedule, input_mode=request.input_mode, max_mac_factor=None, max_ram_bytes=least - 1
    )
    with pytest.raises(FitError, match=r"\(1 B over\)") as error:
        plan(graph, short)
    assert any(op.name in str(error.value) for op in graph.ops)


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), float("-inf")])
def test_a_factor_that_is_no_number_is_named(factor):
    with pytest.raises(PatchGraphError, match=rf"--max-macs-factor.*found {factor}"):
        PlanRequest(max_mac_factor=factor)


def needed(graph, first, last, tensor, rows, *, columns):
    """Every position of every tensor that is needed for some positions of one, by sets instead of ranges."""
    wanted = {tensor: set(rows)}
    for op in reversed(graph.ops[first : last + 1]):
        for operand in op.inputs:
            shape = graph.tensors[operand.tensor]
            window, extent = (operand.columns, shape.width) if columns else (operand.rows, shape.height)
            for position in wanted.get(op.output, ()):
                wanted.setdefault(operand.tensor, set()).update(range(*window.reads(position, extent)))
    return wanted


@LAWS
@given(graph=graphs(kinds=("window", "window", "relu", "residual")), down=st.integers(1, 3), across=st.integers(1, 3))
def test_patch_ranges_are_the_hull_of_what_is_needed(graph, down, across):
    from split.patch_block import EdgeContext
    from split.patch_edges import build_block
    from split.patch_reads import study

    count = len(graph.ops)
    output = graph.tensors[graph.ops[-1].output]
    block = build_block(EdgeContext(study(graph), InputMode.EXTERNAL), EdgeKind.PATCH, 0, count, (down, across))
    if block is None or down > output.height or across > output.width:
        return
    covered = np.zeros((output.height, output.width), dtype=int)
    for one_pass in block.passes:
        box = one_pass.extent(graph.ops[-1].output)
        covered[box.y0 : box.y1, box.x0 : box.x1] += 1
        rows = needed(graph, 0, count - 1, box.tensor, range(box.y0, box.y1), columns=False)
        columns = needed(graph, 0, count - 1, box.tensor, range(box.x0, box.x1), columns=True)
        for extent in one_pass.extents:
            assert (extent.y0, extent.y1) == (min(rows[extent.tensor]), max(rows[extent.tensor]) + 1)
            assert (extent.x0, extent.x1) == (min(columns[extent.tensor]), max(columns[extent.tensor]) + 1)
    assert (covered == 1).all()


@LAWS
@given(graph=graphs())
def test_rings_are_as_short_as_can_be_and_the_checker_notices_a_shorter_one(graph):
    result = plan(graph, PlanRequest(schedule="stream", row_tables=False))
    for index, segment in enumerate(result.segments):
        offsets = [b.offset for b in segment.buffers]
        for position, buffer in enumerate(segment.buffers):
            kept = buffer.tensor in graph.outputs or any(
                buffer.tensor in {b.tensor for b in other.buffers} for other in result.segments if other is not segment
            )
            if kept or buffer.rows == 1 or buffer.tensor in graph.inputs or offsets.count(buffer.offset) > 1:
                continue
            buffers = list(segment.buffers)
            buffers[position] = replace(buffer, rows=buffer.rows - 1)
            segments = list(result.segments)
            segments[index] = replace(segment, buffers=tuple(buffers))
            with pytest.raises(PlanError):
                check_plan(replace(result, segments=tuple(segments)))
