"""Checks every offset of a ``.tflite`` file before the parser library sees a byte.

The FlatBuffers runtime for Python follows offsets without bounds checks (a signed offset may even wrap to the end of
the buffer), so the rules of FlatBuffers' own verifier are applied here to the tables that the front end reads.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from export.mcu.errors import ModelFileError

FILE_IDENTIFIER = b"TFL3"
MAX_FILE_BYTES = 256 * 1024 * 1024
MAX_TABLES = 200_000  # tables visited, counted again each time one is shared


@dataclass(frozen=True)
class Vector:
    """A vector of scalars of ``width`` bytes, or of tables when ``table`` names one."""

    width: int = 4
    table: str = ""


@dataclass(frozen=True)
class Child:
    """A field that points to one table."""

    table: str


Field = int | Vector | Child  # int: width in bytes of a scalar
SCHEMA: Mapping[str, Mapping[int, Field]] = {
    # vtable slot -> field; slots that the front end never reads are left out
    "Model": {4: 4, 6: Vector(table="OperatorCode"), 8: Vector(table="SubGraph"), 12: Vector(table="Buffer")},
    "OperatorCode": {4: 1, 6: Vector(1), 8: 4, 10: 4},
    "SubGraph": {4: Vector(table="Tensor"), 6: Vector(), 8: Vector(), 10: Vector(table="Operator"), 12: Vector(1)},
    "Tensor": {4: Vector(), 6: 1, 8: 4, 10: Vector(1), 12: Child("Quantization"), 14: 1, 16: Child("Empty"), 24: 4},
    "Quantization": {8: Vector(), 10: Vector(8), 12: 1, 16: 4},
    "Operator": {4: 4, 6: Vector(), 8: Vector(), 10: 1, 12: Child("Options")},
    "Buffer": {4: Vector(1), 6: 8, 8: 8},
    "Empty": {},
    # Widest scalar that any options table of the accepted operators has in the slot; Options are re-checked by type.
    "Options": {},
}
OPTIONS: Mapping[str, Mapping[int, Field]] = {
    "Conv2DOptions": {4: 1, 6: 4, 8: 4, 10: 1, 12: 4, 14: 4},
    "DepthwiseConv2DOptions": {4: 1, 6: 4, 8: 4, 10: 4, 12: 1, 14: 4, 16: 4},
    "FullyConnectedOptions": {4: 1, 6: 1, 8: 1, 10: 1},
    "AddOptions": {4: 1, 6: 1},
    "MulOptions": {4: 1},
    "Pool2DOptions": {4: 1, 6: 4, 8: 4, 10: 4, 12: 4, 14: 1},
    "ReducerOptions": {4: 1},
    "ConcatenationOptions": {4: 4, 6: 1},
    "SoftmaxOptions": {4: 4},
    "ResizeNearestNeighborOptions": {4: 1, 6: 1},
}


class _Checker:
    """Walks tables; every read is inside the buffer or raises."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.visited = 0

    def number(self, code: str, at: int, what: str) -> int:
        size = struct.calcsize(code)
        if at < 0 or at + size > len(self.data):
            raise ModelFileError(
                f"{what}: wanted {size} bytes at offset {at}, but the file ends at {len(self.data)}. "
                "The file is damaged or cut short; fetch or export it again."
            )
        return int(struct.unpack_from("<" + code, self.data, at)[0])

    def table(self, at: int, name: str, fields: Mapping[int, Field]) -> None:
        self.visited += 1
        if self.visited > MAX_TABLES:
            raise ModelFileError(
                f"the file refers to more than {MAX_TABLES} tables; no network for a microcontroller does."
            )
        vtable = at - self.number("i", at, f"{name} table")
        vtable_bytes = self.number("H", vtable, f"{name} vtable")
        object_bytes = self.number("H", vtable + 2, f"{name} vtable")
        if vtable_bytes < 4 or vtable_bytes % 2 or vtable + vtable_bytes > len(self.data):
            raise ModelFileError(
                f"{name} vtable at {vtable} has an impossible size of {vtable_bytes} bytes; file damaged."
            )
        if object_bytes < 4 or at + object_bytes > len(self.data):
            raise ModelFileError(f"{name} table at {at} says {object_bytes} bytes, past the file's end; file damaged.")
        for slot, field in fields.items():
            place = self.number("H", vtable + slot, name) if slot < vtable_bytes else 0
            if place:
                self.field(at, place, object_bytes, f"{name}[{slot}]", field)

    def field(self, at: int, place: int, object_bytes: int, what: str, field: Field) -> None:
        width = field if isinstance(field, int) else 4
        if place < 4 or place + width > object_bytes:
            raise ModelFileError(f"{what} lies at {place} of a table of {object_bytes} bytes; file damaged.")
        if isinstance(field, int):
            return
        target = at + place + self.number("I", at + place, what)
        if isinstance(field, Child):
            self.table(target, field.table, SCHEMA[field.table])
            return
        count = self.number("I", target, what)
        if target + 4 + count * field.width > len(self.data):
            raise ModelFileError(f"{what} claims {count} elements at {target}, past the file's end; file damaged.")
        if field.table:
            for i in range(count):
                entry = target + 4 + 4 * i
                self.table(entry + self.number("I", entry, what), field.table, SCHEMA[field.table])


def check_model(data: bytes) -> None:
    """Check a whole ``.tflite`` file.

    Args:
        data: The file's bytes; at most ``MAX_FILE_BYTES``.

    Raises:
        ModelFileError: It is no TFL3 file, or an offset, size or count leaves the file. Time and memory are bounded by
            ``MAX_TABLES``, never by a number that the file states.
    """
    if len(data) > MAX_FILE_BYTES:
        raise ModelFileError(f"the file has {len(data)} bytes; wanted at most {MAX_FILE_BYTES} for a microcontroller.")
    if len(data) < 8 or data[4:8] != FILE_IDENTIFIER:
        found = data[4:8].hex() or "nothing"
        raise ModelFileError(f"wanted a .tflite file (identifier {FILE_IDENTIFIER.decode()} at byte 4), found {found}.")
    checker = _Checker(data)
    checker.table(checker.number("I", 0, "file root"), "Model", SCHEMA["Model"])


def check_options(data: bytes, at: int, name: str) -> None:
    """Check the options table of one operator at byte ``at`` as the table type ``name``.

    Raises:
        ModelFileError: A field leaves the table or the file.
    """
    _Checker(data).table(at, name, OPTIONS[name])
