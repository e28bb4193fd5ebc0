"""Times of single kernels as a profile holds them: names of the user's nodes, class, work and bytes."""

import math
import statistics
from collections.abc import Sequence

from device_profiles.measurement import KernelTime, Percentiles
from edge_runtime.profile_graph import OnnxGraph, OnnxNode
from edge_runtime.profile_mapping import map_nodes, match_calls
from edge_runtime.profile_stats import percentiles
from edge_runtime.profile_trace import Call, Trace

STEM_CHANNELS = 4  # a convolution of a picture: too few input channels for the engines' blocked kernels
_CLOCK_STEP_MS = 0.001  # of the engine's clock, which rounds down
_CONVS = frozenset({"Conv", "FusedConv", "QLinearConv", "ConvInteger", "ConvTranspose", "NhwcFusedConv"})
# operator -> class, beside convolutions
_KINDS = {
    "matmul": "MatMul Gemm FusedMatMul FusedGemm QGemm QLinearMatMul MatMulInteger MatMulIntegerToFloat "
    "DynamicQuantizeMatMul MatMulNBits",
    "pool": "MaxPool AveragePool GlobalAveragePool GlobalMaxPool QLinearAveragePool QLinearGlobalAveragePool ReduceMean",
    "layout": "ReorderInput ReorderOutput Transpose",
    "elementwise": "Add Sub Mul Div Relu Clip Sigmoid HardSigmoid HardSwish Tanh LeakyRelu PRelu Gelu QuickGelu Erf Sqrt "
    "Exp Pow BatchNormalization QuantizeLinear DequantizeLinear QLinearAdd QLinearMul QLinearSigmoid "
    "QLinearLeakyRelu Cast",
}
_KIND_OF = {op: kind for kind, ops in _KINDS.items() for op in ops.split()}


def build_kernels(
    trace: Trace, original: OnnxGraph, optimised: OnnxGraph, *, hook_ms: float = 0.0
) -> tuple[KernelTime, ...]:
    """One `KernelTime` for each kernel that ran, in order, with the labels of the user's nodes.

    Args:
        trace: Without warm-up runs.
        original: The user's graph.
        optimised: The graph that the engine made of it under the same options.
        hook_ms: What the engine's profiler adds to each kernel's time; subtracted.
    """
    groups = map_nodes(original, optimised)
    calls = trace.runs[0]
    found = []
    for index, (call, where) in enumerate(zip(calls, match_calls(calls, optimised), strict=True)):
        node = None if where is None else optimised.nodes[where]
        weights = [] if node is None else [optimised.weights[name] for name in node.inputs if name in optimised.weights]
        shapes = [weight.shape for weight in weights]
        weight_bytes = sum(weight.nbytes for weight in weights) or call.parameter_bytes
        found.append(
            KernelTime(
                name=call.name,
                nodes=() if where is None else groups[where],
                kind=classify(call, shapes),
                macs=count_macs(call, shapes),
                bytes=call.activation_bytes + call.output_bytes + weight_bytes,
                latency=_latency([run[index].us for run in trace.runs], hook_ms),
                output=_output(node),
                op=call.op,
            )
        )
    return tuple(found)


def _latency(us: Sequence[int], hook_ms: float) -> Percentiles:
    """In ms, without the profiler's own time; what is left as less than half a step of the clock counts as that."""
    return percentiles([max(one / 1000 - hook_ms, _CLOCK_STEP_MS / 2) for one in us])


def _output(node: OnnxNode | None) -> str | None:
    return node.outputs[0] if node is not None and node.outputs else None


def count_macs(call: Call, weights: Sequence[tuple[int, ...]]) -> int:
    """Multiply-accumulates of one run; 0 for kernels that have none or whose shapes are not known."""
    if not call.outputs or not call.inputs:
        return 0
    out = math.prod(call.outputs[0])
    if call.op in _CONVS:
        kernel = _conv_weight(call, weights)
        if kernel is None:
            return 0
        per_value = math.prod(kernel[1:])
        return (math.prod(call.inputs[0]) if call.op == "ConvTranspose" else out) * per_value
    if _KIND_OF.get(call.op) == "matmul":
        return out * call.inputs[0][-1] if call.inputs[0] else 0
    return 0


def classify(call: Call, weights: Sequence[tuple[int, ...]]) -> str:
    """The class under which a predictor fits this kernel."""
    if call.op not in _CONVS:
        return _KIND_OF.get(call.op, "other")
    kernel = _conv_weight(call, weights)
    if kernel is None:
        return "conv"
    if kernel[1] == 1 and kernel[0] > 1 and max(call.inputs[0][1], call.inputs[0][-1]) > 1:
        return "depthwise"
    if kernel[1] <= STEM_CHANNELS:
        return "stem"
    return "pointwise" if math.prod(kernel[2:]) == 1 else "conv"


def _conv_weight(call: Call, weights: Sequence[tuple[int, ...]]) -> tuple[int, ...] | None:
    """The convolution's weight, (out, in / groups, ...): of the constants' shapes, else of the profiler's."""
    if not call.inputs:
        return None
    rank = len(call.inputs[0])
    return next((shape for shape in (*weights, *call.inputs[1:]) if len(shape) == rank > 2), None)


def weight_bytes(graph: OnnxGraph) -> int:
    """Bytes of all constants of a graph."""
    return sum(weight.nbytes for weight in graph.weights.values())


def unattributed_ms(kernels: Sequence[KernelTime]) -> float:
    """Time of kernels that stand for no node of the user's graph."""
    return math.fsum(kernel.latency.p50 for kernel in kernels if not kernel.nodes)


def arena_bytes(trace: Trace) -> tuple[int | None, int | None]:
    """Largest use of the engine's arena, and what it took from the system; null where the engine does not say."""
    calls = [call for run in trace.runs for call in run]
    peak = max(call.arena_peak_bytes for call in calls)
    held = max(call.arena_held_bytes for call in calls)
    return peak or None, held or None


def median_ms(values: Sequence[int]) -> float:
    """Median of microseconds, in milliseconds."""
    return statistics.median(values) / 1000
