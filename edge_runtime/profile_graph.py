"""The skeleton of an ONNX file (nodes, tensor names, sizes of weights) without the onnx library: a device has none."""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from device_profiles.errors import EdgeError

MAX_NODES = 200_000
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# TensorProto.DataType -> bytes of one value (onnx.proto); types below a byte count as one
_ITEM_BYTES = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2}


class GraphError(EdgeError):
    """An ONNX file cannot be read as one."""


@dataclass(frozen=True)
class OnnxNode:
    """One node; empty names of optional inputs are kept, so that positions mean what the operator says."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def label(self) -> str:
        """What users call it: its name, or its first output where it has none."""
        return self.name or next((output for output in self.outputs if output), self.op)


@dataclass(frozen=True)
class Weight:
    """A constant of the graph."""

    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True)
class OnnxGraph:
    """Nodes in the file's order (topological, as ONNX demands) and the constants by name."""

    nodes: tuple[OnnxNode, ...]
    weights: dict[str, Weight]


def read_graph(path: Path) -> OnnxGraph:
    """Read the main graph of an ONNX file; subgraphs of If and Loop stay closed.

    Raises:
        GraphError: Not an ONNX file, truncated, or with more than `MAX_NODES` nodes.
    """
    with path.open("rb") as stream:
        if path.stat().st_size == 0:
            raise GraphError(f"Wanted an ONNX model, found an empty file at {path}. Export it again.")
        # Closed when the last view is gone: an error's traceback holds views of it.
        view = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
    try:
        return _read_model(view)
    except (IndexError, UnicodeDecodeError, ValueError) as error:
        raise GraphError(f"Wanted an ONNX model, found: {error}, in {path}. Export it again.") from error


def _read_model(view: memoryview) -> OnnxGraph:
    nodes: list[OnnxNode] = []
    weights: dict[str, Weight] = {}
    found = False
    for field, graph in _fields(view):
        if field != 7 or not isinstance(graph, memoryview):  # ModelProto.graph
            continue
        found = True
        for part, value in _fields(graph):
            if not isinstance(value, memoryview):
                continue
            if part == 1:  # GraphProto.node
                nodes.append(_read_node(value))
                if len(nodes) > MAX_NODES:
                    raise ValueError(f"more than {MAX_NODES} nodes")
            elif part == 5:  # GraphProto.initializer
                name, weight = _read_tensor(value)
                weights[name] = weight
    if not found:
        raise ValueError("no graph")
    return OnnxGraph(tuple(nodes), weights)


def _read_node(view: memoryview) -> OnnxNode:
    inputs: list[str] = []
    outputs: list[str] = []
    text = {3: "", 4: ""}  # NodeProto.name, op_type
    for field, value in _fields(view):
        if not isinstance(value, memoryview):
            continue
        if field == 1:
            inputs.append(str(value, "utf-8"))
        elif field == 2:
            outputs.append(str(value, "utf-8"))
        elif field in text:
            text[field] = str(value, "utf-8")
    return OnnxNode(text[3], text[4], tuple(inputs), tuple(outputs))


def _read_tensor(view: memoryview) -> tuple[str, Weight]:
    name, kind, shape = "", 1, list[int]()
    for field, value in _fields(view):
        if field == 1 and isinstance(value, int):  # TensorProto.dims, one by one
            shape.append(value)
        elif field == 1 and isinstance(value, memoryview):  # or packed
            at = 0
            while at < len(value):
                size, at = _varint(value, at)
                shape.append(size)
        elif field == 2 and isinstance(value, int):
            kind = value
        elif field == 8 and isinstance(value, memoryview):
            name = str(value, "utf-8")
    count = 1
    for size in shape:
        count *= size
    return name, Weight(tuple(shape), count * _ITEM_BYTES.get(kind, 1))


def _fields(view: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Field numbers and values of one protobuf message; lengths are checked against what is there."""
    at = 0
    while at < len(view):
        key, at = _varint(view, at)
        kind = key & 7
        if kind == _VARINT:
            value, at = _varint(view, at)
            yield key >> 3, value
            continue
        if kind == _BYTES:
            size, at = _varint(view, at)
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {kind}")
        if size > len(view) - at:
            raise ValueError(f"{size} B announced, {len(view) - at} B left")
        yield key >> 3, view[at : at + size]
        at += size


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = view[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number of more than ten bytes")
