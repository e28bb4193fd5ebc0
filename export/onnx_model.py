"""Read, check and clean ONNX models: nothing outside of the file, no custom operators, no local paths."""

from collections.abc import Iterator
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from edge_runtime.manifest import MAX_FILE_BYTES, TensorSpec
from export.source import SourceError

OPSET = 20  # the newest that onnxruntime 1.23 (JetPack 6) and TensorRT 10.3 take
MAX_IR_VERSION = 10
MIN_OPSET = 13  # per-channel QuantizeLinear
_DOMAINS = ("", "ai.onnx", "com.microsoft")
_WEIGHT_TYPES = range(onnx.TensorProto.FLOAT, onnx.TensorProto.UINT64 + 1)  # of 8 to 64 bits; no 4-bit, no complex

_DTYPES = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.UINT8: "uint8",
    onnx.TensorProto.INT8: "int8",
    onnx.TensorProto.INT16: "int16",
    onnx.TensorProto.INT32: "int32",
    onnx.TensorProto.INT64: "int64",
    onnx.TensorProto.BOOL: "bool",
}


def read_onnx(data: bytes, *, where: str) -> Any:  # noqa: ANN401 - onnx.ModelProto, untyped here
    """Parse and check a model from outside.

    Symbolic batch sizes become 1; local functions are inlined; the IR version is lowered to `MAX_IR_VERSION`.

    Args:
        data: The file's bytes.
        where: Its path, for messages.

    Raises:
        SourceError: Not ONNX, weights outside of the file, a custom operator, an opset or type that the
            engines do not take, or a size that is only known at run time.
    """
    if len(data) > MAX_FILE_BYTES:
        raise SourceError(f"Wanted an ONNX model of at most {MAX_FILE_BYTES} B, found {len(data)} B in {where}.")
    try:
        model = onnx.ModelProto.FromString(data)
    except DecodeError as error:
        raise SourceError(f"Wanted an ONNX model, found: {error}, in {where}. Export it again.") from error
    if not model.graph.node:
        raise SourceError(f"Wanted an ONNX model with nodes, found an empty graph in {where}.")
    try:
        return _checked(model, where)
    except (
        ValueError,
        RuntimeError,
        TypeError,
        LookupError,
    ) as error:  # of a damaged message: names that are no text, bad enums
        raise SourceError(f"Wanted an ONNX model, found a damaged one ({str(error)[:200]}) in {where}.") from error


def _checked(model: Any, where: str) -> Any:  # noqa: ANN401 - onnx.ModelProto
    check_contents(model, where=where)
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    _fix_batch(model, where)
    _name_nodes(model)
    model.ir_version = min(model.ir_version, MAX_IR_VERSION)
    clean(model)
    check_model(model, where=where)
    return model


def _name_nodes(model: Any) -> None:  # noqa: ANN401 - onnx.ModelProto
    """Names are optional in ONNX, and need not differ; layers are told apart by them here."""
    seen: set[str] = set()
    for index, node in enumerate(model.graph.node):
        if not node.name or node.name in seen:
            node.name = f"{node.op_type}_{index}"
            while node.name in seen:
                node.name += "_"
        seen.add(node.name)


def parse(data: bytes) -> Any:  # noqa: ANN401 - onnx.ModelProto
    """Parse a model that this package wrote."""
    return onnx.ModelProto.FromString(data)


def is_quantised(model: Any) -> bool:  # noqa: ANN401 - onnx.ModelProto
    """Whether the graph has QuantizeLinear nodes already."""
    return any(node.op_type == "QuantizeLinear" for node in model.graph.node)


def looks_quantised(data: bytes) -> bool:
    """As `is_quantised`, for a file that nobody has checked; false for a damaged one, which `read_onnx` names."""
    try:
        return is_quantised(parse(data))
    except DecodeError:
        return False


def output_step(model: Any) -> float | None:  # noqa: ANN401 - onnx.ModelProto
    """The scale of the DequantizeLinear that makes the first output; null when it is made by something else."""
    name = model.graph.output[0].name
    for node in model.graph.node:
        if name in node.output and node.op_type == "DequantizeLinear":
            for tensor in model.graph.initializer:
                if tensor.name == node.input[1]:
                    return float(onnx.numpy_helper.to_array(tensor).max())
    return None


def check_contents(model: Any, *, where: str) -> None:  # noqa: ANN401 - onnx.ModelProto
    """Refuse what must not reach an engine: external data, custom domains, opsets out of range.

    Raises:
        SourceError: Naming the first such thing.
    """
    for tensor in _tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise SourceError(
                f"Wanted all weights inside of {where}, found {tensor.name!r} in another file. "
                "Load and save it with onnx.save_model(model, path, save_as_external_data=False)."
            )
        if tensor.data_type not in _WEIGHT_TYPES:
            raise SourceError(
                f"Wanted tensors of common types, found type {tensor.data_type} in {tensor.name!r} of {where}."
            )
    local = {(function.domain, function.name) for function in model.functions}
    for node in _nodes(model):
        if node.domain not in _DOMAINS and (node.domain, node.op_type) not in local:
            raise SourceError(
                f"Wanted standard operators, found the custom operator {node.domain}::{node.op_type} "
                f"({node.name or 'unnamed'}) in {where}. Replace it: a device has no code for it."
            )
    opset = opset_of(model)
    if not MIN_OPSET <= opset <= OPSET:
        raise SourceError(
            f"Wanted ONNX opset {MIN_OPSET} to {OPSET}, found {opset} in {where}. "
            f"Export it again with opset_version={OPSET}."
        )


def check_model(model: Any, *, where: str) -> None:  # noqa: ANN401 - onnx.ModelProto
    """Run the full checker with shape inference.

    Raises:
        SourceError: With the checker's message.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise SourceError(f"Wanted a valid ONNX model, found: {str(error)[:400]}, in {where}.") from error


def opset_of(model: Any) -> int:  # noqa: ANN401 - onnx.ModelProto
    """The version of the standard operator set; 0 when the model names none."""
    return max((int(one.version) for one in model.opset_import if one.domain in ("", "ai.onnx")), default=0)


def clean(model: Any) -> None:  # noqa: ANN401 - onnx.ModelProto
    """Remove, in place, what tools leave behind: stack traces, local paths, documentation."""
    for part in (model, model.graph, *_graphs(model.graph), *model.functions):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    for graph in (model.graph, *_graphs(model.graph)):
        for value in (*graph.input, *graph.output, *graph.value_info):
            value.ClearField("metadata_props")
            value.ClearField("doc_string")
    for item in (*_nodes(model), *_tensors(model)):
        item.ClearField("metadata_props")
        item.ClearField("doc_string")


def tensor_specs(values: Any, *, where: str) -> tuple[TensorSpec, ...]:  # noqa: ANN401 - repeated ValueInfoProto
    """Inputs or outputs as specs; layouts and meanings are added by the pipeline.

    Raises:
        SourceError: A type that no engine takes, or a size that is only known at run time.
    """
    return tuple(_spec(value, where) for value in values)


def graph_inputs(model: Any) -> list[Any]:  # noqa: ANN401 - onnx.ModelProto
    """The inputs that a caller gives: those without an initializer."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in constants]


def _spec(value: Any, where: str) -> TensorSpec:  # noqa: ANN401 - ValueInfoProto
    kind = value.type.tensor_type
    dtype = _DTYPES.get(kind.elem_type)
    if dtype is None:
        name = onnx.TensorProto.DataType.Name(kind.elem_type)
        raise SourceError(f"Wanted one of {sorted(_DTYPES.values())} for {value.name}, found {name} in {where}.")
    shape = tuple(int(size.dim_value) for size in kind.shape.dim)
    if not all(shape):
        raise SourceError(
            f"Wanted fixed sizes for {value.name}, found {_shape_text(kind)} in {where}. "
            "Only the batch may be symbolic: export it again with fixed sizes."
        )
    return TensorSpec(name=value.name, engine_name=value.name, dtype=dtype, shape=shape)  # type: ignore[arg-type]  # one of DtypeName


def _shape_text(kind: Any) -> str:  # noqa: ANN401 - TypeProto.Tensor
    return "x".join(size.dim_param or str(size.dim_value or "?") for size in kind.shape.dim)


def _fix_batch(model: Any, where: str) -> None:  # noqa: ANN401 - onnx.ModelProto
    """Set a symbolic first size of the inputs to 1 and infer all shapes again."""
    names = set()
    for value in graph_inputs(model):
        sizes = value.type.tensor_type.shape.dim
        if sizes and not sizes[0].dim_value:
            names.add(sizes[0].dim_param)
            sizes[0].ClearField("dim_param")
            sizes[0].dim_value = 1
    if not names:
        return
    for value in model.graph.output:
        for size in value.type.tensor_type.shape.dim:
            if not size.dim_value:
                size.Clear()
    del model.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    model.graph.CopyFrom(inferred.graph)
    tensor_specs(model.graph.output, where=where)


def _graphs(graph: Any) -> Iterator[Any]:  # noqa: ANN401 - GraphProto
    """The graphs inside of control flow, at any depth."""
    for node in graph.node:
        for attribute in node.attribute:
            for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                yield inner
                yield from _graphs(inner)


def _nodes(model: Any) -> Iterator[Any]:  # noqa: ANN401 - ModelProto
    for graph in (model.graph, *_graphs(model.graph), *model.functions):
        yield from graph.node


def _tensors(model: Any) -> Iterator[Any]:  # noqa: ANN401 - ModelProto
    for graph in (model.graph, *_graphs(model.graph)):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for node in _nodes(model):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
