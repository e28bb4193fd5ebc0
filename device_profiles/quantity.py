"""Figures of a board for people: the field's name says the unit."""

_UNITS = {"_bytes_per_s": "B/s", "_ops_per_s": "op/s", "_flops": "flop/s", "_bytes": "B", "_hz": "Hz", "_w": "W"}
_BINARY = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))
_DECIMAL = ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k"))


def quantity(field: str, value: object) -> str:
    """A field's value with its unit; a dash for unknown."""
    if value is None:
        return "-"
    if isinstance(value, tuple):
        return ", ".join(quantity(field, one) for one in value)
    unit = next((unit for ending, unit in _UNITS.items() if field.endswith(ending)), "")
    if isinstance(value, bool) or not isinstance(value, int | float) or not unit:
        return str(value)
    if unit == "B":
        return next((f"{value / size:.4g} {name}" for size, name in _BINARY if value >= size), f"{value} B")
    if unit == "W":
        return f"{value:g} W"
    return next((f"{value / size:.4g} {prefix}{unit}" for size, prefix in _DECIMAL if value >= size), f"{value} {unit}")
