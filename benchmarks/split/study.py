"""The queue of the rate-accuracy study: prepare data and teachers, then jobs, several at a time, until a deadline.

    python -m benchmarks.split.study WORK --data FOLDER [--devices cuda:0,cuda:1] [--each 6] [--deadline 540] [--only a]

FOLDER holds the data sets (benchmarks/data.toml). Protocol b's teacher is the committed one (teacher_b.npz), or the weights that
GROCERY_WEIGHTS names; the other teachers are trained first, MobileNetV2's from what MOBILENET_V2_WEIGHTS names
(mobilenet_weights.py). A job that was cut off continues from its checkpoint in WORK/runs.
"""

import argparse
import lzma
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch.nn import functional

from benchmarks.rows import ROOT
from benchmarks.split.study_job import read_set
from benchmarks.split.study_plan import JOBS, PROTOCOLS, Protocol, TeacherNote
from split.augment import augment, centre, draw
from split.training_data import DataOptions, PictureSet, open_pictures

_PEER = ROOT / ".sc2bench" / "bin" / "python"


def main() -> int:
    """Run what is left of the study."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--devices", default="cpu")
    parser.add_argument("--each", type=int, default=2, help="jobs at a time on each device")
    parser.add_argument("--deadline", type=float, default=12 * 3600, help="seconds")
    parser.add_argument("--only", default="", help="jobs whose names start so; several with commas")
    parser.add_argument(
        "--teachers", default="", help="protocols whose teachers are prepared, and no jobs: m,m224,b224"
    )
    options = parser.parse_args()
    teachers = [name for name in options.teachers.split(",") if name]
    if unknown := set(teachers) - set(PROTOCOLS):
        parser.error(f"wanted protocols of {', '.join(PROTOCOLS)}, found {', '.join(sorted(unknown))}")
    end = time.monotonic() + options.deadline
    options.work.mkdir(parents=True, exist_ok=True)
    names = [] if teachers else [name for name in JOBS if name.startswith(tuple(options.only.split(",")))]
    for protocol in teachers or sorted({JOBS[name].protocol for name in names}):
        prepare(PROTOCOLS[protocol], options.work, options.data, options.devices.split(",")[0])
    slots = options.devices.split(",") * options.each
    queue(names, options.work, slots, end)
    done = sum(JOBS[name].done(options.work) for name in names)
    print(f"{done} of {len(names)} jobs are done")
    return 0


def queue(names: list[str], work: Path, slots: list[str], end: float) -> None:
    """Keep every slot busy with the next job; at the end, stop what still runs (its checkpoint stays)."""
    waiting = [name for name in names if not JOBS[name].done(work)]
    running: dict[int, tuple[subprocess.Popen[bytes], str]] = {}
    while (waiting or running) and time.monotonic() < end:
        for slot, (process, name) in list(running.items()):
            if process.poll() is not None:
                del running[slot]
                if process.returncode:
                    print(f"{name} failed: {(work / f'{name}.log').read_text()[-1500:]}", flush=True)
        for slot, device in enumerate(slots):
            if waiting and slot not in running:
                name = waiting.pop(0)
                running[slot] = (start(name, work, device), name)
        time.sleep(0.5)
    for process, _ in running.values():
        process.terminate()
        process.wait()


def start(name: str, work: Path, device: str) -> "subprocess.Popen[bytes]":
    """One job in a process of its own, in the peer's environment where it has one and the job is the peer's."""
    python = str(_PEER) if JOBS[name].method.startswith("peer_") and _PEER.exists() else sys.executable
    command = [python, "-m", "benchmarks.split.study_job", name, str(work), "--device", device]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    with (work / f"{name}.log").open("wb") as log:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)


def prepare(protocol: Protocol, work: Path, data: Path, device: str) -> None:
    """Decode once, and train the teacher on everything but validation and test pictures."""
    paths = {name: work / f"{protocol.name}-{name}.npz" for name in ("train", "val", "test")}
    if not all(path.is_file() for path in paths.values()):
        for name, one in decoded(protocol, data / protocol.data, work).items():
            np.savez(paths[name], images=one.images.numpy(), labels=one.labels.numpy(), classes=np.array(one.classes))
    weights = work / f"{protocol.name}-teacher.pt"
    if weights.is_file():
        return
    given = os.environ.get(protocol.weights, "") if protocol.weights else ""
    if given:
        shutil.copy(given, weights)
    elif protocol.committed_teacher().is_file():
        with np.load(protocol.committed_teacher(), allow_pickle=False) as file:
            torch.save({name: torch.from_numpy(one).float() for name, one in file.items()}, weights)
    else:
        sets = {name: read_set(path) for name, path in paths.items()}
        network = teach(protocol, sets, device)
        found = {name: round(score(network, sets[name], protocol, device), 4) for name in ("val", "test")}
        where = device if device == "cpu" else torch.cuda.get_device_name(device)
        note = TeacherNote(**found, epochs=protocol.teacher_epochs, device=where, torch=str(torch.__version__))
        (work / "points").mkdir(exist_ok=True)
        (work / "points" / f"{protocol.name}-teacher.json").write_bytes(msgspec.json.encode(note) + b"\n")
        print(f"teacher {protocol.name}: {note}", flush=True)
        torch.save({key: value.cpu() for key, value in network.state_dict().items()}, weights)


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
