"""The figures of profiles, prediction and planning.

    python -m benchmarks.plan [PART...]      all parts without one; a part replaces its own rows only

All but `optimal` and `arena` measure time and want a quiet machine.
"""

import argparse
import importlib
import sys

from benchmarks.foundation import describe, summarise
from benchmarks.rows import RESULTS, circumstances, make_row, merge_rows, parse_measurement, read_rows, write_rows
from device_profiles.errors import EdgeError

RESULTS_FILE = RESULTS / "plan.json"
# part -> module with `rows()`, minutes on two idle cores
PARTS = {
    "optimal": ("benchmarks.bench_plan", 1),
    "arena": ("benchmarks.bench_arena", 1),
    "profile": ("benchmarks.bench_profile", 2),
    "predict": ("benchmarks.bench_predict", 4),
    "regret": ("benchmarks.bench_regret", 3),
    "served": ("benchmarks.bench_served", 2),
}


def main(arguments: list[str] | None = None) -> int:
    """Run parts and write their rows; 1 when a part did not run to its end."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plan", description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all when none is named")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.parts) - set(PARTS))
    if unknown:
        parser.error(f"no such part: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    parts = options.parts or list(PARTS)
    print("Budget, minutes on two idle cores: " + ", ".join(f"{part} {PARTS[part][1]}" for part in parts), flush=True)
    rows, broken = read_rows(RESULTS_FILE), []
    for part in parts:
        where = circumstances(f"python -m benchmarks.plan {part}" if options.parts else "make bench-plan")
        print(f"== {part}", flush=True)
        try:
            found = importlib.import_module(PARTS[part][0]).rows()
        except EdgeError as error:
            print(f"{part}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            broken.append(part)
            continue
        new = [make_row(parse_measurement(part, values), where) for values in found]
        rows = merge_rows(rows, new)
        write_rows(RESULTS_FILE, rows)
        for row in new:
            print(describe(row), flush=True)
    return summarise(rows, broken)


if __name__ == "__main__":
    sys.exit(main())
