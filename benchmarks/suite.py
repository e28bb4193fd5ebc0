"""What every benchmark suite does with its parts: run each in a process of its own, and keep the rows as they come.

A part is a module with `rows()`, which returns or yields dicts with the keys of `Measurement`. In a process of its own no part
sees the memory, the threads or the imports of another.
"""

import argparse
import importlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec

from benchmarks.rows import (
    RESULTS,
    ROOT,
    Circumstances,
    Measurement,
    Row,
    RowError,
    circumstances,
    make_row,
    merge_rows,
    parse_measurement,
    read_rows,
    write_rows,
)
from device_profiles.errors import EdgeError

_POLL_S = 1.0
_LEAST_LIMIT_S = 1800
_PATIENCE = 4  # a busy machine: a part may take this many times its minutes


class Part(NamedTuple):
    """A part of a suite."""

    module: str
    minutes: int  # on two idle cores


@dataclass(frozen=True)
class Suite:
    """A benchmark with a results file.

    Attributes:
        name: Of the module (`python -m benchmarks.NAME`), the make target (`bench-NAME`) and the results file.
        what: One sentence.
        parts: In the order in which all of them run.
    """

    name: str
    what: str
    parts: Mapping[str, Part]

    def main(self, arguments: Sequence[str] | None = None) -> int:
        """Run parts and write their rows; 1 when a part did not run to its end."""
        parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{self.name}", description=self.what)
        parser.add_argument(
            "parts", nargs="*", metavar="PART", help=f"of {', '.join(self.parts)}; all when none is named"
        )
        parser.add_argument("--measure", nargs=2, metavar=("PART", "FILE"), help=argparse.SUPPRESS)
        options = parser.parse_args(arguments)
        if options.measure:
            return self.measure_here(options.measure[0], Path(options.measure[1]))
        unknown = sorted(set(options.parts) - set(self.parts))
        if unknown:
            parser.error(f"no such part: {', '.join(unknown)}; there are {', '.join(self.parts)}")
        chosen = options.parts or list(self.parts)
        budget = ", ".join(f"{part} {self.parts[part].minutes}" for part in chosen)
        print(f"Budget, minutes on two idle cores: {budget}", flush=True)
        return self.run(chosen, RESULTS / f"{self.name}.json", keep=bool(options.parts))

    def run(self, parts: Sequence[str], results: Path, *, keep: bool) -> int:
        """Run parts one after the other; the file is written after each row, so that a later failure loses nothing.

        Args:
            parts: Keys of `parts`.
            results: The results file.
            keep: Keep the rows of parts that do not run now; of the others those that they measured in another way (`command`).
        """
        rows = read_rows(results)
        fresh: list[Row] = []
        broken: list[str] = []
        for part in parts:
            where = circumstances(f"python -m benchmarks.{self.name} {part}" if keep else f"make bench-{self.name}")
            print(f"== {part}", flush=True)
            own: list[Row] = []
            try:
                for row in self.measure(part, where):
                    own, rows = [*own, row], merge_rows(rows, [row])
                    write_rows(results, rows)
                    print(describe(row), flush=True)
            except EdgeError as error:
                print(f"{part}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                broken.append(part)
            else:
                if keep:  # what ran to its end leaves no figure behind that nothing measures any more
                    found = {row.id for row in own}
                    rows = [row for row in rows if row.command != where.command or row.id in found]
                    write_rows(results, rows)
            fresh = merge_rows(fresh, own)
        if not keep and not broken:
            rows = fresh
            write_rows(results, rows)
        return summarise(rows, broken)

    def measure(self, part: str, where: Circumstances) -> Iterator[Row]:
        """Run one part in a process of its own; its rows, each as soon as it is there.

        Raises:
            RowError: The part failed, took too long, or gave no rows.
        """
        module, minutes = self.parts[part]
        limit_s = max(_LEAST_LIMIT_S, 60 * minutes * _PATIENCE)
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder, "rows.jsonl")
            output.touch()
            command = [sys.executable, "-m", f"benchmarks.{self.name}", "--measure", part, str(output)]
            end, given = time.monotonic() + limit_s, 0
            with subprocess.Popen(command, cwd=ROOT) as process:
                while True:
                    status = _wait(process)
                    lines = output.read_bytes().split(b"\n")[:-1]  # what follows the last line end is not complete
                    for line in lines[given:]:
                        yield make_row(msgspec.json.decode(line, type=Measurement), where)
                    given = len(lines)
                    if status is not None:
                        break
                    if time.monotonic() > end:
                        process.kill()
                        raise RowError(f"Wanted {module} within {limit_s} s, found it still running.")
        if status != 0 or not given:
            raise RowError(f"Wanted rows from {module}, found {given} and exit status {status}. Its output is above.")

    def measure_here(self, part: str, output: Path) -> int:
        """Import a part, measure, and leave each row as a line of a file."""
        module = self.parts[part].module
        try:
            with output.open("ab") as file:
                for values in importlib.import_module(module).rows():
                    file.write(msgspec.json.encode(parse_measurement(part, values)) + b"\n")
                    file.flush()
                if not file.tell():
                    raise RowError(f"Wanted rows from {module}, found none.")
        except EdgeError as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            return 1
        return 0


def describe(row: Row) -> str:
    """One line for the terminal."""
    value = "not measured" if row.value is None else f"{row.value:.6g}"
    verdict = {True: "ok", False: "FAILS", None: "info"}[row.holds]
    bar = "" if row.bar is None else f" (wanted {row.direction} {row.bar:g})"
    return f"{verdict:<5} {row.id:<28} {value} {row.unit}{bar}"


def summarise(rows: list[Row], broken: list[str]) -> int:
    """Say what does not hold and what did not run."""
    failing = [row.id for row in rows if row.holds is False]
    print(f"{len(rows)} rows, {len(failing)} do not hold{': ' + ', '.join(failing) if failing else ''}")
    if broken:
        print(f"did not run to the end: {', '.join(broken)}", file=sys.stderr)
    return 1 if broken else 0


def _wait(process: "subprocess.Popen[bytes]") -> int | None:
    try:
        return process.wait(timeout=_POLL_S)
    except subprocess.TimeoutExpired:
        return None
