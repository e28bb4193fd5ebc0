"""One job of the rate-accuracy study: train a bottleneck, evaluate it with real frames, leave one .npz.

    python -m benchmarks.split.study_job JOB WORK [--device cuda:0]

WORK holds the prepared data and teachers (`study.prepare`), and gets `runs/JOB/` (checkpoints) and `points/JOB.npz`.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.split.study_plan import (
    BOTTLEFIT_BITS,
    COUNTED_TABLES,
    JOBS,
    PROTOCOLS,
    Job,
    Protocol,
    layer_of,
    load_teacher,
    teacher_id,
)
from edge_runtime.entropy import EntropyCodec
from edge_runtime.wire import CODEC_ENTROPY, encode_tensors
from split.augment import Augmentation, centre, without_chance
from split.bottleneck import StreamPlan
from split.distill import TrainOptions, train
from split.inject import SplitNetwork, Teacher, inject, trace_network
from split.latents import IntegerHead, IntegerTail, fit_grid, fit_tables, input_batches, integer_latents
from split.methods import find_method
from split.training_data import PictureSet

PARTS = ("val", "test")
COUNTED = 2000  # training pictures that entropy tables are counted on
CUT = bytes(8)

Point = tuple[str, np.ndarray, np.ndarray]  # setting, bytes of each picture's frame, whether its class is right


def main() -> None:
    """Do one job, unless its points are there."""
    parser = argparse.ArgumentParser()
    parser.add_argument("job")
    parser.add_argument("work", type=Path)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    target = options.work / "points" / f"{options.job}.npz"
    if JOBS[options.job].done(options.work):
        return
    torch.set_num_threads(2 if options.device != "cpu" else 1)
    torch.set_float32_matmul_precision("high")
    run(JOBS[options.job], options.work, options.device, target)


def run(job: Job, work: Path, device: str, target: Path) -> None:
    """Train and evaluate; written in one step."""
    start = time.monotonic()
    protocol = PROTOCOLS[job.protocol]
    data = {name: read_set(work / f"{job.protocol}-{name}.npz") for name in ("train", "val", "test")}
    target.parent.mkdir(exist_ok=True)
    network = load_teacher(protocol, work)
    known = teacher_id(network)
    if job.method in ("codec", "raw", "small"):
        from benchmarks.split import study_nets

        work_of = {"codec": study_nets.codec_job, "raw": study_nets.raw_job, "small": study_nets.small_job}
        arrays, note = work_of[job.method](job, work, data, device)
        _write(target, arrays, note | _surroundings(device, start, known))
        return
    student, teacher, stages = build(job, network)
    options = TrainOptions(
        folder=work / "runs" / job.name, augmentation=protocol.augmentation, seed=job.seed, device=device, log_every=200
    )
    train(student, teacher, first(data["train"], protocol.pictures), stages, options)
    trained = time.monotonic()
    found, coded = evaluate(job, student, data, protocol, device)
    if job.keeps:
        torch.save({key: value.cpu() for key, value in student.state_dict().items()}, target.with_suffix(".pt"))
    note = {"train_s": round(trained - start, 1), **_surroundings(device, start, known)}
    write_points(target, found, note)
    if job.tunes and coded:
        tuned = tuned_points(protocol, coded, data, work, device)
        note = {"tuned": "tail", "train_s": note["train_s"], **_surroundings(device, start, known)}
        write_points(target.with_name(f"{job.tuned_name}.npz"), tuned, note)


def write_points(target: Path, found: dict[str, list[Point]], note: dict[str, Any]) -> None:
    """Those of the test pictures; of the validation pictures the means."""
    points = found["test"]
    note = {"settings": [point[0] for point in points], **note}
    note["val"] = [[round(float(sizes.mean()), 1), round(float(right.mean()), 4)] for _, sizes, right in found["val"]]
    arrays = {}
    for number, (_, sizes, right) in enumerate(points):
        arrays |= {f"size{number}": sizes.astype(np.uint16), f"right{number}": np.packbits(right)}
    _write(target, arrays, note)
    for setting, sizes, right in points:
        print(f"{target.stem} {setting}: {sizes.mean():.1f} B, {right.mean():.4f} {note}", flush=True)


def _surroundings(device: str, start: float, teacher: str) -> dict[str, Any]:
    where = device if device == "cpu" else torch.cuda.get_device_name(device)
    seconds = round(time.monotonic() - start, 1)
    return {"seconds": seconds, "device": where, "torch": torch.__version__, "teacher": teacher}


def _write(target: Path, arrays: dict[str, np.ndarray], note: dict[str, Any]) -> None:
    partial = target.with_suffix(".part.npz")
    np.savez_compressed(partial, note=np.array(json.dumps(note)), **arrays)  # type: ignore[arg-type]
    partial.replace(target)


def build(job: Job, network: nn.Module) -> tuple[SplitNetwork, Teacher, Sequence[Any]]:
    """Student, teacher and recipe of a job, around a trained network."""
    protocol = PROTOCOLS[job.protocol]
    torch.manual_seed(1000 + job.seed)
    trace = trace_network(network, torch.zeros(1, 3, protocol.size, protocol.size))
    peer = job.method.startswith("peer_")
    method = find_method("entropic" if peer else job.method)
    settings = method.options(**job.options)

    def make(found: Any) -> Any:
        if not peer:
            return method.make(found, settings)
        from benchmarks.split.peer_block import PeerBlock

        name = {"peer_fp": "FPBasedResNetBottleneck", "peer_mshp": "MSHPBasedResNetBottleneck"}[job.method]
        return PeerBlock(name, found.shape[0])

    size, front = (protocol.size, protocol.size), method.front(settings, layer_of(job))
    student, teacher = inject(trace, layer_of(job), make, size=size, front=front)
    return student, teacher, method.stages(settings)


@dataclass(frozen=True)
class Sent:
    """What a head sent of each part's pictures, and the tail that it was trained with.

    Attributes:
        head: Pictures to integers, real numbers up to there.
        tail: Integers to logits.
        codec: With tables counted on training pictures.
        stream: How the integers are coded.
        latents: One for each picture of a part.
        setting: What the points are called.
    """

    head: IntegerHead
    tail: IntegerTail
    codec: EntropyCodec
    stream: StreamPlan
    latents: dict[str, list[np.ndarray]]
    setting: str


def evaluate(
    job: Job, student: SplitNetwork, data: dict[str, PictureSet], protocol: Protocol, device: str
) -> tuple[dict[str, list[Point]], Sent | None]:
    """Frames with header of all validation and test pictures, and the tail's answers from what the frames hold.

    Also what was sent, where one head did.
    """
    plain = without_chance(protocol.augmentation)
    if job.method.startswith("peer_"):
        known = first(data["train"], COUNTED) if job.method == "peer_fp" and job.protocol == "a" else None
        return {name: _peer_points(student.cpu().eval(), data[name], plain, known) for name in PARTS}, None
    if job.method == "bottlefit" and not job.options.get("rounds"):
        found: dict[str, list[Point]] = {name: [] for name in PARTS}
        for bits in BOTTLEFIT_BITS:
            student.bottleneck.bits = bits
            named = replace(job, options={**job.options, "bits": bits})
            for name, points in _own_points(send(named, student, data, plain, device), data).items():
                found[name] += points
        return found, None
    sent = send(job, student, data, plain, device)
    return _own_points(sent, data), sent


def bottlefit_setting(job: Job) -> str:
    """What its points are called: channels, bits, and the side of a latent that is not the cut's."""
    half = ", half the side" if job.options.get("version") == 3 else ""
    return f"{job.options['channels']} channels of {job.options['bits']} bits{half}"


def tuned_points(
    protocol: Protocol, sent: Sent, data: dict[str, PictureSet], work: Path, device: str
) -> dict[str, list[Point]]:
    """The same frames before a tail that was fine-tuned as long and as the codecs' network is."""
    from benchmarks.split.study_nets import tune_tail

    tune_tail(protocol, (sent.head.to(device), sent.tail), data, work, device)
    return _own_points(sent, data)


def send(job: Job, student: SplitNetwork, data: dict[str, PictureSet], plain: Augmentation, device: str) -> Sent:
    """Integers of all pictures, in counted tables."""
    counted = first(data["train"], COUNTED)
    student = student.to(device).eval()
    grid = fit_grid(student, (one.to(device) for one in input_batches(counted, plain)))
    head, tail = IntegerHead(student.bottleneck, grid), IntegerTail(student, grid).to(device)
    known, *latents = integers(job, head, (counted, *(data[name] for name in PARTS)), plain, device)
    stream = student.bottleneck.stream
    setting = bottlefit_setting(job) if job.method == "bottlefit" else ""
    codec = EntropyCodec(fit_tables(known, stream))
    return Sent(head, tail, codec, stream, dict(zip(PARTS, latents, strict=True)), setting)


def _own_points(sent: Sent, data: dict[str, PictureSet]) -> dict[str, list[Point]]:
    """Behind the tail as it now is."""
    found = {
        name: _points(sent.codec, sent.stream, some, sent.tail, data[name].labels.numpy())
        for name, some in sent.latents.items()
    }
    return {name: [(own or sent.setting, *rest) for own, *rest in points] for name, points in found.items()}


def _points(
    codec: EntropyCodec, plan: StreamPlan, latents: list[np.ndarray], tail: IntegerTail, labels: np.ndarray
) -> list[Point]:
    """One for each number of layers."""
    layers = len(plan.layers) or 1
    pieces = [codec.encode([one]) for one in latents]
    points = []
    for count in range(1, layers + 1):
        sizes = np.array(
            [len(frame_of(one, pieces_of[:count])) for one, pieces_of in zip(latents, pieces, strict=True)]
        )
        seen = np.concatenate(latents)
        if count < layers:
            seen = seen.copy()
            seen[:, plan.layers[count - 1] :] = 0
        points.append((f"layers={count}" if layers > 1 else "", sizes, answers(tail, seen) == labels))
    return points


def integers(
    job: Job, head: IntegerHead, sets: Sequence[PictureSet], plain: Augmentation, device: str
) -> list[list[np.ndarray]]:
    """int8 latents of each set: from the int8 head on onnxruntime where the job wants it, else from the float one."""
    if not job.int8:
        head = head.to(device)
        return [integer_latents(head, (one.to(device) for one in input_batches(data, plain))) for data in sets]
    import onnxruntime

    from export.head_graph import IMAGE, LATENT, fold_head, head_to_onnx

    pictures = [one[None].numpy() for batch in input_batches(first(sets[0], 256), plain) for one in batch]
    model = head_to_onnx(fold_head(head.cpu()), torch.from_numpy(pictures[0]), [[one] for one in pictures])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    found = []
    for data in sets:
        inputs = (one[None].numpy() for batch in input_batches(data, plain) for one in batch)
        found.append([session.run([LATENT], {IMAGE: one})[0] for one in inputs])
    return found


class _Coded:
    """A codec whose layers are there already."""

    table_id = bytes(4)

    def __init__(self, layers: Sequence[bytes | memoryview]) -> None:
        self.layers = list(layers)

    def encode(self, _: object) -> list[bytes | memoryview]:
        return self.layers


def frame_of(latent: np.ndarray, layers: Sequence[bytes | memoryview]) -> bytes:
    """The complete frame around coded layers: the same header for ours and for the peer's strings."""
    return b"".join(encode_tensors([latent], cut_id=CUT, codec=_Coded(layers), code=CODEC_ENTROPY))


def answers(tail: IntegerTail, latents: np.ndarray) -> np.ndarray:
    """Classes from int8 latents (n, channels, h, w)."""
    device = tail.step.device
    with torch.no_grad():
        parts = [
            tail(torch.from_numpy(latents[at : at + 256]).to(device)).argmax(1).cpu()
            for at in range(0, len(latents), 256)
        ]
    return torch.cat(parts).numpy()


def _peer_points(
    student: SplitNetwork, test: PictureSet, plain: Augmentation, counted: PictureSet | None
) -> list[Point]:
    """The peer's own strings in our frame, its own decoder behind them; with `counted` also its integers in our coder."""
    sizes, right = [], []
    with torch.no_grad():
        for at in range(0, len(test), 64):
            x = centre(test.images[at : at + 64], plain)
            strings, target = student.bottleneck.strings(x)
            like = student.bottleneck.encoder(x[:1]).to(torch.int8).numpy()
            sizes += [len(frame_of(like, one)) for one in strings]
            right.append(student.tail(target)[0].argmax(1).numpy() == test.labels[at : at + 64].numpy())
    points = [("", np.array(sizes), np.concatenate(right))]
    if counted is not None:
        known, latents = (
            [one[None] for x in input_batches(part, plain) for one in student.bottleneck.integers(x)]
            for part in (counted, test)
        )
        codec = EntropyCodec(fit_tables(known))
        ours = np.array([len(frame_of(one, codec.encode([one]))) for one in latents])
        points.append((COUNTED_TABLES, ours, points[0][2]))
    return points


def read_set(path: Path) -> PictureSet:
    """Pictures that `study.prepare` decoded."""
    with np.load(path, allow_pickle=False) as file:
        return PictureSet.of_arrays(file["images"], file["labels"], classes=tuple(file["classes"].tolist()))


def first(data: PictureSet, count: int) -> PictureSet:
    """The first pictures (sets are shuffled once, with a fixed seed); all with a count of 0."""
    return PictureSet(data.images[:count], data.labels[:count], data.classes) if count else data


if __name__ == "__main__":
    main()
