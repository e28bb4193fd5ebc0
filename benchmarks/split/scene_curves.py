"""Segmentation and boxes over one stream, against WebP with fine-tuned tails: the curves behind the row `three_tails`.

python -m benchmarks.split.scene_curves --jobs 4        every point, then the rows; what is there already is not run again

Scenes are composed from the groceries' photos; the head learns on training scenes from an ImageNet network, without a label.
One point is one JSON file in the folder; on a GPU a point takes about a minute.
"""

import argparse
import hashlib
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import msgspec
import numpy as np
import torch
from PIL import Image

from benchmarks.rows import ROOT, Measurement
from edge_runtime.entropy import EntropyCodec
from split.augment import Augmentation, centre
from split.distill import TrainOptions, train
from split.inject import SplitNetwork, Teacher, inject, trace_network
from split.latents import IntegerHead, fit_grid, fit_tables
from split.losses import TaskLoss
from split.methods import find_method
from split.quality import CurveError, bd_rate
from split.scene_scores import score_tail
from split.scene_tails import LatentTrunk, PictureTrunk, SceneTail, TailOptions, train_tail
from split.scenes import SceneOptions, SceneSet, compose_scenes
from split.training_data import DataOptions, PictureSet, open_pictures

FOLDER = ROOT / "build" / "bench" / "scenes"
TASKS = ("masks", "boxes", "classes")
BAR = -30.0
_CLASSES = 10  # the most frequent coarse ones
_FRAME_BYTES, _LAYER_BYTES, _PICTURE_FRAME_BYTES = 36, 4, 32
_CALIBRATED = 500


@dataclass(frozen=True)
class ScenePlan:
    """Sizes of the study.

    Attributes:
        train: Training scenes.
        test: Test scenes, from test photos.
        size: In pixels.
        layer: The cut.
        betas: One head each.
        qualities: Of WebP, one set of tails each.
        epochs: Of the head: joint and fixed.
        tail_epochs: Of each tail.
        shrink: Of the head.
        features: Weight of the features against the teacher's logits.
        seed: Of everything.
    """

    train: int = 4000
    test: int = 1000
    size: int = 128
    layer: str = "_blocks.2"
    betas: tuple[float, ...] = (2e-4, 6e-4, 2e-3, 6e-3)
    qualities: tuple[int, ...] = (1, 10, 30, 60, 85)
    epochs: tuple[int, int] = (14, 2)
    tail_epochs: int = 15
    shrink: int = 2
    features: float = 10.0
    seed: int = 0


def run_point(name: str, plan: ScenePlan, folder: Path) -> dict[str, object]:
    """Measure one point, "slim:BETA" or "webp:QUALITY": mean bytes of a frame and the score of each task.

    Args:
        name: Which.
        plan: Sizes.
        folder: Where the result lies, or will.
    """
    path = folder / f"{name.replace(':', '_')}.json"
    if path.is_file():
        found: dict[str, object] = json.loads(path.read_text())
        if (found["plan"], found.get("data")) == (json.loads(json.dumps(asdict(plan))), _data()):
            return found
    began = time.monotonic()
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, value = name.split(":")
    train_scenes, test_scenes = scenes_of("train", plan), scenes_of("test", plan)
    measured = (_slim_point if kind == "slim" else _webp_point)(float(value), train_scenes, test_scenes, plan, device)
    result = {
        "point": name,
        "data": _data(),
        **measured,
        "seconds": round(time.monotonic() - began),
        "plan": asdict(plan),
    }
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1))
    return result


def _data() -> str:
    """What scenes are made of here."""
    return "photos" if "HEADTAIL_DATA" in os.environ else "drawn shapes"


def measurements(results: list[dict[str, object]]) -> list[Measurement]:
    """BD-rates of the tasks, the worse of masks and boxes against the bar."""
    measured, rates = [], {}
    for task in TASKS:
        curves = [_curve(results, kind, task) for kind in ("webp", "slim")]
        try:
            rates[task] = bd_rate(curves[0], curves[1]).percent
        except CurveError:
            rates[task] = None
        text = f"{task}: BD-rate against WebP with fine-tuned tails, composed scenes"
        measured.append(
            Measurement(id=f"three_tails.{task}", what=text, value=rates[task], unit="%", direction="info", peer="WebP")
        )
    both = [rates["masks"], rates["boxes"]]
    worse = None if None in both else max(one for one in both if one is not None)
    text = "the worse BD-rate of masks and boxes over one head's bytes, against WebP with fine-tuned tails"
    return [
        Measurement(id="three_tails", what=text, value=worse, unit="%", direction="<=", bar=BAR, peer="WebP"),
        *measured,
    ]


def scenes_of(part: str, plan: ScenePlan) -> SceneSet:
    """Scenes of one split, from its photos, or from drawn shapes where no data is at hand."""
    count, seed = (plan.train, 2 * plan.seed) if part == "train" else (plan.test, 2 * plan.seed + 1)
    options = SceneOptions(size=plan.size, seed=seed)
    if "HEADTAIL_DATA" not in os.environ:
        return compose_scenes(count, options)
    photos = open_pictures(Path(os.environ["HEADTAIL_DATA"], "data", "grocery", f"{part}.npz"), _PHOTOS)
    counts = (
        torch.bincount(open_pictures(_train_path(), _PHOTOS).labels)
        if part != "train"
        else torch.bincount(photos.labels)
    )
    return compose_scenes(count, options, _most_frequent(photos, counts))


_PHOTOS = DataOptions(size=128, label_key="coarse_label", classes=43)


def _train_path() -> Path:
    return Path(os.environ["HEADTAIL_DATA"], "data", "grocery", "train.npz")


def _most_frequent(photos: PictureSet, counts: torch.Tensor) -> PictureSet:
    """The photos of the classes that are most frequent in training, numbered anew."""
    kept = counts.argsort(descending=True, stable=True)[:_CLASSES].tolist()
    rows_ = torch.tensor([int(one) in kept for one in photos.labels])
    labels = torch.tensor([kept.index(int(one)) for one in photos.labels[rows_]])
    return PictureSet(photos.images[rows_], labels, tuple(photos.classes[one] for one in kept))


def _network(plan: ScenePlan) -> tuple[Augmentation, torch.nn.Module]:
    from export.zoo import efficientnet_lite0

    module = efficientnet_lite0().module
    assert module is not None
    return Augmentation(plan.size, "flip", 0, (127 / 255,) * 3, (128 / 255,) * 3), module.eval()


def _pair(plan: ScenePlan, beta: float) -> tuple[SplitNetwork, Teacher, Augmentation, object]:
    view, module = _network(plan)
    method = find_method("slim")
    options = method.options(
        beta=beta, epochs=plan.epochs, shrink=plan.shrink, features=plan.features, task=TaskLoss("kd", alpha=0.0)
    )
    trace = trace_network(module, torch.zeros(1, 3, plan.size, plan.size))
    torch.manual_seed(plan.seed)
    student, teacher = inject(trace, plan.layer, lambda one: method.make(one, options), size=(plan.size, plan.size))
    return student, teacher, view, method.stages(options)


def _slim_point(
    beta: float, train_scenes: SceneSet, test_scenes: SceneSet, plan: ScenePlan, device: torch.device
) -> dict[str, object]:
    student, teacher, view, stages = _pair(plan, beta)
    with tempfile.TemporaryDirectory() as folder:
        options = TrainOptions(
            folder=Path(folder),
            augmentation=view,
            seed=plan.seed,
            device=device.type,
            checkpoint_every_s=1e9,
            log_every=100,
        )
        train(student, teacher, train_scenes.pictures(), stages, options)  # type: ignore[arg-type]
    student.eval().to(device)
    grid = fit_grid(student, ())
    head = IntegerHead(student.bottleneck, grid).to(device)
    inputs, tests = (_integers(head, one, view, device) for one in (train_scenes, test_scenes))
    arrays = inputs[:_CALIBRATED].cpu().numpy()
    codec = EntropyCodec(fit_tables([one[None] for one in arrays], student.bottleneck.stream))
    digest, sizes = hashlib.sha256(), []
    for one in tests.cpu().numpy():
        layers = [bytes(layer) for layer in codec.encode([one[None]])]
        digest.update(b"".join(layers))
        sizes.append(_FRAME_BYTES + sum(_LAYER_BYTES + len(layer) for layer in layers))
    scores = {}
    for task in TASKS:
        trunk = LatentTrunk(student, grid)
        scores[task] = _tail_score(trunk, task, (inputs, train_scenes), (tests, test_scenes), plan)
    return {"bytes": float(np.mean(sizes)), "scores": scores, "stream_sha256": digest.hexdigest()}


def _webp_point(
    quality: float, train_scenes: SceneSet, test_scenes: SceneSet, plan: ScenePlan, device: torch.device
) -> dict[str, object]:
    view, module = _network(plan)
    trace = trace_network(module, torch.zeros(1, 3, plan.size, plan.size))
    method = find_method("slim")
    _, teacher = inject(trace, plan.layer, lambda one: method.make(one, method.options()), size=(plan.size, plan.size))
    inputs, _ = _through_webp(train_scenes, int(quality))
    tests, sizes = _through_webp(test_scenes, int(quality))
    scores = {}
    for task in TASKS:
        trunk = PictureTrunk(teacher, view)
        scores[task] = _tail_score(
            trunk, task, (inputs.to(device), train_scenes), (tests.to(device), test_scenes), plan
        )
    return {"bytes": float(np.mean(sizes)) + _PICTURE_FRAME_BYTES, "scores": scores}


def _tail_score(
    trunk: torch.nn.Module,
    task: str,
    training: tuple[torch.Tensor, SceneSet],
    test: tuple[torch.Tensor, SceneSet],
    plan: ScenePlan,
) -> float:
    device = training[0].device
    options = TailOptions(epochs=plan.tail_epochs, seed=plan.seed)
    torch.manual_seed(plan.seed)
    tail = SceneTail(trunk.to(device), training[0][:1], task, len(training[1].classes), options)  # type: ignore[arg-type]
    train_tail(tail, training[0], training[1].to(device), options)
    return score_tail(tail, test[0], test[1].to(device))


def _integers(head: IntegerHead, scenes: SceneSet, view: Augmentation, device: torch.device) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([head(centre(one.to(device), view)) for one in scenes.images.split(256)])


def _through_webp(scenes: SceneSet, quality: int) -> tuple[torch.Tensor, list[int]]:
    """Decoded pictures and the sizes of their files."""
    images, sizes = [], []
    for one in scenes.images.numpy():
        file = io.BytesIO()
        Image.fromarray(one.transpose(1, 2, 0)).save(file, "webp", quality=quality, method=4)
        sizes.append(len(file.getvalue()))
        images.append(np.asarray(Image.open(file).convert("RGB")).transpose(2, 0, 1))
    return torch.from_numpy(np.stack(images)), sizes


def _curve(results: list[dict[str, object]], kind: str, task: str) -> tuple[list[float], list[float]]:
    points = [one for one in results if str(one["point"]).startswith(kind)]
    scores = [one["scores"] for one in points]
    return [float(str(one["bytes"])) for one in points], [float(one[task]) for one in scores if isinstance(one, dict)]


def rows() -> Iterator[dict[str, object]]:
    """Run what is missing with one process, then the rows: the part `scenes` of `python -m benchmarks.split`."""
    plan = ScenePlan()
    yield from map(msgspec.to_builtins, measurements([run_point(name, plan, FOLDER) for name in points(plan)]))


def points(plan: ScenePlan) -> list[str]:
    """Names of all points."""
    return [f"slim:{one}" for one in plan.betas] + [f"webp:{one}" for one in plan.qualities]


def main() -> None:
    """Run what is missing, print rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--jobs", type=int, default=1, help="processes; on a GPU four share it well")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run?")
    given = parser.parse_args()
    plan = ScenePlan()
    if given.quick:
        plan = ScenePlan(train=64, test=32, size=64, betas=(6e-4,), qualities=(30,), epochs=(1, 1), tail_epochs=1)
    names = points(plan)
    with ProcessPoolExecutor(given.jobs, mp_context=get_context("spawn")) as pool:
        results = list(pool.map(run_point, names, [plan] * len(names), [given.folder] * len(names)))
    for one in results:
        sys.stdout.write(f"{one['point']:>12} {one['bytes']:8.1f} B {one['scores']} {one['seconds']} s\n")
    for row in measurements(results):
        sys.stdout.write(f"{row.id}: {row.value} {row.unit}\n")


if __name__ == "__main__":
    main()
