"""What a head costs a device: parameters, flash, multiply-accumulates, activations."""

from collections.abc import Mapping
from dataclasses import replace

import msgspec
import onnx

from edge_runtime.artefact import Artefact
from edge_runtime.codecs import TABLES_NAME
from split.cut_graph import CutGraph

_PAIR = ("QuantizeLinear", "DequantizeLinear")


class HeadCost(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of one head.

    Attributes:
        parameters: Weights and biases; null where the file's format does not tell them from constants.
        flash_bytes: Model file and entropy tables.
        macs: Multiply-accumulates of one picture.
        peak_activation_bytes: Most that has to be held at once between two operators, integers as one byte.
    """

    parameters: int | None
    flash_bytes: int
    macs: int
    peak_activation_bytes: int


def head_cost(head: Artefact) -> HeadCost:
    """Read from the head's own files.

    Raises:
        EdgeError: The model file cannot be read.
    """
    tables = head.folder / TABLES_NAME
    flash = head.entry.stat().st_size + (tables.stat().st_size if tables.is_file() else 0)
    graph, parameters = _read(head)
    macs = sum(node.macs for node in graph.nodes)
    return HeadCost(
        parameters=parameters, flash_bytes=flash, macs=macs, peak_activation_bytes=peak_activation_bytes(graph)
    )


def peak_activation_bytes(graph: CutGraph) -> int:
    """The most bytes of tensors that are alive at one operator; a real tensor that is only quantised is its integers."""
    graph = _without_weights(graph)
    stored = _stored(graph)
    last: dict[str, int] = {}
    for step, node in enumerate(graph.nodes):
        last |= {stored[name]: step for name in (*node.inputs, *node.outputs)}
    last |= {stored[name]: len(graph.nodes) for name in graph.outputs}
    alive = {stored[name] for name in graph.inputs}
    most = 0
    for step, node in enumerate(graph.nodes):
        alive |= {stored[name] for name in node.outputs}
        most = max(most, sum(graph.tensors[name].nbytes for name in alive))
        alive = {name for name in alive if last[name] > step}
    return most


def _without_weights(graph: CutGraph) -> CutGraph:
    """The same graph without the nodes that make real weights of stored ones."""
    made = {name for node in graph.nodes if not node.inputs for name in node.outputs}
    nodes = tuple(
        replace(node, inputs=tuple(name for name in node.inputs if name not in made))
        for node in graph.nodes
        if node.inputs
    )
    return replace(graph, nodes=nodes, tensors={n: one for n, one in graph.tensors.items() if n not in made})


def _stored(graph: CutGraph) -> Mapping[str, str]:
    """For each tensor the one that an engine really holds: before and behind a quantisation these are the integers."""
    stored = {name: name for name in graph.tensors}
    readers: dict[str, list[int]] = {}
    for step, node in enumerate(graph.nodes):
        for name in node.inputs:
            readers.setdefault(name, []).append(step)
    for node in graph.nodes:
        if node.op == "DequantizeLinear":
            stored[node.outputs[0]] = node.inputs[0]
        elif node.op == "QuantizeLinear" and len(readers[node.inputs[0]]) == 1 and node.inputs[0] not in graph.inputs:
            stored[node.inputs[0]] = node.outputs[0]
    return {name: stored[stored[name]] for name in stored}


def _read(head: Artefact) -> tuple[CutGraph, int | None]:
    if head.entry.suffix == ".tflite":
        from export.cut_litert import load_tflite

        return load_tflite(head.entry).graph, None
    from export.cut_onnx import load_onnx

    network = load_onnx(head.entry)
    return network.graph, onnx_parameters(network.model)


def onnx_parameters(model: onnx.ModelProto) -> int:
    """Elements of all weights and biases; scales and zero points do not count."""
    scales = {name for node in model.graph.node if node.op_type in _PAIR for name in node.input[1:]}
    scales |= {name for node in model.graph.node if node.op_type == "Clip" for name in node.input[1:]}
    total = 0
    for tensor in model.graph.initializer:
        if tensor.name not in scales:
            count = 1
            for size in tensor.dims:
                count *= size
            total += count
    return total
