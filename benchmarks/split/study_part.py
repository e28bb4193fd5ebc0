"""The rate-accuracy study on this machine's CPU, at most 7 hours; what is done stays in build/split-study and is not done again."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from benchmarks.data import data_folder
from benchmarks.rows import ROOT, RowError
from benchmarks.split import study_rows
from benchmarks.split.study_curves import POINTS
from benchmarks.split.study_plan import PROTOCOLS

WORK = ROOT / "build" / "split-study"
_SECONDS = 7 * 3600


def rows() -> Iterator[dict[str, Any]]:
    """Train what is missing, put the points in place of the committed ones, then their rows."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.split.study",
        str(WORK),
        "--data",
        str(data_folder() / "data"),
        "--only",
        "a-,b-",  # a teacher of another protocol would come first, for jobs that two cores do not reach
        "--deadline",
        str(_SECONDS),
    ]
    # the committed teacher's points are not replaced by those of another
    environment = {key: value for key, value in os.environ.items() if key != PROTOCOLS["b"].weights}
    if subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode:
        raise RowError("Wanted the study to run to its end or its deadline, found that it failed. Its output is above.")
    POINTS.mkdir(exist_ok=True)
    for path in (WORK / "points").glob("*.npz"):
        shutil.copy(path, POINTS / path.name)
    yield from study_rows.rows()
