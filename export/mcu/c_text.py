"""Writes constants as C text: integers only, so every value is exact."""

from collections.abc import Iterable, Sequence

import numpy as np

LINE = 110


def integers(values: Iterable[int]) -> str:
    """A braced list without the braces, wrapped into lines."""
    lines: list[str] = []
    line: list[str] = []
    used = 0
    for value in values:
        text = str(value)
        if used + len(text) + 1 > LINE:
            lines.append(",".join(line) + ",")
            line, used = [], 0
        line.append(text)
        used += len(text) + 1
    lines.append(",".join(line))
    return "\n    ".join(lines)


def int8_array(name: str, data: bytes) -> str:
    """A 4-byte aligned constant array of int8."""
    values = np.frombuffer(data, np.int8).tolist()
    return f"static const int8_t {name}[{len(values)}] HT_ALIGNED = {{\n    {integers(values)}}};\n"


def uint16_array(name: str, values: Sequence[int]) -> str:
    """A constant array of uint16."""
    return f"static const uint16_t {name}[{len(values)}] = {{\n    {integers(values)}}};\n"


def int32_array(name: str, values: list[int]) -> str:
    """A constant array of int32; the smallest integer is spelt as a subtraction, as C has no literal for it."""
    words = [str(v) if v != -(2**31) else "-2147483647 - 1" for v in values]
    rows = [", ".join(words[i : i + 8]) for i in range(0, len(words), 8)]
    return f"static const int32_t {name}[{len(values)}] = {{\n    " + ",\n    ".join(rows) + "};\n"


def initialiser(*fields: object) -> str:
    """A braced initialiser."""
    return "{" + ", ".join(str(field) for field in fields) + "}"


def c_name(text: str) -> str:
    """A C identifier part made of a free name: lower case letters, digits, single underscores."""
    name = "".join(ch if ch.isascii() and ch.isalnum() else "_" for ch in text.lower())
    while "__" in name:
        name = name.replace("__", "_")
    name = name.strip("_")[:48].rstrip("_")
    return name if name and not name[0].isdigit() else f"n{name}"
