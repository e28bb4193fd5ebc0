"""The figures of learned bottlenecks.

    python -m benchmarks.split [PART...]      all parts without one; a part replaces its own rows only

`codec` and `heads` measure time and want a quiet machine. `curves` computes the rows of the committed points; `study` trains and
measures them again: at most 7 hours on two cores, and what is done is not done again.
"""

import argparse
import importlib
import sys

from benchmarks.foundation import describe, summarise
from benchmarks.rows import RESULTS, circumstances, make_row, merge_rows, parse_measurement, read_rows, write_rows
from device_profiles.errors import EdgeError

RESULTS_FILE = RESULTS / "split.json"
# part -> module with `rows()`, minutes on two idle cores
PARTS = {
    "codec": ("benchmarks.split.codec", 1),
    "fuzz": ("benchmarks.split.fuzz", 11),
    "scenes": ("benchmarks.split.scene_curves", 240),
    "es": ("benchmarks.split.entropic_student", 3),
    "arch": ("benchmarks.split.arch", 3),
    "heads": ("benchmarks.split.heads", 1),
    "curves": ("benchmarks.split.study_rows", 2),
    "study": ("benchmarks.split.study_part", 420),
}


def main(arguments: list[str] | None = None) -> int:
    """Run parts and write their rows as they come; 1 when a part did not run to its end."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.split", description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all when none is named")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.parts) - set(PARTS))
    if unknown:
        parser.error(f"no such part: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    parts = options.parts or list(PARTS)
    print("Budget, minutes on two idle cores: " + ", ".join(f"{part} {PARTS[part][1]}" for part in parts), flush=True)
    rows = read_rows(RESULTS_FILE)
    broken = []
    for part in parts:
        where = circumstances(f"python -m benchmarks.split {part}" if options.parts else "make bench-split")
        print(f"== {part}", flush=True)
        try:
            for values in importlib.import_module(PARTS[part][0]).rows():
                row = make_row(parse_measurement(part, values), where)
                rows = merge_rows(read_rows(RESULTS_FILE), [row])
                write_rows(RESULTS_FILE, rows)
                print(describe(row), flush=True)
        except EdgeError as error:
            print(f"{part}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            broken.append(part)
    return summarise(rows, broken)


if __name__ == "__main__":
    sys.exit(main())
