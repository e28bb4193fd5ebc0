"""A table set as C source for firmware: constants that csrc/ht_entropy.c encodes with."""

from collections.abc import Iterable

import numpy as np

from edge_runtime.entropy.baked import bake
from edge_runtime.entropy.tables import TableSet

_PER_LINE = 12


def table_source(tables: TableSet, name: str) -> str:
    """C99 that defines `const ht_tables <name>`, `<name>_id[4]` and `<name>_base_<tensor>[]` in flash.

    The firmware encodes layer by layer; it gets no decoder slots and no reciprocals (Cortex-M divides in hardware).

    Raises:
        ValueError: `name` is not a C identifier.
    """
    if not (name.isidentifier() and name.isascii()):
        raise ValueError(f"Wanted a C identifier as the name of the tables, found {name!r}.")
    baked = bake(tables)
    parts = ['#include "ht_entropy.h"\n', _array("uint32_t", f"{name}_entries", baked.entry.tolist(), static=True)]
    costs = "NULL"
    if tables.variants > 1:
        costs = f"{name}_costs"
        parts.append(_array("uint16_t", costs, baked.cost.tolist(), static=True))
    parts += [
        _array("uint16_t", f"{name}_offset", baked.offset.tolist(), static=True),
        _array("uint8_t", f"{name}_low", baked.low.tolist(), static=True),
        _array("uint8_t", f"{name}_count", baked.count.tolist(), static=True),
        _array("uint8_t", f"{name}_id", tables.id),
        *(_array("uint8_t", f"{name}_base_{number}", plan.base) for number, plan in enumerate(tables.tensors)),
        f"extern const ht_tables {name};\n",
        f"const ht_tables {name} = {{{name}_entries, NULL, {costs}, NULL, {name}_offset, {name}_low, {name}_count, "
        f"{len(tables.tables)}, {tables.block}, {tables.variants}}};\n",
    ]
    return "".join(parts)


def table_flash_bytes(tables: TableSet) -> int:
    """Bytes of the constants that `table_source` defines, the struct not counted."""
    baked = bake(tables)
    entries = baked.frequency.size
    costs = 2 * entries if tables.variants > 1 else 0
    bases = int(np.sum([plan.channels for plan in tables.tensors]))
    return 4 * entries + costs + 4 * len(tables.tables) + 4 + bases


def _array(kind: str, name: str, values: Iterable[int], *, static: bool = False) -> str:
    numbers = [f"{value}u" for value in values]
    lines = [", ".join(numbers[at : at + _PER_LINE]) for at in range(0, len(numbers), _PER_LINE)]
    body = ",\n  ".join(lines)
    declaration = f"const {kind} {name}[{len(numbers)}]"
    prefix = f"static {declaration}" if static else f"extern {declaration};\n{declaration}"
    return f"{prefix} = {{\n  {body}}};\n"
