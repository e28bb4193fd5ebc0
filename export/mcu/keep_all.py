"""The plainest schedule: layer by layer, every tensor at an address of its own.

Nothing is ever overwritten, so after a run every tensor can be compared with the reference engine's.
"""

from split.patch_graph import PatchGraph
from split.patch_plan import Accumulator, Buffer, EdgeKind, Extent, InputMode, Pass, Plan, Segment, Step, StepKind


def keep_all_plan(graph: PatchGraph) -> Plan:
    """Plan a graph so that every tensor survives the run.

    Args:
        graph: Any graph.

    Returns:
        One layer segment for each operator; arena = all tensors, then accumulators and scratch.
    """
    offsets, end = [], 0
    for tensor in graph.tensors:
        offsets.append(end)
        end += _aligned(tensor.size_bytes)
    buffers = [Buffer(i, offsets[i], tensor.height, tensor.row_bytes) for i, tensor in enumerate(graph.tensors)]
    scratch = max((max(op.scratch_bytes, op.accumulator_bytes) for op in graph.ops), default=0)
    arena = end + _aligned(scratch)
    segments = []
    for i, op in enumerate(graph.ops):
        touched = tuple(dict.fromkeys([*(read.tensor for read in op.inputs), op.output]))
        extents = tuple(Extent(t, 0, graph.tensors[t].height, 0, graph.tensors[t].width) for t in touched)
        source, out = graph.tensors[op.inputs[0].tensor], graph.tensors[op.output]
        steps: tuple[Step, ...]
        if op.reduces:
            steps = (Step(StepKind.ACCUMULATE, i, 0, source.height), Step(StepKind.FINISH, i, 0, 1))
        else:
            steps = (Step(StepKind.ROWS, i, 0, out.height),)
        accumulators = (Accumulator(i, end, op.accumulator_bytes),) if op.reduces else ()
        segments.append(
            Segment(
                kind=EdgeKind.LAYER,
                first_op=i,
                last_op=i,
                buffers=tuple(buffers),
                accumulators=accumulators,
                scratch_offset=end,
                scratch_bytes=op.scratch_bytes,
                moves=(),
                passes=(Pass(extents, steps),),
                macs=op.macs,
                arena_bytes=arena,
            )
        )
    return Plan(graph, InputMode.RESIDENT, tuple(segments), arena, arena, "greedy", graph.macs, 1.0)


def _aligned(size: int) -> int:
    return (size + 3) // 4 * 4
