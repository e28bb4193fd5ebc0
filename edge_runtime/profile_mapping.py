"""Which nodes of the user's graph each kernel stands for.

The engine fuses nodes and renames tensors. Tensors that keep their name tie a kernel to the node that made them; what
lies between a kernel's inputs and its outputs was fused into it. Works on two graphs, one of the user and one that the
engine made of it, and runs nothing.
"""

import re
from collections.abc import Sequence

from edge_runtime.profile_graph import OnnxGraph, OnnxNode
from edge_runtime.profile_trace import Call

_ENGINE_OPS = frozenset({"ReorderInput", "ReorderOutput"})
# What an engine appends to the kernel before; everything else (convolutions, Pad, DequantizeLinear) starts one.
_APPENDED = frozenset(
    [
        "Add",
        "Sub",
        "Mul",
        "Relu",
        "Clip",
        "Sigmoid",
        "HardSigmoid",
        "HardSwish",
        "Tanh",
        "LeakyRelu",
        "PRelu",
        "BatchNormalization",
        "QuantizeLinear",
    ]
)
_RENAMED = re.compile(r"(?P<tensor>.+?)(?:_nchwc|_nhwc)?(?:_token_\d+)?\Z")


def match_calls(calls: Sequence[Call], optimised: OnnxGraph) -> list[int | None]:
    """Which node of the optimised graph each call ran: by name, then by operator and order among nameless ones."""
    by_name: dict[str, list[int]] = {}
    nameless: dict[str, list[int]] = {}
    for index, node in enumerate(optimised.nodes):
        if node.name:
            by_name.setdefault(node.name, []).append(index)
        else:
            nameless.setdefault(node.op, []).append(index)
    found: list[int | None] = []
    for call in calls:
        queue = by_name.get(call.name) or nameless.get(call.op)
        found.append(queue.pop(0) if queue else None)
    return found


def map_nodes(original: OnnxGraph, optimised: OnnxGraph) -> list[tuple[str, ...]]:
    """For each node of the optimised graph the labels of the user's nodes that it computes, in the user's order.

    A node of the user's graph is given to one kernel at most. Kernels of the engine's own (layout changes) get none.
    """
    producer = {name: index for index, node in enumerate(original.nodes) for name in node.outputs if name}
    consumers: dict[str, list[int]] = {}
    for index, node in enumerate(original.nodes):
        for name in node.inputs:
            consumers.setdefault(name, []).append(index)
    anchors = _find_anchors(original, optimised, producer)
    anchored = {producer[tensor] for tensors in anchors for tensor in tensors}
    # The last kernel claims first: where two branches meet, the sum is fused into the one that runs later.
    for index in reversed(range(len(anchors))):
        anchors[index] |= _extend(anchors[index], original, producer, consumers, anchored)
    claimed: set[int] = set(anchored)
    groups = []
    for tensors in anchors:
        group = _reach_back({producer[tensor] for tensor in tensors}, original, producer, claimed)
        claimed |= group
        groups.append(tuple(original.nodes[i].label for i in sorted(group)))
    return groups


def _find_anchors(original: OnnxGraph, optimised: OnnxGraph, producer: dict[str, int]) -> list[set[str]]:
    """For each kernel the tensors of the user's graph that it is known to compute."""
    by_label = {node.name: node for node in original.nodes if node.name}
    renamed: dict[str, str] = {}  # the engine's name of a tensor -> the user's
    for node in optimised.nodes:
        if node.op in _ENGINE_OPS and node.inputs and node.outputs and node.outputs[0] in producer:
            renamed[node.inputs[0]] = node.outputs[0]
    for node in optimised.nodes:  # layout changes that the engine inserted have tensors of two names
        if node.op == "Transpose" and node.outputs[0] in producer and not _same(node, original, producer):
            renamed[node.inputs[0]] = node.outputs[0]
    used: set[str] = set()
    anchors: list[set[str]] = []
    for node in optimised.nodes:
        inserted = node.op in _ENGINE_OPS or (node.op == "Transpose" and node.inputs[0] in renamed)
        found = set() if inserted else {renamed.get(name, name) for name in node.outputs} & set(producer)
        if not found and not inserted:
            found = _anchor_by_name(node, by_label, producer)
        anchors.append(found - used)
        used |= found
    return anchors


def _same(node: OnnxNode, original: OnnxGraph, producer: dict[str, int]) -> bool:
    return original.nodes[producer[node.outputs[0]]].op == node.op


def _anchor_by_name(node: OnnxNode, by_label: dict[str, OnnxNode], producer: dict[str, int]) -> set[str]:
    """Kernels in another layout are named after the tensor that the convolution made; fused ones after a node."""
    match = _RENAMED.match(node.name)
    for name in ([match["tensor"]] if match else []) + [node.name, node.name.removeprefix("fused ")]:
        if name in producer:
            return {name}
        if name in by_label:
            return {output for output in by_label[name].outputs if output}
    return set()


def _extend(
    tensors: set[str],
    original: OnnxGraph,
    producer: dict[str, int],
    consumers: dict[str, list[int]],
    anchored: set[int],
) -> set[str]:
    """Follow a tensor forward through nodes that no kernel computes under their own name; they were fused here."""
    added: set[str] = set()
    for tensor in tensors:
        while len(users := consumers.get(tensor, [])) == 1:
            node = original.nodes[users[0]]
            if users[0] in anchored or node.op not in _APPENDED or len(node.outputs) != 1:
                break
            anchored.add(users[0])
            tensor = node.outputs[0]
            added.add(tensor)
    return added & set(producer)


def _reach_back(start: set[int], original: OnnxGraph, producer: dict[str, int], claimed: set[int]) -> set[int]:
    """The start nodes and all that only they need, back to what other kernels compute."""
    group, waiting = set(start), list(start)
    while waiting:
        for name in original.nodes[waiting.pop()].inputs:
            index = producer.get(name)
            if index is not None and index not in claimed and index not in group:
                if original.nodes[index].op == "Constant":
                    continue
                group.add(index)
                waiting.append(index)
    return group
