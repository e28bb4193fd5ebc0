"""Write a part of a .tflite model as a model of its own."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from export.tflite_checks import items

_BUFFER_ALIGNMENT = 16  # as the schema asks; engines read weights in place


class _Buffer(schema.BufferT):
    """A buffer that is written with the schema's alignment, which the generated Python code leaves out."""

    def Pack(self, builder: Any) -> Any:  # noqa: ANN401 - overrides the generated method
        if self.data is None or len(self.data) == 0:
            schema.BufferStart(builder)
            return schema.BufferEnd(builder)
        content = np.asarray(self.data, np.uint8).tobytes()
        builder.StartVector(1, len(content), _BUFFER_ALIGNMENT)
        builder.head = builder.head - len(content)
        builder.Bytes[builder.head : builder.head + len(content)] = content
        data = builder.EndVector()
        schema.BufferStart(builder)
        schema.BufferAddData(builder, data)
        return schema.BufferEnd(builder)


@dataclass(frozen=True)
class Part:
    """What one side keeps: numbers of operators in order, and the names of its inputs and outputs."""

    operators: Sequence[int]
    inputs: Sequence[str]
    outputs: Sequence[str]
    role: Literal["head", "tail"]


def write_part(old: Any, names: tuple[str, ...], part: Part) -> bytes:  # noqa: ANN401 - schema.ModelT
    """Write the operators of a part with what they need.

    Args:
        old: The whole model, unpacked and checked.
        names: A unique name for each of its tensors; the part's tensors carry them.
        part: What to keep.

    Returns:
        The bytes of a .tflite file; equal arguments give equal bytes.
    """
    old_graph = old.subgraphs[0]
    index_of = {name: index for index, name in enumerate(names)}
    new = schema.ModelT()
    new.version = old.version
    new.description = f"headtail {part.role}".encode()
    new.buffers = [_Buffer()]
    graph = schema.SubGraphT()
    graph.name = old_graph.name
    graph.tensors, graph.operators, new.operatorCodes = [], [], []
    tensors = _Renumbering(old, new.buffers, graph.tensors, names)
    codes: dict[int, int] = {}
    graph.inputs = [tensors.keep(index_of[name]) for name in part.inputs]
    for number in part.operators:
        operator = copy.copy(old_graph.operators[number])
        if operator.opcodeIndex not in codes:
            codes[operator.opcodeIndex] = len(codes)
            new.operatorCodes.append(old.operatorCodes[operator.opcodeIndex])
        operator.opcodeIndex = codes[operator.opcodeIndex]
        for field in ("inputs", "outputs", "intermediates"):
            setattr(operator, field, [tensors.keep(int(index)) for index in items(getattr(operator, field))])
        operator.debugMetadataIndex = -1
        graph.operators.append(operator)
    graph.outputs = [tensors.keep(index_of[name]) for name in part.outputs]
    graph.debugMetadataIndex = -1
    new.subgraphs = [graph]
    _carry_runtime_version(old, new)
    if old.signatureDefs:
        new.signatureDefs = [_signature(old.signatureDefs[0], graph, names, part)]
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(new.Pack(builder), b"TFL3")
    return bytes(builder.Output())


class _Renumbering:
    """Takes over tensors and buffers one by one, in the order of first use, and gives them new numbers."""

    def __init__(self, old: Any, buffers: list[Any], tensors: list[Any], names: tuple[str, ...]) -> None:  # noqa: ANN401
        self._old, self._buffers, self._tensors, self._names = old, buffers, tensors, names
        self._tensor_of: dict[int, int] = {}
        self._buffer_of: dict[int, int] = {}

    def keep(self, index: int) -> int:
        """New number of an old tensor; -1 (left out) stays."""
        if index < 0:
            return -1
        if index not in self._tensor_of:
            tensor = copy.copy(self._old.subgraphs[0].tensors[index])
            tensor.name = self._names[index].encode()
            tensor.buffer = self._keep_buffer(int(tensor.buffer))
            self._tensor_of[index] = len(self._tensors)
            self._tensors.append(tensor)
        return self._tensor_of[index]

    def _keep_buffer(self, index: int) -> int:
        data = self._old.buffers[index].data
        if data is None or len(data) == 0:
            return 0
        if index not in self._buffer_of:
            self._buffer_of[index] = len(self._buffers)
            buffer = _Buffer()
            buffer.data = data
            self._buffers.append(buffer)
        return self._buffer_of[index]


def _carry_runtime_version(old: Any, new: Any) -> None:  # noqa: ANN401 - schema.ModelT
    for entry in items(old.metadata):
        if entry.name == b"min_runtime_version" and 0 <= entry.buffer < len(old.buffers):
            buffer = _Buffer()
            buffer.data = old.buffers[entry.buffer].data
            kept = schema.MetadataT()
            kept.name, kept.buffer = entry.name, len(new.buffers)
            new.buffers.append(buffer)
            new.metadata = [kept]
            return


def _signature(old: Any, graph: Any, names: tuple[str, ...], part: Part) -> Any:  # noqa: ANN401 - generated classes
    """The whole network's signature with its own names at its own ends, and tensor names at the cut."""
    known = {names[entry.tensorIndex]: entry.name for entry in [*items(old.inputs), *items(old.outputs)]}
    signature = schema.SignatureDefT()
    signature.signatureKey, signature.subgraphIndex = old.signatureKey, 0
    signature.inputs = [_mapping(known.get(n, n.encode()), i) for n, i in zip(part.inputs, graph.inputs, strict=True)]
    signature.outputs = [
        _mapping(known.get(n, n.encode()), i) for n, i in zip(part.outputs, graph.outputs, strict=True)
    ]
    return signature


def _mapping(name: bytes, index: int) -> Any:  # noqa: ANN401 - schema.TensorMapT
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name, index
    return entry
