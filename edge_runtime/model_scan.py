"""Look through a model file before its parser does: custom operators, data outside of the file, damage.

Reads the wire formats of protobuf and flatbuffers directly, with bounds, a depth and a number of fields; it builds
nothing, and steps over weights by their length. Field numbers: onnx.proto (ONNX 1.18) and schema.fbs (TensorFlow Lite).
"""

import mmap
import struct
from pathlib import Path

from device_profiles.errors import EdgeError

ONNX_DOMAINS = (b"", b"ai.onnx", b"ai.onnx.ml", b"com.microsoft")
MAX_DEPTH = 64  # messages in messages
MAX_FIELDS = 4_000_000  # a few seconds; a network has some ten thousand
_CUSTOM = 32  # BuiltinOperator
_NOTHING, _DOMAIN, _OUTSIDE, _LOCATION = "", "domain", "outside", "location"
# message -> field number -> the message in it, or what the field means
_FIELDS = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute", 7: _DOMAIN},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: _OUTSIDE, 14: _LOCATION},
}


class ModelScanError(EdgeError):
    """A model file is refused before its engine sees it."""


class UnsafeModelError(ModelScanError):
    """A custom operator, or data outside of the file."""


class DamagedModelError(ModelScanError):
    """Truncated, nested too deep, or not a model of that kind."""


def scan_onnx(path: Path) -> None:
    """Refuse operators of unknown domains and external data in an .onnx file.

    Raises:
        UnsafeModelError: Naming the domain, or that weights lie elsewhere.
        DamagedModelError: Not the wire format of an ONNX model.
    """
    with _Mapped(path) as data:
        try:
            graphs = _walk(data, path)
        except (IndexError, _WireError) as error:
            raise DamagedModelError(f"Wanted an ONNX model, found damaged bytes ({error}) in {path}.") from error
    if not graphs:
        raise DamagedModelError(f"Wanted an ONNX model, found none (no graph) in {path}.")


def scan_tflite(path: Path) -> None:
    """Refuse custom operators and buffers outside of a .tflite file.

    Raises:
        UnsafeModelError: Naming the operator, or the buffer.
        DamagedModelError: Not the wire format of a TensorFlow Lite model.
    """
    with _Mapped(path) as data:
        try:
            _check_tflite(_Flat(data), path)
        except (_WireError, struct.error) as error:
            raise DamagedModelError(
                f"Wanted a TensorFlow Lite model, found damaged bytes ({error}) in {path}."
            ) from error


class _WireError(Exception):
    """Bytes that are no message."""


class _Mapped:
    """A file's bytes without reading what is stepped over."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> mmap.mmap:
        with self._path.open("rb") as stream:
            try:
                self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            except ValueError as error:
                raise DamagedModelError(f"Wanted a model, found an empty file at {self._path}.") from error
        return self._map

    def __exit__(self, *_: object) -> None:
        self._map.close()


def _walk(data: mmap.mmap, path: Path) -> int:
    """Go through all messages that matter; how many graphs the model itself has."""
    todo = [("model", 0, len(data), 0)]
    fields = graphs = 0
    while todo:
        kind, at, end, depth = todo.pop()
        if depth > MAX_DEPTH:
            raise _WireError(f"more than {MAX_DEPTH} messages in each other")
        meanings = _FIELDS[kind]
        while at < end:
            fields += 1
            if fields > MAX_FIELDS:
                raise _WireError(f"more than {MAX_FIELDS} fields")
            tag = data[at]
            at += 1
            if tag > 127:
                tag, at = _varint(data, at - 1)
            wire, meaning = tag & 7, meanings.get(tag >> 3, _NOTHING)
            value = 0
            if wire in (0, 2):
                value = data[at]
                at += 1
                if value > 127:
                    value, at = _varint(data, at - 1)
            start, at = at, at + (value if wire == 2 else _FIXED_BYTES.get(wire, 0))
            if at > end or wire not in _WIRES or tag < 8:
                raise _WireError(f"field {tag >> 3} of a {kind} at byte {start}")
            if not meaning:
                continue
            if wire == 2 and meaning in _FIELDS:
                todo.append((meaning, start, at, depth + 1))
                graphs += kind == "model" and meaning == "graph"
            else:
                _judge(meaning, wire, value, data[start : min(at, start + 200)], path)
    return graphs


_WIRES = (0, 1, 2, 5)
_FIXED_BYTES = {1: 8, 5: 4}


def _judge(meaning: str, wire: int, value: int, content: bytes, path: Path) -> None:
    if meaning == _DOMAIN and wire == 2 and content not in ONNX_DOMAINS:
        raise UnsafeModelError(
            f"Wanted operators of ONNX and onnxruntime, found one of the domain {content.decode('utf-8', 'replace')!r} "
            f"in {path}. Export the model without custom operators."
        )
    if (meaning == _OUTSIDE and wire == 2) or (meaning == _LOCATION and wire == 0 and value):
        raise UnsafeModelError(
            f"Wanted all weights inside of the model file, found external data in {path}. Export it as one file."
        )


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise _WireError(f"a number without an end at byte {at}")


class _Flat:
    """Reads of a flatbuffer that stay inside of it."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.size = data, len(data)

    def number(self, code: str, at: int) -> int:
        """A little-endian number; `code` as in `struct`."""
        if at < 0:
            raise _WireError(f"an offset before the file ({at})")
        return int(struct.unpack_from("<" + code, self.data, at)[0])

    def table(self, at: int) -> int:
        """Position of the table that the offset at `at` points to."""
        return at + self.number("I", at)

    def field(self, table: int, index: int) -> int:
        """Position of a table's field; 0 when it is not there."""
        vtable = table - self.number("i", table)
        if 4 + 2 * index >= self.number("H", vtable):
            return 0
        offset = self.number("H", vtable + 4 + 2 * index)
        return table + offset if offset else 0

    def value(self, table: int, index: int, code: str) -> int:
        """A number in a table; 0 when it is not there."""
        at = self.field(table, index)
        return self.number(code, at) if at else 0

    def vector(self, table: int, index: int, item_bytes: int) -> tuple[int, int]:
        """Position of the first item and number of items; (0, 0) when it is not there."""
        at = self.field(table, index)
        if not at:
            return 0, 0
        at = self.table(at)
        count = self.number("I", at)
        if at + 4 + count * item_bytes > self.size:
            raise _WireError(f"{count} items at byte {at} reach beyond the file")
        return at + 4, count

    def tables(self, table: int, index: int) -> list[int]:
        """Positions of the tables of a vector."""
        first, count = self.vector(table, index, 4)
        if count > MAX_FIELDS:
            raise _WireError(f"more than {MAX_FIELDS} tables")
        return [self.table(first + 4 * position) for position in range(count)]


def _check_tflite(flat: _Flat, path: Path) -> None:
    if flat.data[4:8] != b"TFL3":
        raise _WireError("no TFL3 at byte 4")
    model = flat.table(0)
    for code in flat.tables(model, 1):  # operator_codes
        number = max(flat.value(code, 0, "b"), flat.value(code, 3, "i"))
        first, length = flat.vector(code, 1, 1)
        if number == _CUSTOM or length:
            name = flat.data[first : first + min(length, 200)].decode("utf-8", "replace") if length else "no name"
            raise UnsafeModelError(
                f"Wanted operators of LiteRT, found the custom operator {name!r} in {path}. Export the model without it."
            )
    if any(flat.vector(model, index, 4)[1] for index in (8, 9)):  # external_buffer_groups, external_buffers
        raise UnsafeModelError(
            f"Wanted all weights inside of the model file, found external buffers in {path}. Export it as one file."
        )
    for index, buffer in enumerate(flat.tables(model, 4)):  # buffers: in the flatbuffer, or behind it in the file
        flat.vector(buffer, 0, 1)
        offset, size = flat.value(buffer, 1, "Q"), flat.value(buffer, 2, "Q")
        if offset > 1 and offset + size > flat.size:
            raise UnsafeModelError(
                f"Wanted all weights inside of the model file, found buffer {index} at bytes {offset} to {offset + size} "
                f"in {path} of {flat.size} B. Export it as one file."
            )
    if not flat.tables(model, 2):
        raise _WireError("no subgraph")
