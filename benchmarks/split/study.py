"""The queue of the rate-accuracy study: jobs, several at a time, until a deadline, each as soon as its data and teacher are there.

    python -m benchmarks.split.study WORK --data FOLDER [--devices cuda:0,cuda:1] [--each 11] [--deadline 540] [--only a- | --jobs FILE]

FOLDER holds the data sets (benchmarks/data.toml). Protocol b's teacher is the committed one (teacher_b.npz), or the weights that
GROCERY_WEIGHTS names; the other teachers are trained first, MobileNetV2's from what MOBILENET_V2_WEIGHTS names
(mobilenet_weights.py). A job that was cut off continues from its checkpoint in WORK/runs. For many on one GPU start CUDA's
multi-process service first. Several queues may share WORK.
"""

import argparse
import contextlib
import lzma
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch.nn import functional

from benchmarks.rows import ROOT, RowError
from benchmarks.split.study_job import read_set
from benchmarks.split.study_plan import JOBS, PROTOCOLS, Protocol, TeacherNote
from split.augment import augment, centre, draw
from split.training_data import DataOptions, PictureSet, open_pictures


def main() -> int:
    """Run what is left of the study."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--devices", default="cpu")
    parser.add_argument("--each", type=int, default=2, help="jobs at a time on each device")
    parser.add_argument("--deadline", type=float, default=12 * 3600, help="seconds")
    parser.add_argument("--only", default="", help="jobs whose names start so; several with commas")
    parser.add_argument("--jobs", type=Path, help="a file with the names of the jobs, in their order")
    parser.add_argument(
        "--teachers", default="", help="protocols whose teachers are prepared, and no jobs: m,m224,b224"
    )
    options = parser.parse_args()
    teachers = [name for name in options.teachers.split(",") if name]
    if unknown := set(teachers) - set(PROTOCOLS):
        parser.error(f"wanted protocols of {', '.join(PROTOCOLS)}, found {', '.join(sorted(unknown))}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that workers end too
    end = time.monotonic() + options.deadline
    options.work.mkdir(parents=True, exist_ok=True)
    names = [] if teachers else chosen(options.only.split(","), options.jobs)
    slots = options.devices.split(",") * options.each if names else []
    workers = [start(names, options.work, device) for device in slots]
    try:
        for protocol in teachers or dict.fromkeys(JOBS[name].protocol for name in names):
            prepare(PROTOCOLS[protocol], options.work, options.data, options.devices.split(",")[0])
        wait(workers, end)
    finally:
        stop(workers)
    left = [name for name in names if not JOBS[name].done(options.work)]
    print(f"{len(names) - len(left)} of {len(names)} jobs are done")
    return 0


def chosen(only: Sequence[str], listing: Path | None) -> list[str]:
    """Names of jobs: those of a file, or all that start so, as planned.

    Raises:
        RowError: The file names a job that is not planned.
    """
    names = listing.read_text().split() if listing else list(JOBS)
    if unknown := [name for name in names if name not in JOBS]:
        raise RowError(
            f"Wanted names of planned jobs, found {unknown[0]!r} in {listing}. See benchmarks/split/study_plan.py."
        )
    return [name for name in names if name.startswith(tuple(only))]


def start(names: Sequence[str], work: Path, device: str) -> "subprocess.Popen[bytes]":
    """A worker, which takes what no other has taken."""
    command = [sys.executable, "-m", "benchmarks.split.study_worker", str(work), *names, "--device", device]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)


def wait(workers: Sequence["subprocess.Popen[bytes]"], end: float) -> None:
    """Until all have ended, or the deadline."""
    while any(worker.poll() is None for worker in workers) and time.monotonic() < end:
        time.sleep(0.2)


def stop(workers: Sequence["subprocess.Popen[bytes]"]) -> None:
    """What still runs, with what it started; checkpoints stay."""
    for worker in workers:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGTERM)
    for worker in workers:
        worker.wait()


def prepare(protocol: Protocol, work: Path, data: Path, device: str) -> None:
    """Decode once, and train the teacher on everything but validation and test pictures."""
    paths = {name: work / f"{protocol.name}-{name}.npz" for name in ("train", "val", "test")}
    if not all(path.is_file() for path in paths.values()):
        for name, one in decoded(protocol, data / protocol.data, work).items():
            partial = paths[name].with_suffix(".part.npz")
            np.savez(partial, images=one.images.numpy(), labels=one.labels.numpy(), classes=np.array(one.classes))
            partial.replace(paths[name])
    weights = work / f"{protocol.name}-teacher.pt"
    if weights.is_file():
        return
    partial = weights.with_suffix(".part")
    given = os.environ.get(protocol.weights, "") if protocol.weights else ""
    if given:
        shutil.copy(given, partial)
    elif protocol.committed_teacher().is_file():
        with np.load(protocol.committed_teacher(), allow_pickle=False) as file:
            torch.save({name: torch.from_numpy(one).float() for name, one in file.items()}, partial)
    else:
        sets = {name: read_set(path) for name, path in paths.items()}
        network = teach(protocol, sets, device)
        found = {name: round(score(network, sets[name], protocol, device), 4) for name in ("val", "test")}
        where = device if device == "cpu" else torch.cuda.get_device_name(device)
        note = TeacherNote(**found, epochs=protocol.teacher_epochs, device=where, torch=str(torch.__version__))
        (work / "points").mkdir(exist_ok=True)
        (work / "points" / f"{protocol.name}-teacher.json").write_bytes(msgspec.json.encode(note) + b"\n")
        print(f"teacher {protocol.name}: {note}", flush=True)
        torch.save({key: value.cpu() for key, value in network.state_dict().items()}, partial)
    partial.replace(weights)


def decoded(protocol: Protocol, folder: Path, work: Path) -> dict[str, PictureSet]:
    """Train, val and test pictures, the training ones in a fixed random order."""
    options = DataOptions(protocol.size, label_key=protocol.label, classes=protocol.classes)
    names = ("train", "test") if protocol.validation else ("train", "val", "test")
    sets = {name: open_pictures(unpacked(folder / f"{name}.npz", work), options) for name in names}
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(sets["train"])))
    train = sets["train"]
    train = PictureSet(train.images[order], train.labels[order], train.classes)
    if protocol.validation:
        cut = len(train) - protocol.validation
        sets["val"] = PictureSet(train.images[cut:].clone(), train.labels[cut:].clone(), train.classes)
        train = PictureSet(train.images[:cut].clone(), train.labels[:cut].clone(), train.classes)
    return {**sets, "train": train}


def unpacked(path: Path, work: Path) -> Path:
    """The file, or what is in path.xz, where only that is there."""
    packed = path.with_name(f"{path.name}.xz")
    if path.is_file() or not packed.is_file():
        return path
    target = work / f"{path.parent.name}-{path.name}"
    target.write_bytes(lzma.decompress(packed.read_bytes()))
    return target


def teach(protocol: Protocol, sets: dict[str, PictureSet], device: str) -> torch.nn.Module:
    """Train (a) or fine-tune the network; AdamW, one cycle; the last epoch's weights."""
    torch.manual_seed(0)
    network = protocol.network()
    protocol.pretrain(network)
    network = network.to(device).train()
    train, batch = sets["train"], protocol.teacher_batch
    images, labels = train.images.to(device), train.labels.to(device)
    steps = len(train) // batch * protocol.teacher_epochs
    optimiser = torch.optim.AdamW(network.parameters(), lr=protocol.teacher_lr, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, protocol.teacher_lr, total_steps=steps, pct_start=0.15)
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        rows = torch.randint(len(train), (batch,), generator=generator).to(device)
        x = augment(images[rows], protocol.augmentation, draw(batch, step))
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=device != "cpu"):
            logits = network(x)
        loss = functional.cross_entropy(logits.float(), labels[rows], label_smoothing=0.1)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
    return network.eval()


def score(network: torch.nn.Module, data: PictureSet, protocol: Protocol, device: str) -> float:
    """Accuracy of an unsplit network."""
    chunks = (data.images[at : at + 256].to(device) for at in range(0, len(data), 256))
    with torch.no_grad():
        found = [network(centre(one, protocol.augmentation)).argmax(1).cpu() for one in chunks]
    return float((torch.cat(found) == data.labels).float().mean())


if __name__ == "__main__":
    sys.exit(main())
