"""A worker of the rate-accuracy study: does one job after another, each as soon as its data and teacher are there.

    python -m benchmarks.split.study_worker WORK JOB.. [--device cuda:0]

It stays from job to job, since start-up and, on a GPU, its context would be paid for each job otherwise.
"""

import argparse
import contextlib
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.rows import ROOT
from benchmarks.split.peer import PYTHON
from benchmarks.split.study_job import run
from benchmarks.split.study_plan import JOBS, PROTOCOLS, Job

CLAIMS = "claims"  # folder of empty files named as the jobs that somebody does or did


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
    waiting = list(names)
    while waiting:
        name = next((one for one in waiting if PROTOCOLS[JOBS[one].protocol].prepared(work)), "")
        if not name:
            time.sleep(0.2)
            continue
        waiting.remove(name)
        if JOBS[name].done(work) or not claim(work, name):
            continue
        log = work / f"{name}.log"
        with log.open("w") as file, contextlib.redirect_stdout(file):
            try:
                do(JOBS[name], work, device)
            except Exception as error:
                traceback.print_exc(file=file)
                print(f"{name} failed, see {log}: {error!r}", file=sys.stderr, flush=True)
        if device != "cpu":
            torch.cuda.empty_cache()


def claim(work: Path, name: str) -> bool:
    """Whether the job is now the caller's."""
    (work / CLAIMS).mkdir(exist_ok=True)
    try:
        (work / CLAIMS / name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


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
