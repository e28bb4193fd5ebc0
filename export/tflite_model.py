"""Look into .tflite files: what they take and give, whether they are full integer, and what must be refused."""

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edge_runtime.manifest import MAX_FILE_BYTES, Quantisation, TensorSpec
from export.source import SourceError

_FLOATS = (schema.TensorType.FLOAT32, schema.TensorType.FLOAT16, schema.TensorType.FLOAT64, schema.TensorType.BFLOAT16)
_DTYPES = {
    schema.TensorType.FLOAT32: "float32",
    schema.TensorType.FLOAT16: "float16",
    schema.TensorType.UINT8: "uint8",
    schema.TensorType.INT8: "int8",
    schema.TensorType.INT16: "int16",
    schema.TensorType.INT32: "int32",
    schema.TensorType.INT64: "int64",
    schema.TensorType.BOOL: "bool",
}
_LARGEST_TENSORS = 100_000


@dataclass(frozen=True)
class TfliteModel:
    """What a .tflite file says of itself."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    float_tensors: tuple[str, ...]  # names, constants included
    operators: tuple[str, ...]  # kinds in use, sorted

    @property
    def is_full_integer(self) -> bool:
        """True when no tensor holds floats."""
        return not self.float_tensors

    @property
    def is_quantised(self) -> bool:
        """True when only inputs and outputs hold floats: everything between is integers already."""
        return set(self.float_tensors) <= {spec.engine_name for spec in (*self.inputs, *self.outputs)}


def read_tflite(data: bytes, *, where: str) -> TfliteModel:
    """Check a .tflite file from outside and describe its main graph.

    Args:
        data: The file's bytes.
        where: Its path, for messages.

    Raises:
        SourceError: Not a .tflite file, weights outside of it, custom operators, several or dynamic signatures.
    """
    if len(data) > MAX_FILE_BYTES or data[4:8] != b"TFL3":
        raise SourceError(f"Wanted a .tflite file of at most {MAX_FILE_BYTES} B, found {len(data)} B in {where}.")
    try:
        return _read(schema.Model.GetRootAs(data, 0), where)
    except (struct.error, IndexError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise SourceError(
            f"Wanted a .tflite file, found a damaged one ({error}) in {where}. Copy or convert it again."
        ) from error


def _read(model: Any, where: str) -> TfliteModel:  # noqa: ANN401 - a generated flatbuffer class
    if not 1 <= model.SubgraphsLength() <= 64:
        raise SourceError(f"Wanted a model with a graph, found {model.SubgraphsLength()} graphs in {where}.")
    if hasattr(model, "ExternalBuffersLength") and model.ExternalBuffersLength():
        raise SourceError(f"Wanted all weights inside of {where}, found external buffers. Convert it to one file.")
    kinds = _operators(model, where)
    graph = model.Subgraphs(0)
    if not 1 <= graph.TensorsLength() <= _LARGEST_TENSORS:
        raise SourceError(f"Wanted 1 to {_LARGEST_TENSORS} tensors, found {graph.TensorsLength()} in {where}.")
    floats = []
    for index in range(model.SubgraphsLength()):
        one = model.Subgraphs(index)
        for number in range(min(one.TensorsLength(), _LARGEST_TENSORS)):
            tensor = one.Tensors(number)
            if tensor.Type() in _FLOATS:
                floats.append(_name(tensor) or f"tensor {number}")
    inputs = tuple(_spec(graph.Tensors(graph.Inputs(i)), where) for i in range(graph.InputsLength()))
    outputs = tuple(_spec(graph.Tensors(graph.Outputs(i)), where) for i in range(graph.OutputsLength()))
    return TfliteModel(inputs, outputs, tuple(floats), kinds)


def _operators(model: Any, where: str) -> tuple[str, ...]:  # noqa: ANN401 - a generated flatbuffer class
    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    found = set()
    for index in range(min(model.OperatorCodesLength(), 4096)):
        code = model.OperatorCodes(index)
        kind = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        if kind == schema.BuiltinOperator.CUSTOM:
            custom = (code.CustomCode() or b"?").decode("utf-8", "replace")
            raise SourceError(
                f"Wanted builtin operators, found the custom operator {custom!r} in {where}. Replace it: a device has no code for it."
            )
        found.add(names.get(kind, f"operator {kind}"))
    return tuple(sorted(found))


def _name(tensor: Any) -> str:  # noqa: ANN401 - a generated flatbuffer class
    return (tensor.Name() or b"").decode("utf-8", "replace")


def _spec(tensor: Any, where: str) -> TensorSpec:  # noqa: ANN401 - a generated flatbuffer class
    name = _name(tensor)
    dtype = _DTYPES.get(tensor.Type())
    if dtype is None:
        raise SourceError(
            f"Wanted one of {sorted(_DTYPES.values())} for {name!r}, found type {tensor.Type()} in {where}."
        )
    signature = [tensor.ShapeSignature(i) for i in range(tensor.ShapeSignatureLength())]
    shape = tuple(int(tensor.Shape(i)) for i in range(tensor.ShapeLength()))
    if any(size < 0 for size in signature[1:]) or any(size < 1 for size in shape):
        raise SourceError(f"Wanted fixed sizes for {name!r}, found {signature or list(shape)} in {where}.")
    return TensorSpec(
        name=name,
        engine_name=name,
        dtype=dtype,  # type: ignore[arg-type]  # one of DtypeName
        shape=shape,
        quantisation=_quantisation(tensor) if np.issubdtype(np.dtype(dtype), np.integer) else None,
    )


def _quantisation(tensor: Any) -> Quantisation | None:  # noqa: ANN401 - a generated flatbuffer class
    found = tensor.Quantization()
    if found is None or found.ScaleLength() != 1:
        return None
    zero_point = int(found.ZeroPoint(0)) if found.ZeroPointLength() else 0
    return Quantisation(scale=float(found.Scale(0)), zero_point=zero_point)
