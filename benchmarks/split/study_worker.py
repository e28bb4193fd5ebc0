"""A worker of the rate-accuracy study: does one job after another, each as soon as its data and teacher are there.

    python -m benchmarks.split.study_worker WORK JOB.. [--device cuda:0]

It stays from job to job, since start-up and, on a GPU, its context would be paid for each job otherwise.
"""

import argparse
import contextlib
import fcntl
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import torch

from benchmarks.rows import ROOT
from benchmarks.split.peer import PYTHON
from benchmarks.split.study_job import run
from benchmarks.split.study_plan import JOBS, PROTOCOLS, Job

CLAIMS = "claims"  # folder of files named as jobs; who does one holds a lock on its file, which ends with its process


def main() -> None:
    """Read what to do, and do it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("jobs", nargs="+")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(2 if options.device != "cpu" else 1)
    torch.set_float32_matmul_precision("high")
    work_off(options.jobs, options.work, options.device)


def work_off(names: Sequence[str], work: Path, device: str) -> None:
    """Do those that have no points and that nobody else took; what fails is reported, and the others go on."""
    waiting, failed = list(names), []
    while waiting:
        name = next((one for one in waiting if PROTOCOLS[JOBS[one].protocol].prepared(work)), "")
        if not name:
            time.sleep(0.2)
            continue
        waiting.remove(name)
        claimed = claim(work, name)
        if claimed is None or JOBS[name].done(work):
            continue
        log = work / f"{name}.log"
        with log.open("w") as file, contextlib.redirect_stdout(file):
            try:
                do(JOBS[name], work, device)
            except Exception as error:
                traceback.print_exc(file=file)
                print(f"{name} failed, see {log}: {error!r}", file=sys.stderr, flush=True)
                failed.append(claimed)  # no other worker of now tries it too
        if device != "cpu":
            torch.cuda.empty_cache()


def claim(work: Path, name: str) -> IO[bytes] | None:
    """The job is the caller's as long as this file is open; null where it is another's."""
    (work / CLAIMS).mkdir(exist_ok=True)
    file = (work / CLAIMS / name).open("wb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def do(job: Job, work: Path, device: str) -> None:
    """In this process, or in the peer's environment where it has one and the job is the peer's."""
    if not job.method.startswith("peer_") or not PYTHON.exists():
        run(job, work, device, work / "points" / f"{job.name}.npz")
        return
    command = [str(PYTHON), "-m", "benchmarks.split.study_job", job.name, str(work), "--device", device]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(found.stdout)
    if found.returncode:
        raise RuntimeError(found.stderr[-1500:])


if __name__ == "__main__":
    main()
