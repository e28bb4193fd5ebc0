"""Cut a quantised ONNX network (QuantizeLinear/DequantizeLinear pairs) into head.onnx and tail.onnx.

The head ends at the outputs of QuantizeLinear nodes and the tail starts there, so that ONNX Runtime fuses on each side
what it fuses in the whole network: no fusion of quantised operators reaches across a QuantizeLinear output, with one
exception, which is barred here (`_requantised`). A DequantizeLinear of the crossing tensor belongs to the tail.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from onnx import numpy_helper

from device_profiles.errors import EdgeError
from edge_runtime.manifest import Quantisation
from export.errors import first_line
from export.onnx_macs import Shapes, node_macs
from export.onnx_model import read_onnx
from split.cut_graph import CutGraph, CutNode, CutTensor
from split.cuts import Cut

_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")  # what onnxruntime implements itself
_QUANTISE, _DEQUANTISE = "QuantizeLinear", "DequantizeLinear"
_REQUANTISED = "requantised at once: onnxruntime merges the two roundings"


class OnnxCutError(EdgeError):
    """An ONNX file cannot be cut: not readable, unsafe, or without the facts (static shapes) that a cut needs."""


@dataclass(frozen=True)
class OnnxNetwork:
    """A checked model and its graph; node i of the graph is node i of the model.

    `optimisation` is the highest level of onnxruntime at which its cuts are exact: "all", but "basic" where biases are
    not quantised (the TensorRT form). There the levels above choose between integer and real kernels for a convolution
    by looking at the whole graph, so the choice can differ in a tail.
    """

    model: onnx.ModelProto
    graph: CutGraph
    optimisation: Literal["all", "basic"]


def load_onnx(source: Path | bytes) -> OnnxNetwork:
    """Read and check an ONNX model.

    Args:
        source: A file or its bytes.

    Raises:
        SourceError: Not ONNX, external data, or custom operators.
        OnnxCutError: Control flow, sparse weights, or a shape that is only known at run time.
        CutGraphError: Nodes out of order, or a tensor made twice.
    """
    where = str(source) if isinstance(source, Path) else "the given bytes"
    data = source.read_bytes() if isinstance(source, Path) else source
    try:
        model = read_onnx(data, where=where)
        _check_plain(model.graph, where)
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True)
        graph = _to_graph(model, inferred, where)
    except (ValueError, IndexError, TypeError, onnx.shape_inference.InferenceError) as error:
        # Bytes that are no text in a name, an operator without its inputs: the libraries raise plain Python errors.
        raise OnnxCutError(
            f"Wanted a valid ONNX model, found: {first_line(error)}, in {where}. Export it again."
        ) from error
    return OnnxNetwork(model, graph, "basic" if _has_real_bias(model.graph) else "all")


def split_onnx(network: OnnxNetwork, cut: Cut) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Write the two models of a cut: (head, tail).

    Both keep the opset and IR version; names of tensors stay, so that the head's outputs and the tail's inputs are the
    crossing tensors in the cut's order. Doc strings, metadata and unused initialisers are left behind.

    Raises:
        OnnxCutError: A model that was written does not pass the checker.
    """
    graph = network.graph
    proto = network.model.graph
    crossing = [_value_info(tensor) for tensor in cut.tensors]
    tail, _ = graph.reach_back(graph.outputs, stop=frozenset(cut.names))
    head, read = graph.reach_back(cut.names)
    inputs = [value for value in proto.input if value.name in read]
    return (
        _submodel(network.model, head, inputs, crossing),
        _submodel(network.model, tail, crossing, list(proto.output)),
    )


def _check_plain(proto: onnx.GraphProto, where: str) -> None:
    if proto.sparse_initializer:
        raise OnnxCutError(f"Wanted dense weights, found sparse ones in {where}. Export it again with dense weights.")
    for node in proto.node:
        if any(one.HasField("g") or one.graphs for one in node.attribute):
            raise OnnxCutError(f"Wanted a graph without control flow, found {node.op_type} {node.name!r} in {where}.")


def _to_graph(model: onnx.ModelProto, inferred: onnx.ModelProto, where: str) -> CutGraph:
    proto = model.graph
    values = {tensor.name: tensor for tensor in proto.initializer}
    initialisers = {name: tuple(tensor.dims) for name, tensor in values.items()}
    constants = {name: tensor.ByteSize() for name, tensor in values.items()}
    for node in proto.node:
        if node.op_type == "Constant":
            constants[node.output[0]] = node.ByteSize()
            values.update((node.output[0], attribute.t) for attribute in node.attribute if attribute.name == "value")
    inputs = tuple(value.name for value in proto.input if value.name not in initialisers)
    types = _types(inferred, where)
    quantisation = _quantisations(proto, values)
    barred = _requantised(proto, quantisation)
    names = [*inputs, *(name for node in proto.node for name in node.output if name)]
    tensors = {}
    for name in names:
        if name not in types:
            raise OnnxCutError(
                f"Wanted the shape of {name!r}, found none in {where}. Export with a fixed batch and size."
            )
        dtype, shape = types[name]
        reason = _REQUANTISED if name in barred else None
        tensors[name] = CutTensor(name, shape, dtype, quantisation.get(name), reason)
    shapes = {**{name: shape for name, (_, shape) in types.items()}, **initialisers}
    return CutGraph(
        nodes=tuple(_node(index, node, initialisers, shapes) for index, node in enumerate(proto.node)),
        tensors=tensors,
        constants=constants,
        inputs=inputs,
        outputs=tuple(value.name for value in proto.output),
    )


def _node(index: int, node: onnx.NodeProto, initialisers: Shapes, shapes: Shapes) -> CutNode:
    own = tuple(name for name in node.input if name in initialisers)
    return CutNode(
        name=node.name or f"{node.op_type}_{index}",
        op=node.op_type,
        inputs=tuple(name for name in node.input if name and name not in initialisers),
        outputs=tuple(name for name in node.output if name),
        macs=node_macs(node, shapes),
        constants=(node.output[0],) if node.op_type == "Constant" else own,
        repeatable=node.op_type == _DEQUANTISE,
    )


def _types(inferred: onnx.ModelProto, where: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type name and shape of every tensor whose shape is known; a size that is not fixed is refused."""
    types: dict[str, tuple[str, tuple[int, ...]]] = {}
    graph = inferred.graph
    for value in [*graph.value_info, *graph.input, *graph.output]:
        tensor = value.type.tensor_type
        if not tensor.HasField("shape"):
            continue
        sizes = []
        for dimension in tensor.shape.dim:
            if not dimension.HasField("dim_value"):
                raise OnnxCutError(
                    f"Wanted fixed sizes, found {dimension.dim_param or 'an unknown size'!r} in the shape of {value.name!r} in {where}. "
                    "Export with a fixed batch and size."
                )
            sizes.append(dimension.dim_value)
        types[value.name] = (_dtype_name(tensor.elem_type), tuple(sizes))
    return types


def _dtype_name(element: int) -> str:
    try:
        return str(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(element)).name)
    except KeyError:
        return f"onnx-type-{element}"


def _quantisations(proto: onnx.GraphProto, values: dict[str, onnx.TensorProto]) -> dict[str, Quantisation]:
    """Scale and zero point of each integer tensor that a QuantizeLinear makes or a DequantizeLinear reads."""
    found: dict[str, Quantisation] = {}
    for node in proto.node:
        if node.op_type not in (_QUANTISE, _DEQUANTISE) or len(node.input) < 2:
            continue
        integer = node.output[0] if node.op_type == _QUANTISE else node.input[0]
        scale = values.get(node.input[1])
        zero = values.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        if scale is None or integer in values or prod(scale.dims) != 1 or integer in found:
            continue
        if zero is None and len(node.input) > 2 and node.input[2]:
            continue
        zero_point = 0 if zero is None else int(numpy_helper.to_array(zero).reshape(-1)[0])
        step = float(numpy_helper.to_array(scale).reshape(-1)[0])
        if 0.0 < step < float("inf"):
            found[integer] = Quantisation(scale=step, zero_point=zero_point)
    return found


def _requantised(proto: onnx.GraphProto, quantisation: dict[str, Quantisation]) -> set[str]:
    """Tensors next to a DequantizeLinear that feeds a QuantizeLinear with other parameters.

    onnxruntime replaces such a pair of pairs by one rounding, which it cannot do when a cut lies between them.
    """
    origin = {node.output[0]: node.input[0] for node in proto.node if node.op_type == _DEQUANTISE}
    barred: set[str] = set()
    for node in proto.node:
        if node.op_type == _QUANTISE and node.input[0] in origin:
            before, after = origin[node.input[0]], node.output[0]
            if quantisation.get(before) != quantisation.get(after):
                barred |= {before, after}
    return barred


def _has_real_bias(proto: onnx.GraphProto) -> bool:
    """Whether a convolution or matrix product of dequantised inputs adds a bias that was never quantised."""
    made_by = {name: node.op_type for node in proto.node for name in node.output}
    real = {tensor.name for tensor in proto.initializer if tensor.data_type == onnx.TensorProto.FLOAT}
    return any(
        node.op_type in ("Conv", "ConvTranspose", "Gemm")
        and len(node.input) > 2
        and node.input[2] in real
        and made_by.get(node.input[0]) == _DEQUANTISE
        for node in proto.node
    )


def _value_info(tensor: CutTensor) -> onnx.ValueInfoProto:
    element = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype))
    return onnx.helper.make_tensor_value_info(tensor.name, element, tensor.shape)


def _submodel(
    model: onnx.ModelProto,
    indices: Iterable[int],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
) -> onnx.ModelProto:
    nodes = [_clean_node(model.graph.node[index]) for index in indices]
    used = {name for node in nodes for name in node.input}
    initialisers = []
    for tensor in model.graph.initializer:
        if tensor.name in used:
            copy = onnx.TensorProto()
            copy.CopyFrom(tensor)
            copy.ClearField("doc_string")
            initialisers.append(copy)
    domains = {"" if node.domain == "ai.onnx" else node.domain for node in nodes} | {""}
    imports = [one for one in model.opset_import if ("" if one.domain == "ai.onnx" else one.domain) in domains]
    graph = onnx.helper.make_graph(
        nodes, "network", [_clean_value(v) for v in inputs], [_clean_value(v) for v in outputs], initialisers
    )
    result = onnx.helper.make_model(graph, opset_imports=imports, ir_version=model.ir_version, producer_name="headtail")
    try:
        onnx.checker.check_model(result, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise OnnxCutError(f"Wanted a valid half of the network, found: {error}. Report this cut.") from error
    return result


def _clean_node(node: onnx.NodeProto) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.ClearField("doc_string")
    copy.ClearField("metadata_props")
    return copy


def _clean_value(value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    copy = onnx.ValueInfoProto()
    copy.CopyFrom(value)
    copy.ClearField("doc_string")
    copy.ClearField("metadata_props")
    return copy
