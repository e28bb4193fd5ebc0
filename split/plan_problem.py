"""The two-place planning problem: a network, what each operator costs on the device and on the host, how tensors travel.

Times of operators come from a profile or a prediction; here they are joined with the graph and checked.
"""

import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from device_profiles.errors import EdgeError
from device_profiles.measurement import Profile, ProfileError
from edge_runtime.manifest import Quantisation
from split.cut_blocks import Blocks, build_blocks, free_nodes
from split.cut_graph import CutGraph, CutGraphError, CutNode

_REAL = ("float32", "float16", "float64")


class MissingKernelError(EdgeError):
    """A profile says nothing of some operators of the network."""


class CyclicGraphError(CutGraphError):
    """Operators that wait for each other."""


class DisconnectedGraphError(CutGraphError):
    """An input that reaches no output, or an output that depends on no input: not one network."""


@dataclass(frozen=True)
class Cost:
    """Time of one operator on one place, ms."""

    p50_ms: float
    p95_ms: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.p50_ms) and math.isfinite(self.p95_ms) and 0 <= self.p50_ms <= self.p95_ms):
            raise ProfileError(
                f"Wanted finite times 0 <= p50 <= p95, found p50 {self.p50_ms} and p95 {self.p95_ms} ms."
            )


FREE = Cost(0.0, 0.0)


@dataclass(frozen=True)
class Encoder:
    """One way to send crossing tensors. `accuracy_drop` is what the network loses by it, 0..1; null is not known."""

    name: str
    bytes_per_value: float  # on the wire, for each element of the tensor
    encode_ms_per_byte: float = 0.0  # on the device, for each byte on the wire
    decode_ms_per_byte: float = 0.0  # on the host
    accuracy_drop: float | None = 0.0
    fixed_bytes: int = 0  # tables and headers of the codec, each message

    def __post_init__(self) -> None:
        values = (self.bytes_per_value, self.encode_ms_per_byte, self.decode_ms_per_byte, self.fixed_bytes)
        if not all(math.isfinite(value) and value >= 0 for value in values) or self.bytes_per_value == 0:
            raise ProfileError(
                f"Wanted finite costs >= 0 and a positive size of encoder {self.name!r}, found {values}."
            )


RAW_INT8 = Encoder("int8", 1.0)
RAW_FP32 = Encoder("fp32", 4.0)


@dataclass(frozen=True)
class TwoPlaces:
    """Device and host. Costs are one for each node of the graph, in its order; see `make_problem`."""

    graph: CutGraph
    device: tuple[Cost, ...]
    host: tuple[Cost, ...]
    encoders: tuple[Encoder, ...] = (RAW_INT8,)
    down_bytes: int = 0  # of an answer
    supported_ops: frozenset[str] | None = None  # on the device; null: all

    @cached_property
    def blocks(self) -> Blocks:
        """Operators that no cut separates, merged."""
        return build_blocks(self.graph)

    @cached_property
    def free(self) -> frozenset[int]:
        """Nodes that may stand on both sides; they cost nothing of their own."""
        return free_nodes(self.graph)

    def supports(self, nodes: Iterable[int]) -> bool:
        """Whether the device can run all of these nodes."""
        return self.supported_ops is None or {self.graph.nodes[index].op for index in nodes} <= self.supported_ops

    def values_of(self, name: str) -> int:
        """Number of elements of a tensor."""
        return math.prod(self.graph.tensors[name].shape)


def make_problem(
    graph: CutGraph,
    device: Sequence[Cost],
    host: Sequence[Cost],
    *,
    encoders: tuple[Encoder, ...] = (RAW_INT8,),
    supported_ops: frozenset[str] | None = None,
) -> TwoPlaces:
    """Check a problem; times of repeatable operators are moved to the operator that reads them first.

    Raises:
        DisconnectedGraphError: Inputs and outputs are not joined.
        ProfileError: Not one cost for each node, or no encoder.
    """
    check_connected(graph)
    if len(device) != len(graph.nodes) or len(host) != len(graph.nodes) or not encoders:
        raise ProfileError(
            f"Wanted a cost for each of {len(graph.nodes)} operators on both places and an encoder, "
            f"found {len(device)}, {len(host)} and {len(encoders)}."
        )
    down = sum(graph.tensors[name].nbytes for name in graph.outputs)
    moved = (_move_free(graph, device), _move_free(graph, host))
    return TwoPlaces(graph, *moved, encoders=encoders, down_bytes=down, supported_ops=supported_ops)


def costs_from_profile(graph: CutGraph, profile: Profile, *, factor: float = 1.0) -> tuple[Cost, ...]:
    """Time of each operator from a measured profile.

    A fused kernel's time goes to its operator with the most multiply-accumulates. Kernel medians are scaled so that
    they add up to the whole model's median (kernels that belong to no operator, and time outside kernels, are spread
    in proportion); p95 follows the whole model's ratio of p95 to p50.

    Args:
        graph: Names of its nodes are those of the profile's kernels.
        profile: Checked with `require_usable`.
        factor: For a place that is so many times slower.

    Raises:
        MissingKernelError: Operators that no kernel covers; the message names them.
        ProfileError: The factor is not positive.
    """
    if not (math.isfinite(factor) and factor > 0):
        raise ProfileError(f"Wanted a positive factor, found {factor}.")
    if not profile.kernels:
        raise MissingKernelError(
            f"Wanted times of single kernels of {profile.model}, found none: {profile.engine.name} gave none. "
            "Plan with the artefact for onnxruntime."
        )
    index_of = {node.name: index for index, node in enumerate(graph.nodes)}
    covered: set[int] = set()
    times = [0.0] * len(graph.nodes)
    for kernel in profile.kernels:
        indices = [index_of[name] for name in kernel.nodes if name in index_of]
        covered.update(indices)
        if indices:
            times[max(indices, key=lambda index: (graph.nodes[index].macs, -index))] += kernel.latency.p50
    free = free_nodes(graph)
    missing = [node.name for index, node in enumerate(graph.nodes) if index not in covered and index not in free]
    if missing:
        raise MissingKernelError(
            f"Wanted a kernel for every operator of {profile.model}, found none for {len(missing)}: "
            f"{', '.join(missing[:3])}{' ..' if len(missing) > 3 else ''}. Profile the same file at the same level again."
        )
    scale = factor * profile.whole.p50 / math.fsum(times)
    tail_ratio = profile.whole.p95_or_bound / profile.whole.p50
    return tuple(Cost(time * scale, time * scale * tail_ratio) for time in times)


def let_floats_cross(graph: CutGraph) -> CutGraph:
    """The same network with its real activations allowed to cross, for a plan of a network before quantisation.

    Inputs stay barred: sending them is sending the picture. Sizes in values stay; an `Encoder` says the bytes.
    """
    step = Quantisation(scale=1.0, zero_point=0)
    tensors = {
        name: replace(tensor, dtype="uint8", quantisation=step, barred=None)
        if tensor.dtype in _REAL and name not in graph.inputs
        else tensor
        for name, tensor in graph.tensors.items()
    }
    return CutGraph(graph.nodes, tensors, graph.constants, graph.inputs, graph.outputs)


def check_connected(graph: CutGraph) -> None:
    """Refuse what is not one network.

    Raises:
        DisconnectedGraphError: An input reaches no output, or an output depends on no input.
    """
    _, read = graph.reach_back(graph.outputs)
    unread = sorted(set(graph.inputs) - read)
    if unread:
        raise DisconnectedGraphError(f"Wanted every input to reach an output, found {unread[0]!r} reaching none.")
    for name in graph.outputs:
        if not graph.reach_back((name,))[1]:
            raise DisconnectedGraphError(
                f"Wanted every output to depend on an input, found {name!r} depending on none."
            )


def order_nodes(nodes: Sequence[CutNode]) -> tuple[CutNode, ...]:
    """Sort operators topologically, keeping the given order where there is a choice.

    Raises:
        CyclicGraphError: Operators wait for each other; the message names one.
    """
    producers: Mapping[str, int] = {name: index for index, node in enumerate(nodes) for name in node.outputs}
    waits = [{producers[name] for name in node.inputs if name in producers} for node in nodes]
    followers: list[list[int]] = [[] for _ in nodes]
    for index, makers in enumerate(waits):
        for maker in makers:
            followers[maker].append(index)
    ready = [index for index, makers in enumerate(waits) if not makers]
    heapq.heapify(ready)
    order: list[int] = []
    while ready:
        index = heapq.heappop(ready)
        order.append(index)
        for follower in followers[index]:
            waits[follower].discard(index)
            if not waits[follower]:
                heapq.heappush(ready, follower)
    if len(order) < len(nodes):
        stuck = min(set(range(len(nodes))) - set(order))
        raise CyclicGraphError(
            f"Wanted operators without a cycle, found {len(nodes) - len(order)} that wait for each other, "
            f"{nodes[stuck].op} {nodes[stuck].name!r} among them."
        )
    return tuple(nodes[index] for index in order)


def _move_free(graph: CutGraph, costs: Sequence[Cost]) -> tuple[Cost, ...]:
    free = free_nodes(graph)
    moved = list(costs)
    for index in sorted(free):
        outputs = set(graph.nodes[index].outputs)
        reader = next((i for i in range(index + 1, len(moved)) if outputs & set(graph.nodes[i].inputs)), None)
        if reader is not None:
            moved[reader] = Cost(moved[reader].p50_ms + moved[index].p50_ms, moved[reader].p95_ms + moved[index].p95_ms)
        moved[index] = FREE
    return tuple(moved)
