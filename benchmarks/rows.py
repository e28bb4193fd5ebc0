"""What a benchmark leaves behind: one row for each figure, with everything needed to measure it again.

A part measures and gives `Measurement`s; whether a bar holds is computed here and nowhere else, and a row that does not
hold is written like any other.
"""

import os
import platform
import re
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from device_profiles.errors import EdgeError

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"

Direction = Literal["<=", ">=", "==", "info"]
RowId = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9_]+(\.[a-z0-9_]+)*$")]
_CPUINFO = Path("/proc/cpuinfo")


class RowError(EdgeError):
    """A measurement or a results file is not what this module writes."""


class Measurement(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a part measured. A null value is "not measured": it holds no bar."""

    id: RowId  # of the figure; several figures of one thing: "rtt.p50", "rtt.p99"
    what: str
    value: float | int | None
    unit: str
    direction: Direction  # how the value must stand to the bar; "info" has no bar
    bar: float | int | None = None
    peer: str | None = None  # what it is measured against
    peer_version: str | None = None
    emulated: str | None = None  # the emulated device, where it did not run on the machine itself


class Row(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One figure of a results file."""

    id: RowId
    what: str
    value: float | int | None
    unit: str
    direction: Direction
    bar: float | int | None
    holds: bool | None  # null where there is no bar
    peer: str | None
    peer_version: str | None
    command: str
    commit: str
    device: str
    date: str  # UTC, ISO 8601


@dataclass(frozen=True)
class Circumstances:
    """Where and how a set of rows was measured."""

    command: str
    commit: str
    device: str
    date: str


def holds(value: float | None, direction: Direction, bar: float | None) -> bool | None:
    """Whether the value keeps its bar; null for "info", false for what was not measured.

    Raises:
        RowError: A direction without a bar, or a bar with "info".
    """
    if (direction == "info") != (bar is None):
        raise RowError(f"Wanted a bar with <=, >= or == and none with info, found {direction!r} and bar {bar}.")
    if bar is None:
        return None
    if value is None:
        return False
    return value <= bar if direction == "<=" else value >= bar if direction == ">=" else value == bar


def parse_measurement(part: str, values: dict[str, object]) -> Measurement:
    """Check what a part returned.

    Raises:
        RowError: An unknown or missing key, or a value of the wrong type.
    """
    try:
        return msgspec.convert(values, Measurement)
    except msgspec.ValidationError as error:
        raise RowError(f"Wanted a measurement from {part}, found: {error}, in {values}.") from error


def make_row(measured: Measurement, where: Circumstances) -> Row:
    """Complete a measurement to a row.

    Raises:
        RowError: As `holds`.
    """
    device = where.device if measured.emulated is None else f"{measured.emulated}, emulated on {where.device}"
    return Row(
        id=measured.id,
        what=measured.what,
        value=measured.value,
        unit=measured.unit,
        direction=measured.direction,
        bar=measured.bar,
        holds=holds(measured.value, measured.direction, measured.bar),
        peer=measured.peer,
        peer_version=measured.peer_version,
        command=where.command,
        commit=where.commit,
        device=device,
        date=where.date,
    )


def merge_rows(old: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    """The old rows with those of the same id replaced in place, then the new ids in their order."""
    replaced = {row.id: row for row in new}
    known = {row.id for row in old}
    return [replaced.get(row.id, row) for row in old] + [row for row in replaced.values() if row.id not in known]


def read_rows(path: Path) -> list[Row]:
    """Read a results file; none there is an empty one.

    Raises:
        RowError: Not a results file, or a `holds` that the row's own value and bar contradict.
    """
    if not path.is_file():
        return []
    try:
        rows = msgspec.json.decode(path.read_bytes(), type=list[Row])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RowError(f"Wanted rows of a benchmark, found: {error}, in {path}. Run the benchmark again.") from error
    for row in rows:
        if row.holds is not holds(row.value, row.direction, row.bar):
            raise RowError(
                f"Wanted `holds` as value and bar say for {row.id}, found {row.holds} in {path}: it was edited."
            )
    return rows


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write a results file in one step, one field a line so that changes can be read in a diff."""
    data = msgspec.json.format(msgspec.json.encode(list(rows)), indent=2) + b"\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as stream:
        stream.write(data)
    Path(stream.name).chmod(0o644)
    Path(stream.name).replace(path)


def circumstances(command: str) -> Circumstances:
    """Command, commit, device and date of a run that starts now."""
    date = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    return Circumstances(command, commit(), device_text(), date)


def commit(root: Path = ROOT) -> str:
    """The checked-out commit, 12 digits, with "-dirty" when a file other than a result differs from it."""
    try:
        head = _git(root, "rev-parse", "--short=12", "HEAD")
        changed = _git(root, "status", "--porcelain", "--", ".", ":!benchmarks/results")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head}-dirty" if changed else head


def device_text(cpuinfo: Path = _CPUINFO) -> str:
    """Processor, cores, architecture and kernel of this machine, and whether it is a virtual one."""
    text = cpuinfo.read_text(errors="replace") if cpuinfo.is_file() else ""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip().lower(), value.strip())
    name = fields.get("model name") or fields.get("model") or fields.get("hardware") or "unknown processor"
    virtual = " (virtual machine)" if re.search(r"\bhypervisor\b", fields.get("flags", "")) else ""
    return f"{name}{virtual}, {os.cpu_count()} cores, {platform.machine()}, Linux {platform.release()}"


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=30)
    return done.stdout.strip()
