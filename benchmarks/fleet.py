"""The figures of the fleet and its offload service.

    python -m benchmarks.fleet [PART...]      all parts without one; a part alone replaces its own rows only

Parts are modules as those of `benchmarks.foundation`, each run in a process of its own.
"""

import argparse
import importlib
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec

from benchmarks.foundation import describe, summarise
from benchmarks.rows import (
    RESULTS,
    ROOT,
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

NAME = "fleet"
PARTS = {
    "serve": "benchmarks.bench_serve",
    "ends_once": "benchmarks.bench_ends_once",
    "devices": "benchmarks.bench_fleet_devices",
    "canary": "benchmarks.bench_fleet_canary",
    "kills": "benchmarks.bench_fleet_kills",
    "scale_out": "benchmarks.bench_fleet_scale",
    "fuzz": "benchmarks.bench_fleet_fuzz",
    "ota": "benchmarks.bench_ota",
    "rtt_tls": "benchmarks.bench_rtt_tls",
    "agent": "benchmarks.bench_fleet_agent",
}
_TIMEOUT_S = 1800


def main(arguments: list[str] | None = None) -> int:
    """Run parts and write their rows; 1 when a part did not run to its end."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{NAME}", description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all when none is named")
    parser.add_argument("--measure", nargs=2, metavar=("PART", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure:
        return measure_here(options.measure[0], Path(options.measure[1]))
    unknown = sorted(set(options.parts) - set(PARTS))
    if unknown:
        parser.error(f"no such part: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    results, rows, broken = RESULTS / f"{NAME}.json", read_rows(RESULTS / f"{NAME}.json"), []
    for part in options.parts or list(PARTS):
        print(f"== {part}", flush=True)
        command = f"python -m benchmarks.{NAME} {part}" if options.parts else f"make bench-{NAME}"
        try:
            new = measure(part, command)
        except EdgeError as error:
            print(f"{part}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            broken.append(part)
            continue
        rows = merge_rows(rows, new)
        write_rows(results, rows)
        for row in new:
            print(describe(row), flush=True)
    return summarise(rows, broken)


def measure(part: str, command: str) -> list[Row]:
    """Run one part in a process of its own.

    Raises:
        RowError: It failed, or gave no rows.
    """
    where = circumstances(command)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "rows.json")
        child = [sys.executable, "-m", f"benchmarks.{NAME}", "--measure", part, str(output)]
        try:
            status = subprocess.run(child, cwd=ROOT, timeout=_TIMEOUT_S, check=False).returncode
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
    except EdgeError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    output.write_bytes(msgspec.json.encode(measured))
    return 0


if __name__ == "__main__":
    sys.exit(main())
