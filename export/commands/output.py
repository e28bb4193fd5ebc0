"""How commands of this package speak: JSON for programs, wide lines where nobody's terminal sets a width."""

import sys
from typing import Any

import msgspec
from rich.console import Console

_WIDE = 160  # names stay in one piece in files and pipes


def print_json(value: Any) -> None:  # noqa: ANN401 - any msgspec-encodable value
    """One JSON document on standard output."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")


def wide_console() -> Console:
    """Standard output; a pipe or a file wraps little."""
    console = Console()
    return console if console.is_terminal else Console(width=_WIDE)
