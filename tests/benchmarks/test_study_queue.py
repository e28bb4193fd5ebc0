"""The study's workers: what they take, what they leave, and what a failing job does to the others."""

import threading
import time

import pytest

from benchmarks.rows import RowError
from benchmarks.split import study_worker
from benchmarks.split.study import chosen
from benchmarks.split.study_plan import JOBS, PROTOCOLS

NAMES = [name for name, job in JOBS.items() if job.protocol == "b" and not job.tunes][:4]
LATER = next(name for name, job in JOBS.items() if job.protocol == "m" and not job.tunes)


def ready(work, protocol):
    for name in ("train.npz", "val.npz", "test.npz", "teacher.pt"):
        (work / f"{protocol}-{name}").touch()


def test_a_worker_does_what_is_left_and_goes_on_after_a_failure(tmp_path, monkeypatch, capsys):
    done = []

    def run(job, _work, device, target):
        done.append((job.name, device))
        print("trained")
        if job.name == NAMES[1]:
            raise ValueError("no picture")
        target.parent.mkdir(exist_ok=True)
        target.touch()

    monkeypatch.setattr(study_worker, "run", run)
    ready(tmp_path, "b")
    (tmp_path / "points").mkdir()
    (tmp_path / "points" / f"{NAMES[0]}.npz").touch()  # done before
    with study_worker.claim(tmp_path, NAMES[2]):  # another worker's
        study_worker.work_off(NAMES, tmp_path, "cpu")
    assert done == [(NAMES[1], "cpu"), (NAMES[3], "cpu")]
    study_worker.work_off(NAMES[2:], tmp_path, "cpu")  # whose process ended
    assert done[2:] == [(NAMES[2], "cpu")]
    assert f"{NAMES[1]} failed" in capsys.readouterr().err
    log = (tmp_path / f"{NAMES[1]}.log").read_text()
    assert "trained" in log
    assert "ValueError: no picture" in log


def test_a_job_waits_for_its_teacher_while_others_go_first(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(study_worker, "run", lambda job, *_: done.append(job.name))
    ready(tmp_path, "b")
    assert not PROTOCOLS["m"].prepared(tmp_path)
    worker = threading.Thread(target=study_worker.work_off, args=([LATER, NAMES[0]], tmp_path, "cpu"), daemon=True)
    worker.start()
    deadline = time.monotonic() + 20
    while not done and time.monotonic() < deadline:
        time.sleep(0.01)
    assert done == [NAMES[0]]
    ready(tmp_path, "m")
    worker.join(20)
    assert done == [NAMES[0], LATER]


def test_jobs_are_chosen_by_prefix_or_in_the_order_of_a_file(tmp_path):
    assert {JOBS[name].protocol for name in chosen(["m-", "b224-"], None)} == {"m", "b224"}
    listing = tmp_path / "jobs"
    listing.write_text(f"{LATER}\n{NAMES[0]}\n")
    assert chosen([""], listing) == [LATER, NAMES[0]]
    listing.write_text("b-nothing\n")
    with pytest.raises(RowError, match="b-nothing"):
        chosen([""], listing)
