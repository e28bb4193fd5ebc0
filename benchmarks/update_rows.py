"""Rows of the benches of updates: figures that must be exact, and the kinds of updates that a device must refuse."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar


def row(name: str, what: str, value: float, unit: str, bar: float) -> dict[str, object]:
    """A figure that must be exactly its bar."""
    return {"id": f"ota.{name}", "what": what, "value": value, "unit": unit, "direction": "==", "bar": bar}


class Made(Protocol):
    """An artefact or the bundle of an agent."""

    @property
    def folder(self) -> Path:
        """Where it lies."""


MadeT = TypeVar("MadeT", bound=Made)


@dataclass(frozen=True)
class BadUpdates(Generic[MadeT]):
    """One kind of updates that a device must refuse with the error `code`; `make` makes the nth."""

    name: str
    code: str
    make: Callable[[int], MadeT]


def refusal_rows(
    kinds: Sequence[BadUpdates[MadeT]], take: Callable[[MadeT], str | None], *, each: int, of_what: str
) -> list[dict[str, object]]:
    """A row for each kind of bad updates.

    Args:
        kinds: The kinds.
        take: Offers one to a device that has committed a good version; the name of its refusal, or null when it was taken, or when what
            was committed does not run on.
        each: How many of each kind.
        of_what: Is updated: model or agent.
    """
    found = []
    for kind in kinds:
        refused = 0
        for number in range(each):
            bad = kind.make(number)
            refused += take(bad) == kind.code
            shutil.rmtree(bad.folder)
        updates = "updates" if of_what == "model" else f"updates of the {of_what}"
        what = f"of {each} {updates} refused as {kind.code}, the old {of_what} running on"
        found.append(row(kind.name, what, 100 * refused / each, "%", 100))
    return found
