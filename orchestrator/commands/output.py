"""How commands speak: JSON for programs, rich tables for people."""

import sys
from collections.abc import Sequence
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table


def print_json(value: Any) -> None:  # noqa: ANN401 - any msgspec-encodable value
    """One JSON document on standard output."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], *, numbers: bool = False) -> None:
    """A table on standard output; null prints as a dash.

    Args:
        title: Stands above it.
        columns: Headings.
        rows: One cell for each column.
        numbers: All columns but the first hold figures: right-aligned, never wrapped.
    """
    table = Table()
    for index, column in enumerate(columns):
        first = index == 0  # what users copy
        figures = numbers and not first
        table.add_column(column, overflow="fold", no_wrap=first or figures, justify="right" if figures else "left")
    for row in rows:
        table.add_row(*["-" if cell is None else str(cell) for cell in row])
    _print(title, table)


def print_fields(title: str, fields: Sequence[tuple[str, object]]) -> None:
    """Names and values, one a line; null prints as "unknown"."""
    table = Table(show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in fields:
        table.add_row(name, "unknown" if value is None else str(value))
    _print(title, table)


def terminal_width() -> int:
    """Columns that a table may take."""
    return _console().width


def _print(title: str, table: Table) -> None:
    """The title by itself: rich would wrap it at the table's width."""
    console = _console()
    console.print(title, style="italic", highlight=False, markup=False, soft_wrap=True)
    console.print(table)


def _console() -> Console:
    """Wide where nobody's terminal sets a width: a pipe or a file wraps nothing."""
    console = Console()
    return console if console.is_terminal else Console(width=150)


def format_bytes(count: int | None) -> str | None:
    """Bytes with a binary prefix for people; exact below 10 KiB."""
    if count is None:
        return None
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 10_240 or unit == "GiB":
            return f"{count} B" if unit == "B" else f"{size:.1f} {unit}".replace(".0 ", " ")
        size /= 1024
    raise AssertionError("unreachable")
