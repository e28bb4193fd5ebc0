"""The figures of export, cut, runtime and offload.

    python -m benchmarks.foundation [PART...]      all parts without one; a part alone replaces its own rows only

Each part is a module with `rows() -> list[dict]` (the keys of `Measurement`) and runs in a process of its own, so that
no part sees the memory, the threads or the imports of another.
"""

import argparse
import importlib
import subprocess
import sys
import tempfile
from pathlib import Path

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

NAME = "foundation"
PARTS = {
    "export": "benchmarks.bench_export",
    "cuts": "benchmarks.bench_cuts",
    "runtime": "benchmarks.bench_runtime",
    "rtt": "benchmarks.bench_rtt",
    "stream": "benchmarks.bench_stream",
    "fuzz": "benchmarks.bench_fuzz",
    "arm64": "benchmarks.bench_arm64",
}
_TIMEOUT_S = 1800


def main(arguments: list[str] | None = None) -> int:
    """Run parts and write their rows; 1 when a part did not run to its end."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.foundation", description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all when none is named")
    parser.add_argument("--measure", nargs=2, metavar=("PART", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure:
        return measure_here(options.measure[0], Path(options.measure[1]))
    unknown = sorted(set(options.parts) - set(PARTS))
    if unknown:
        parser.error(f"no such part: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    return run_parts(options.parts or list(PARTS), RESULTS / f"{NAME}.json", keep=bool(options.parts))


def run_parts(parts: list[str], results: Path, *, keep: bool) -> int:
    """Run parts one after the other; the file is written after each, so that a later failure loses nothing.

    Args:
        parts: Keys of `PARTS`.
        results: The results file.
        keep: Keep the rows of parts that do not run now.
    """
    rows = read_rows(results)
    fresh: list[Row] = []
    broken: list[str] = []
    for part in parts:
        where = circumstances(f"make bench-{NAME}" if not keep else f"python -m benchmarks.{NAME} {part}")
        print(f"== {part}", flush=True)
        try:
            new = measure(part, where)
        except EdgeError as error:
            print(f"{part}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            broken.append(part)
            continue
        fresh = merge_rows(fresh, new)
        rows = merge_rows(rows, new)
        write_rows(results, rows)
        for row in new:
            print(describe(row), flush=True)
    if not keep and not broken:
        rows = fresh  # a complete run leaves no figure behind that nothing measures any more
        write_rows(results, rows)
    return summarise(rows, broken)


def measure(part: str, where: Circumstances) -> list[Row]:
    """Run one part in a process of its own.

    Raises:
        RowError: The part is missing, failed, gave no rows, or rows that are not measurements.
    """
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "rows.json")
        command = [sys.executable, "-m", f"benchmarks.{NAME}", "--measure", part, str(output)]
        try:
            status = subprocess.run(command, cwd=ROOT, timeout=_TIMEOUT_S, check=False).returncode
        except subprocess.TimeoutExpired as error:
            raise RowError(f"Wanted {PARTS[part]} within {_TIMEOUT_S} s, found it still running.") from error
        if status != 0 or not output.is_file():
            raise RowError(f"Wanted rows from {PARTS[part]}, found exit status {status}. Its output is above.")
        measured = msgspec.json.decode(output.read_bytes(), type=list[Measurement])
    return [make_row(one, where) for one in measured]


def measure_here(part: str, output: Path) -> int:
    """Import a part, measure, and leave the rows in a file."""
    try:
        measured = [parse_measurement(part, values) for values in importlib.import_module(PARTS[part]).rows()]
        if not measured:
            raise RowError(f"Wanted rows from {PARTS[part]}, found none.")
    except EdgeError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    output.write_bytes(msgspec.json.encode(measured))
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


if __name__ == "__main__":
    sys.exit(main())
