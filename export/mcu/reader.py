"""Reads a ``.tflite`` file into plain tensors and nodes; every later step works on checked values only."""

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from export.mcu.errors import ModelFileError, UnsupportedOpError
from export.mcu.flatbuffer_check import check_model, check_options
from export.mcu.values import MAX_ELEMENTS

Accessor: TypeAlias = Any  # the schema classes carry no types

DTYPES: dict[int, np.dtype[Any]] = {
    schema.TensorType.INT8: np.dtype("int8"),
    schema.TensorType.UINT8: np.dtype("uint8"),
    schema.TensorType.INT16: np.dtype("<i2"),
    schema.TensorType.INT32: np.dtype("<i4"),
    schema.TensorType.INT64: np.dtype("<i8"),
    schema.TensorType.FLOAT32: np.dtype("<f4"),
}
OP_NAMES = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
# The table that holds an operator's options, for the operators that are read with them
_OPTIONS_OF = {
    "CONV_2D": "Conv2DOptions",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions",
    "FULLY_CONNECTED": "FullyConnectedOptions",
    "ADD": "AddOptions",
    "MUL": "MulOptions",
    "AVERAGE_POOL_2D": "Pool2DOptions",
    "MAX_POOL_2D": "Pool2DOptions",
    "MEAN": "ReducerOptions",
    "CONCATENATION": "ConcatenationOptions",
    "SOFTMAX": "SoftmaxOptions",
    "RESIZE_NEAREST_NEIGHBOR": "ResizeNearestNeighborOptions",
}
OPTIONS_NAMES = {code: name for name, code in vars(schema.BuiltinOptions).items() if isinstance(code, int)}


@dataclass(frozen=True)
class FileTensor:
    """One tensor of the file; ``data`` is None for an activation."""

    index: int
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    scales: tuple[np.float32, ...]
    zero_points: tuple[int, ...]
    channel_axis: int
    data: np.ndarray | None


@dataclass(frozen=True)
class Node:
    """One operator of the file. ``options`` is the schema's accessor for its options table, or None."""

    index: int
    op: str
    inputs: tuple[int, ...]  # -1 = left out
    outputs: tuple[int, ...]
    options: Any

    def input_index(self, place: int) -> int:
        """The tensor of input ``place``.

        Raises:
            ModelFileError: There is none.
        """
        index = self.inputs[place] if place < len(self.inputs) else -1
        if index < 0:
            raise ModelFileError(f"node {self.index} ({self.op}): input {place} is missing.")
        return index

    def refuse(self, why: str, accepted: str) -> UnsupportedOpError:
        """Make the error for a form of the operator that can not become C."""
        return UnsupportedOpError(f"node {self.index} ({self.op}): {why}. Accepted: {accepted}.")


@dataclass(frozen=True)
class ModelFile:
    """All that the front end uses of a file."""

    tensors: tuple[FileTensor, ...]
    nodes: tuple[Node, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def read_model(data: bytes) -> ModelFile:
    """Read a ``.tflite`` file with one subgraph.

    Args:
        data: The file's bytes, from any source.

    Returns:
        Tensors, nodes in execution order, graph inputs and outputs; indices are checked.

    Raises:
        ModelFileError: The bytes are damaged or inconsistent.
        UnsupportedOpError: A tensor type or a custom operator that no accepted operator uses.
    """
    check_model(data)
    model = schema.Model.GetRootAs(data, 0)
    if model.SubgraphsLength() != 1:
        raise ModelFileError(f"wanted one subgraph, found {model.SubgraphsLength()}; control flow is not supported.")
    graph = model.Subgraphs(0)
    tensors = tuple(_read_tensor(model, graph.Tensors(i), i) for i in range(graph.TensorsLength()))
    inputs = _indices(graph.InputsAsNumpy(), len(tensors), "graph inputs")
    outputs = _indices(graph.OutputsAsNumpy(), len(tensors), "graph outputs")
    nodes = tuple(_read_node(data, model, graph.Operators(i), i, len(tensors)) for i in range(graph.OperatorsLength()))
    if not inputs or not outputs or not nodes:
        raise ModelFileError("the network has no inputs, outputs or operators; nothing to generate.")
    return ModelFile(tensors, nodes, inputs, outputs)


def _indices(raw: Accessor, count: int, what: str) -> tuple[int, ...]:
    """Check tensor indices; -1 (left out) stays."""
    found = tuple(int(i) for i in np.atleast_1d(raw)) if isinstance(raw, np.ndarray) else ()
    for index in found:
        if not -1 <= index < count:
            raise ModelFileError(f"{what} refer to tensor {index}, but the file has {count} tensors; file damaged.")
    return found


def _read_tensor(model: Accessor, tensor: Accessor, index: int) -> FileTensor:
    name = (tensor.Name() or b"").decode("utf-8", "replace")
    shape = tuple(int(n) for n in np.atleast_1d(tensor.ShapeAsNumpy())) if tensor.ShapeLength() else ()
    if any(n < 1 for n in shape) or math.prod(shape) > MAX_ELEMENTS:
        raise ModelFileError(
            f"tensor {index} ({name[:80]}) has shape {shape[:8]}; wanted 1 to {MAX_ELEMENTS} elements."
        )
    dtype = DTYPES.get(tensor.Type())
    if dtype is None or tensor.Sparsity() is not None:
        raise UnsupportedOpError(
            f"tensor {index} ({name[:80]}) has type code {tensor.Type()} or is sparse. "
            "Accepted: dense int8 (with int32 biases)."
        )
    scales, zero_points, axis = _read_quantization(tensor.Quantization(), index)
    return FileTensor(
        index, name, shape, dtype, scales, zero_points, axis, _read_data(model, tensor, index, shape, dtype)
    )


def _read_quantization(quantization: Accessor, index: int) -> tuple[tuple[np.float32, ...], tuple[int, ...], int]:
    if quantization is None or not quantization.ScaleLength():
        return (), (), 0
    scales = tuple(np.float32(s) for s in quantization.ScaleAsNumpy())
    zero_points = tuple(int(z) for z in quantization.ZeroPointAsNumpy()) if quantization.ZeroPointLength() else ()
    zero_points = zero_points or (0,) * len(scales)
    if len(zero_points) != len(scales) or not all(np.isfinite(s) and s > 0 for s in scales):
        raise ModelFileError(
            f"tensor {index}: {len(scales)} scales and {len(zero_points)} zero points, or a scale that is not > 0."
        )
    return scales, zero_points, int(quantization.QuantizedDimension())


def _read_data(
    model: Accessor, tensor: Accessor, index: int, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> np.ndarray | None:
    if tensor.Buffer() >= model.BuffersLength():
        raise ModelFileError(
            f"tensor {index} refers to buffer {tensor.Buffer()} of {model.BuffersLength()}; file damaged."
        )
    buffer = model.Buffers(tensor.Buffer())
    if buffer.Offset() > 1:
        raise ModelFileError(
            f"tensor {index}: its data lies outside the flatbuffer (a file over 2 GB); not for a microcontroller."
        )
    count = buffer.DataLength()
    if count == 0:
        return None
    wanted = math.prod(shape) * dtype.itemsize
    if count != wanted:
        raise ModelFileError(f"tensor {index} has {count} bytes of data, but shape {shape} of {dtype} needs {wanted}.")
    return np.frombuffer(buffer.DataAsNumpy().tobytes(), dtype=dtype).reshape(shape)


def _read_node(data: bytes, model: Accessor, operator: Accessor, index: int, tensor_count: int) -> Node:
    if operator.OpcodeIndex() >= model.OperatorCodesLength():
        raise ModelFileError(
            f"node {index} refers to operator code {operator.OpcodeIndex()} of {model.OperatorCodesLength()}."
        )
    code = model.OperatorCodes(operator.OpcodeIndex())
    number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
    name = OP_NAMES.get(number, f"operator {number}")
    if name == "CUSTOM":
        name = f"CUSTOM {(code.CustomCode() or b'?').decode('utf-8', 'replace')[:60]}"
    options = None
    table = OPTIONS_NAMES.get(operator.BuiltinOptionsType(), "NONE")
    wanted = _OPTIONS_OF.get(name)
    if wanted is not None and table not in (wanted, "NONE"):
        raise ModelFileError(f"node {index} ({name}) wants {wanted}, found {table}; file damaged.")
    if wanted == table and operator.BuiltinOptions() is not None:
        union = operator.BuiltinOptions()
        check_options(data, union.Pos, table)
        options = getattr(schema, table)()
        options.Init(union.Bytes, union.Pos)
    inputs = _indices(operator.InputsAsNumpy(), tensor_count, f"inputs of node {index}")
    outputs = _indices(operator.OutputsAsNumpy(), tensor_count, f"outputs of node {index}")
    if not inputs or not outputs or -1 in outputs:
        raise ModelFileError(f"node {index} ({name}) has no inputs or outputs; file damaged.")
    return Node(index, name, inputs, outputs, options)
