"""`headtail verify ARTEFACT [--on PLACE]`: hashes, then the golden vectors where the artefact is to run."""

import sys
from importlib.metadata import entry_points
from pathlib import Path

from device_profiles.errors import EdgeError
from edge_runtime.artefact import open_artefact
from edge_runtime.places import Check, Place, Report
from orchestrator.commands.output import print_json, print_table

GROUP = "headtail.places"


class PlaceError(EdgeError):
    """A place is not known."""


def verify(artefact: Path, *, on: str = "local", json: bool = False) -> int:
    """Check an artefact's files, open it with its engine, and compare its golden vectors.

    Args:
        artefact: A folder or .zip.
        on: Where: "local" is this machine, "qemu" a simulated Cortex-M for microcontrollers; packages may add places.
        json: Print JSON.

    Returns:
        0 when every golden vector holds, 1 otherwise.
    """
    opened = open_artefact(artefact)
    report = find_place(on).verify(opened)
    if json:
        print_json(report)
    else:
        _print(report)
    return 0 if report.passed else 1


def find_place(name: str) -> Place:
    """The place of that name, from the entry points `headtail.places`.

    Raises:
        PlaceError: No such place; the message names those that there are.
    """
    found = {point.name: point for point in entry_points(group=GROUP)}
    if name not in found:
        raise PlaceError(f"Wanted a place to run on, found {name!r}. There is: {', '.join(sorted(found))}.")
    place: Place = found[name].load()()
    return place


def _print(report: Report) -> None:
    opened = "" if report.load_ms is None else f", opened in {report.load_ms:.0f} ms"
    versions = "" if report.installed is None else f" {report.installed} (built with {report.built})"
    title = f"{report.artefact[:16]} on {report.place}: {report.engine}{versions}{opened}"
    rows = [_row(check) for check in report.checks]
    if not rows:
        rows = [("no golden vectors: only hashes and engine were checked", None, None, None, None, None)]
    print_table(title, ("golden inputs", "compare", "tolerance", "worst", "cost", ""), rows)
    if report.remark is not None:
        sys.stdout.write(report.remark + "\n")


def _row(check: Check) -> tuple[object, ...]:
    cost = None if check.ms is None else f"{check.ms:.1f} ms"
    if check.instructions is not None:
        cost = f"{check.instructions} instructions"
    word = "ok" if check.passed else "DIFFERS"
    return ", ".join(check.inputs), check.compare, f"{check.tolerance:g}", f"{check.worst:g}", cost, word
