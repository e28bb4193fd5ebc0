"""What TensorRT would refuse in an ONNX file, found before it is shipped to a board that has it.

Rules follow TensorRT's documentation of explicit quantisation: signed 8-bit integers, zero point 0, activations with
one scale for the whole tensor, weights with one scale per output channel, no quantised biases, Q/DQ pairs instead of
integer operators; and what holds for any build without optimisation profiles: fixed sizes, standard operators. None of
this has been run against TensorRT itself.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
from onnx import numpy_helper

from device_profiles.errors import EdgeError
from edge_runtime.manifest import Precision
from export.onnx_model import parse

MAX_OPSET = 20  # of the ONNX parser in TensorRT 10.3 (JetPack 6.1)
_QUANTISE, _DEQUANTISE = "QuantizeLinear", "DequantizeLinear"
_INTEGER_OPERATORS = frozenset(
    ("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear", "QGemm", "QLinearAdd")
)
_WEIGHT_AXIS = {"Conv": 0, "ConvTranspose": 1, "Gemm": None, "MatMul": None}  # null: either axis of a matrix
_TYPES = frozenset(
    (
        onnx.TensorProto.FLOAT,
        onnx.TensorProto.FLOAT16,
        onnx.TensorProto.INT8,
        onnx.TensorProto.INT32,
        onnx.TensorProto.INT64,
        onnx.TensorProto.BOOL,
    )
)

Rule = Literal[
    "asymmetric",
    "unsigned",
    "per-channel-activation",
    "weight-axis",
    "quantised-bias",
    "integer-operator",
    "unknown-scale",
    "type",
    "operator",
    "opset",
    "size",
    "precision",
]


class TensorRtLintError(EdgeError):
    """TensorRT would refuse this file; the message names rule and node."""


@dataclass(frozen=True)
class Finding:
    """One reason for a refusal."""

    rule: Rule
    node: str  # the operator or tensor
    message: str


@dataclass(frozen=True)
class _Graph:
    """Look-ups that the rules share."""

    model: onnx.ModelProto
    constants: Mapping[str, onnx.TensorProto]
    made_by: Mapping[str, onnx.NodeProto]
    readers: Mapping[str, list[tuple[onnx.NodeProto, int]]]  # tensor -> (node, which of its inputs)


def check_tensorrt(data: bytes, *, precision: Precision, where: str) -> None:
    """Refuse a file that TensorRT would refuse.

    Raises:
        TensorRtLintError: With the first findings and their number.
    """
    findings = lint_tensorrt(data, precision=precision)
    if findings:
        shown = "; ".join(f"{one.rule} at {one.node}: {one.message}" for one in findings[:3])
        raise TensorRtLintError(
            f"Wanted a file that TensorRT takes, found {len(findings)} reasons against it in {where}: {shown}. "
            "Export the float model for this board: symmetric int8 with real biases is made for it."
        )


def lint_tensorrt(data: bytes, *, precision: Precision) -> list[Finding]:
    """All reasons against a file, in the order of its nodes.

    Args:
        data: An ONNX model that was checked already.
        precision: What the manifest will say: int8 wants Q/DQ pairs, fp16 half-precision weights.
    """
    model = parse(data)
    graph = _index(model)
    findings = [*_file_findings(model), *_precision_findings(graph, precision)]
    for node in model.graph.node:
        findings += _node_findings(graph, node)
    return findings


def _index(model: onnx.ModelProto) -> _Graph:
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    made_by: dict[str, onnx.NodeProto] = {}
    readers: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
    for node in model.graph.node:
        made_by.update(dict.fromkeys(node.output, node))
        if node.op_type == "Constant":
            constants.update((node.output[0], one.t) for one in node.attribute if one.name == "value")
        for position, name in enumerate(node.input):
            readers.setdefault(name, []).append((node, position))
    return _Graph(model, constants, made_by, readers)


def _file_findings(model: onnx.ModelProto) -> Iterator[Finding]:
    opset = max((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), default=0)
    if opset > MAX_OPSET:
        yield Finding("opset", "the file", f"wanted opset {MAX_OPSET} or less, found {opset}")
    constants = {tensor.name for tensor in model.graph.initializer}
    for value in model.graph.input:
        sizes = value.type.tensor_type.shape.dim
        if value.name not in constants and not all(size.dim_value > 0 for size in sizes):
            yield Finding("size", value.name, "wanted fixed sizes, found one that is only known at run time")
    for kind, name in [
        *((value.type.tensor_type.elem_type, value.name) for value in (*model.graph.input, *model.graph.output)),
        *((tensor.data_type, tensor.name) for tensor in model.graph.initializer),
    ]:
        if kind not in (*_TYPES, onnx.TensorProto.UINT8):  # uint8 is judged where it is quantised
            yield Finding("type", name, f"wanted a type of TensorRT, found {onnx.TensorProto.DataType.Name(kind)}")


def _precision_findings(graph: _Graph, precision: Precision) -> Iterator[Finding]:
    pairs = any(node.op_type == _QUANTISE for node in graph.model.graph.node)
    if precision == "int8" and not pairs:
        yield Finding("precision", "the file", "wanted Q/DQ pairs for int8, found none")
    if precision != "int8" and pairs:
        yield Finding("precision", "the file", f"wanted no Q/DQ pairs for {precision}, found some")
    halves = any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in graph.constants.values())
    if precision == "fp16" and not halves:
        # Strongly typed networks compute in the types of the file; nothing turns fp32 weights into fp16.
        yield Finding("precision", "the file", "wanted half-precision weights for fp16, found none")


def _node_findings(graph: _Graph, node: onnx.NodeProto) -> Iterator[Finding]:
    name = node.name or node.output[0]
    if node.op_type in _INTEGER_OPERATORS:
        yield Finding("integer-operator", name, f"wanted Q/DQ pairs around a float operator, found {node.op_type}")
    elif node.domain not in ("", "ai.onnx"):
        yield Finding("operator", name, f"wanted a standard operator, found {node.domain}.{node.op_type}")
    elif node.op_type in (_QUANTISE, _DEQUANTISE):
        yield from _quantiser_findings(graph, node, name)


def _quantiser_findings(graph: _Graph, node: onnx.NodeProto, name: str) -> Iterator[Finding]:
    stored = graph.constants.get(node.input[0]) if node.op_type == _DEQUANTISE else None
    kind = _integer_kind(graph, node, stored)
    if stored is not None and (kind == onnx.TensorProto.INT32 or _feeds_bias(graph, node)):
        yield Finding("quantised-bias", name, "wanted a real bias, found a dequantised one")
        return
    if kind != onnx.TensorProto.INT8:
        found = onnx.TensorProto.DataType.Name(kind)
        yield Finding("unsigned", name, f"wanted signed 8-bit integers, found {found}")
    zero = graph.constants.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    if zero is not None and np.any(numpy_helper.to_array(zero).astype(np.int64)):
        values = np.unique(numpy_helper.to_array(zero).astype(np.int64))
        yield Finding("asymmetric", name, f"wanted zero point 0, found {values[:3].tolist()}")
    scale = graph.constants.get(node.input[1])
    if scale is None:
        yield Finding("unknown-scale", name, "wanted a constant scale, found one that is computed")
        return
    steps = numpy_helper.to_array(scale)
    if not np.all(np.isfinite(steps.astype(np.float64)) & (steps > 0)):
        yield Finding("unknown-scale", name, "wanted positive finite scales, found others")
    if steps.size > 1:
        yield from _channel_findings(graph, node, name, stored)


def _channel_findings(
    graph: _Graph, node: onnx.NodeProto, name: str, stored: onnx.TensorProto | None
) -> Iterator[Finding]:
    constant = stored is not None or (node.op_type == _QUANTISE and node.input[0] in graph.constants)
    behind_constant = node.input[0] in graph.made_by and _from_constant(graph, node.input[0])
    if not constant and not behind_constant:
        yield Finding("per-channel-activation", name, "wanted one scale for an activation, found one for each channel")
        return
    axis = next((one.i for one in node.attribute if one.name == "axis"), 1)
    for reader, _ in graph.readers.get(node.output[0], []):
        wanted = _WEIGHT_AXIS.get(reader.op_type, axis)
        if wanted is not None and axis != wanted:
            yield Finding(
                "weight-axis", name, f"wanted scales along axis {wanted} of {reader.op_type}, found axis {axis}"
            )


def _from_constant(graph: _Graph, name: str) -> bool:
    """Whether a tensor is a weight that passed a QuantizeLinear."""
    maker = graph.made_by.get(name)
    return maker is not None and maker.op_type == _QUANTISE and maker.input[0] in graph.constants


def _feeds_bias(graph: _Graph, node: onnx.NodeProto) -> bool:
    readers = graph.readers.get(node.output[0], [])
    return any(position == 2 and reader.op_type in _WEIGHT_AXIS for reader, position in readers)


def _integer_kind(graph: _Graph, node: onnx.NodeProto, stored: onnx.TensorProto | None) -> int:
    """Type of the integers on the quantised side; uint8 is what ONNX assumes when nothing says otherwise."""
    if stored is not None:
        return int(stored.data_type)
    if len(node.input) > 2 and node.input[2] in graph.constants:
        return int(graph.constants[node.input[2]].data_type)
    declared = next((one.i for one in node.attribute if one.name == "output_dtype"), 0)
    if node.op_type == _DEQUANTISE:
        maker = graph.made_by.get(node.input[0])
        if maker is not None and maker.op_type == _QUANTISE:
            return _integer_kind(graph, maker, None)
        given = {value.name: value.type.tensor_type.elem_type for value in graph.model.graph.input}
        return int(given.get(node.input[0], onnx.TensorProto.UINT8))
    return int(declared or onnx.TensorProto.UINT8)
