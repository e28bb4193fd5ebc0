"""The points behind the rows `three_tails`: segmentation, boxes and classes over one stream, and over WebP.

    python -m benchmarks.split.scene_curves --point slim:3e-05 --folder DIR [--seed 1]    one point, one process
    python -m benchmarks.split.scene_curves --jobs 8 [--seeds 0,1,2]                      what is missing of all points
    python -m benchmarks.split.scene_curves --quick                                       does it run?

Scenes are composed from the groceries' photos (HEADTAIL_DATA or --data), training scenes from training photos, or from drawn
shapes. Both sides get the same network (EfficientNet-Lite0, ImageNet weights), scenes, labels, epochs and learning rates, and every
layer learns on both: first all three tasks behind one trunk, then each tail alone from there. Only what stands in front differs.
For slim that is a head, which learns in the first part what the tasks need of its bits and is fixed in the second (with kept first
layers it computes in real numbers here, up to its integers; without, as int8); for WebP the codec and the network's own first layers, on decoded pictures. Bytes are those of whole frames.
"""

import argparse
import hashlib
import io
import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image

from benchmarks.rows import ROOT
from benchmarks.split.scene_points import ScenePoint, point_path, read_point, write_point
from edge_runtime.entropy import EntropyCodec
from edge_runtime.wire import CODEC_ENTROPY, Limits, decode_frame, decode_tensors, encode_image_file, encode_tensors
from split.augment import Augmentation
from split.inject import SplitNetwork, Teacher, inject, trace_network
from split.latents import IntegerHead, fit_grid, fit_tables
from split.methods import find_method
from split.scene_scores import matches_of, pixels_of, right_classes
from split.scene_tails import (
    TASKS,
    CodedTrunk,
    LatentTrunk,
    Normalised,
    PictureTrunk,
    SceneTail,
    TaskHead,
    make_head,
    run_tail,
)
from split.scene_training import RateOptions, TailOptions, train_coded, train_tail, train_together
from split.scenes import SceneOptions, SceneSet, compose_scenes
from split.training_data import DataOptions, PictureSet, open_pictures

FOLDER = ROOT / "build" / "bench" / "scenes"
CUT = bytes(8)
_CLASSES = 10  # the most frequent coarse ones
_PHOTOS = DataOptions(size=128, label_key="coarse_label", classes=43)
_CHUNK = 250


@dataclass(frozen=True)
class ScenePlan:
    """Sizes of the study.

    Attributes:
        train: Training scenes; each is seen in a mirror too.
        test: Test scenes, from test photos.
        size: In pixels.
        layer: The cut.
        front: The last of the network's own first layers that slim's head keeps.
        shrink: Places of the cut's layer for one of the latent, both directions.
        channels: Of the latent.
        betas: One head each.
        qualities: Of WebP, one set of tails each.
        epochs: Of all tasks together.
        tail_epochs: Of each tail alone, after that.
        tail_lr: Learning rate of a tail alone.
        calibrated: Training scenes that the entropy tables are counted on.
    """

    train: int = 4000
    test: int = 1000
    size: int = 128
    layer: str = "_blocks.2"
    front: str = "_blocks.2"
    shrink: int = 1
    channels: int = 16
    betas: tuple[float, ...] = (3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3)
    qualities: tuple[int, ...] = (1, 5, 15, 40, 70, 90)
    epochs: int = 20
    tail_epochs: int = 8
    tail_lr: float = 1e-3
    calibrated: int = 1000


_SLIM_ONLY = ("layer", "front", "shrink", "channels", "calibrated")
QUICK = ScenePlan(train=48, test=24, size=64, betas=(1e-4,), qualities=(30,), epochs=1, tail_epochs=1, calibrated=48)


@dataclass(frozen=True)
class _Data:
    """Scenes in the main memory and on the device; training scenes with their mirror images."""

    train: SceneSet
    test: SceneSet
    there: SceneSet
    device: torch.device


def run_point(name: str, plan: ScenePlan, folder: Path, seed: int) -> Path:
    """Measure one point, "slim:BETA" or "webp:QUALITY", unless it is there; returns its file."""
    kind, value = name.split(":")
    name = f"{kind}:{float(value):g}"
    path = point_path(folder, name, seed)
    if (
        path.is_file()
        and read_point(path).note["plan"].items() >= _plain(plan, kind).items()
        and read_point(path).note["data"] == data_kind()
    ):
        return path
    began = time.monotonic()
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("high")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(1000 + seed)
    train, test = (scenes_of(part, plan, seed) for part in ("train", "test"))
    train = train.with_mirrored()
    data = _Data(train, test, train.to(device), device)
    digests, answers, sizes = (_slim_point if kind == "slim" else _webp_point)(float(value), data, plan, seed)
    note = {
        "point": name, "seed": seed, "data": data_kind(), "plan": _plain(plan, kind), "sent": digests,
        "scenes": hashlib.sha256(test.images.numpy().tobytes()).hexdigest()[:16], "pillow": PIL.__version__,
        "torch": torch.__version__, "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "seconds": round(time.monotonic() - began),
    }  # fmt: skip
    point = ScenePoint(
        np.array(sizes), right_classes(answers["classes"], test), pixels_of(answers["masks"], test),
        matches_of(answers["boxes"], test), note,
    )  # fmt: skip
    write_point(path, point)
    return path


def data_kind() -> str:
    """What scenes are made of here."""
    return "photos" if "HEADTAIL_DATA" in os.environ else "drawn shapes"


def scenes_of(part: str, plan: ScenePlan, seed: int = 0) -> SceneSet:
    """Scenes of one part, from its photos, or from drawn shapes where no data is at hand. Test scenes are the same with every seed."""
    count, own = (plan.train, 2 * seed) if part == "train" else (plan.test, 1)
    options = SceneOptions(size=plan.size, seed=own)
    if "HEADTAIL_DATA" not in os.environ:
        return compose_scenes(count, options)
    folder = Path(os.environ["HEADTAIL_DATA"], "data", "grocery")
    training = open_pictures(folder / "train.npz", _PHOTOS)
    photos = training if part == "train" else open_pictures(folder / "test.npz", _PHOTOS)
    return compose_scenes(count, options, _most_frequent(photos, torch.bincount(training.labels)))


def _most_frequent(photos: PictureSet, counts: torch.Tensor) -> PictureSet:
    """The photos of the classes that are most frequent in training, numbered anew."""
    kept = counts.argsort(descending=True, stable=True)[:_CLASSES].tolist()
    chosen = torch.tensor([int(one) in kept for one in photos.labels])
    labels = torch.tensor([kept.index(int(one)) for one in photos.labels[chosen]])
    return PictureSet(photos.images[chosen], labels, tuple(photos.classes[one] for one in kept))


def _pair(plan: ScenePlan) -> tuple[SplitNetwork, Teacher, Augmentation]:
    from export.zoo import efficientnet_lite0

    module = efficientnet_lite0().module
    assert module is not None
    method = find_method("slim")
    options = method.options(latent_channels=plan.channels, shrink=plan.shrink, front=plan.front)
    size = (plan.size, plan.size)
    trace = trace_network(module, torch.zeros(1, 3, *size))
    student, teacher = inject(trace, plan.layer, lambda one: method.make(one, options), size=size, front=plan.front)
    return student, teacher, Augmentation(plan.size, "none", 0, (127 / 255,) * 3, (128 / 255,) * 3)


_Found = tuple[dict[str, str], dict[str, torch.Tensor], list[int]]


def _slim_point(beta: float, data: _Data, plan: ScenePlan, seed: int) -> _Found:
    student, teacher, view = _pair(plan)
    student.to(data.device)
    trunk = CodedTrunk(student, view).to(data.device)
    heads = _heads(trunk, data)
    options = TailOptions(epochs=plan.epochs, seed=seed)
    train_coded(
        teacher, trunk, heads, (data.there.images, data.there), (options, RateOptions(beta=beta, int8=not plan.front))
    )
    student.eval()
    grid = fit_grid(student, ())
    sender = _Sender(IntegerHead(student.bottleneck, grid), view)
    inputs = sender.integers(data.there.images)
    plain = inputs[: plan.calibrated].cpu().numpy()
    codec = EntropyCodec(fit_tables([one[None] for one in plain], student.bottleneck.stream))
    found: dict[str, torch.Tensor] = {}
    digests: dict[str, str] = {}
    sizes: list[int] = []
    for task in TASKS:
        tail = SceneTail(LatentTrunk(student, grid).to(data.device), heads[task])
        train_tail(tail, inputs, data.there, TailOptions(epochs=plan.tail_epochs, lr=plan.tail_lr, seed=seed))
        frames = sender.frames(data.test.images, codec)  # anew for each tail: nothing of the head may have changed
        sizes = [len(one) for one in frames]
        digests[task] = sender.digest(frames, codec)
        found[task] = run_tail(tail, received(frames, codec).to(data.device)).cpu()
    return digests, found, sizes


class _Sender:
    """The device's side: a head and its frames."""

    def __init__(self, head: IntegerHead, view: Augmentation) -> None:
        self.head, self.view = head, Normalised(view)

    def integers(self, images: torch.Tensor) -> torch.Tensor:
        """int8 latents of uint8 pictures, on their device."""
        head, view = self.head.to(images.device), self.view.to(images.device)
        with torch.no_grad():
            return torch.cat([head(view(one)) for one in images.split(_CHUNK)])

    def frames(self, images: torch.Tensor, codec: EntropyCodec) -> list[bytes]:
        """A whole frame for each picture; pictures in the main memory, so that the CPU computes as a device's would."""
        latents = self.integers(images).numpy()
        return [b"".join(encode_tensors([one[None]], cut_id=CUT, codec=codec, code=CODEC_ENTROPY)) for one in latents]

    def digest(self, frames: Iterable[bytes], codec: EntropyCodec) -> str:
        """Of the head's weights, its tables, and what it sent."""
        state = [one.cpu().numpy().tobytes() for one in self.head.state_dict().values() if one.numel()]
        return hashlib.sha256(b"".join([*state, codec.tables.data, *frames])).hexdigest()


def received(frames: Sequence[bytes], codec: EntropyCodec) -> torch.Tensor:
    """int8 latents from frames, (n, channels, h, w)."""
    limits = Limits(payload_bytes=1 << 20, tensor_bytes=1 << 20)
    arrays = [decode_tensors(decode_frame(one, limits), {CODEC_ENTROPY: codec})[0] for one in frames]
    return torch.from_numpy(np.concatenate(arrays))


def _webp_point(quality: float, data: _Data, plan: ScenePlan, seed: int) -> _Found:
    _, teacher, view = _pair(plan)
    trunk = PictureTrunk(teacher, view).to(data.device)
    heads = _heads(trunk, data)
    inputs = through_webp(data.train.images, int(quality))[0].to(data.device)
    tests, files = through_webp(data.test.images, int(quality))
    frames = [b"".join(encode_image_file(one, cut_id=CUT)) for one in files]
    train_together(trunk, heads, inputs, data.there, TailOptions(epochs=plan.epochs, seed=seed))
    found: dict[str, torch.Tensor] = {}
    for task in TASKS:
        tail = SceneTail(trunk.copied(), heads[task])
        train_tail(tail, inputs, data.there, TailOptions(epochs=plan.tail_epochs, lr=plan.tail_lr, seed=seed))
        found[task] = run_tail(tail, tests.to(data.device)).cpu()
    digest = hashlib.sha256(b"".join(frames)).hexdigest()
    return {task: digest for task in TASKS}, found, [len(one) for one in frames]


def _heads(trunk: torch.nn.Module, data: _Data) -> dict[str, TaskHead]:
    example, classes = data.there.images[:1], len(data.train.classes)
    return {task: make_head(trunk, example, task, classes).to(data.device) for task in TASKS}


def through_webp(images: torch.Tensor, quality: int) -> tuple[torch.Tensor, list[bytes]]:
    """Decoded pictures and their files."""
    decoded, files = [], []
    for one in images.numpy():
        file = io.BytesIO()
        Image.fromarray(one.transpose(1, 2, 0)).save(file, "webp", quality=quality, method=4)
        files.append(file.getvalue())
        decoded.append(np.asarray(Image.open(file).convert("RGB")).transpose(2, 0, 1))
    return torch.from_numpy(np.stack(decoded)), files


def _plain(plan: ScenePlan, kind: str) -> dict[str, Any]:
    """What of a plan changes a point of slim or WebP, as JSON gives it back."""
    found: dict[str, Any] = json.loads(json.dumps(asdict(plan)))
    without = ("betas", "qualities", *(_SLIM_ONLY if kind == "webp" else ()))
    return {key: value for key, value in found.items() if key not in without}


def points(plan: ScenePlan) -> list[str]:
    """Names of all points."""
    return [f"slim:{one:g}" for one in plan.betas] + [f"webp:{one:g}" for one in plan.qualities]


def main() -> None:
    """Run one point, or what is missing of all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--point", help="slim:BETA or webp:QUALITY; all without")
    parser.add_argument("--seed", type=int, default=0, help="of one point")
    parser.add_argument("--seeds", default="0", help="of all points, with commas")
    parser.add_argument("--jobs", type=int, default=1, help="processes; on a GPU eight share it well")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--data", type=Path, help="holds data/grocery; as HEADTAIL_DATA")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="NAME=VALUE", help="of the plan, for another try: epochs=40"
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run?")
    given = parser.parse_args()
    if given.data:
        os.environ["HEADTAIL_DATA"] = str(given.data)
    plan = QUICK if given.quick else ScenePlan()
    changed = {name: json.loads(value) for name, value in (one.split("=", 1) for one in given.set)}
    plan = replace(plan, **{name: tuple(one) if isinstance(one, list) else one for name, one in changed.items()})
    if given.point:
        _tell(run_point(given.point, plan, given.folder, given.seed))
        return
    work = [(name, int(seed)) for seed in given.seeds.split(",") for name in points(plan)]
    with ProcessPoolExecutor(min(given.jobs, len(work)), mp_context=get_context("spawn")) as pool:
        for one in [pool.submit(run_point, name, plan, given.folder, seed) for name, seed in work]:
            _tell(one.result())


def _tell(path: Path) -> None:
    point = read_point(path)
    scores = ", ".join(f"{task} {point.score(task):.4f}" for task in TASKS)
    said = f"{point.name} seed {point.note['seed']}: {point.size():.1f} B, {scores}, {point.note['seconds']} s\n"
    sys.stdout.write(said)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
