"""One point of the scene study as a file: what happened on each test scene, so that every figure can be computed again from it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from split.scene_metrics import Matches, mean_average_precision, mean_iou


@dataclass(frozen=True)
class ScenePoint:
    """One rate with one seed.

    Attributes:
        sizes: (scenes,): bytes of each frame, header included.
        right: (scenes,), bool: the class is right.
        pixels: (scenes, classes + 1, classes + 1): of `split.scene_metrics.count_pixels`.
        matches: Of the boxes.
        note: Name, seed, plan, hashes, where it was made.
    """

    sizes: np.ndarray
    right: np.ndarray
    pixels: np.ndarray
    matches: Matches
    note: dict[str, Any]

    @property
    def name(self) -> str:
        """As in the plan: "slim:1e-05"."""
        return str(self.note["point"])

    def score(self, task: str, weights: np.ndarray | None = None) -> float:
        """Accuracy, mean IoU or mean average precision, in [0, 1]; with a weight for each scene or without."""
        if task == "masks":
            return mean_iou(self.pixels, weights)
        if task == "boxes":
            return mean_average_precision(self.matches, weights)
        return float(np.average(self.right, weights=weights))

    def size(self, weights: np.ndarray | None = None) -> float:
        """Mean bytes of a frame."""
        return float(np.average(self.sizes, weights=weights))


def point_path(folder: Path, name: str, seed: int) -> Path:
    """Where a point lies."""
    return folder / f"scenes-{name.replace(':', '-')}-s{seed}.npz"


def write_point(path: Path, point: ScenePoint) -> None:
    """In one step. Scores of boxes are kept in half precision: read it back before computing with it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part.npz")
    matches = point.matches
    np.savez_compressed(
        partial,
        note=np.array(json.dumps(point.note)),
        sizes=point.sizes.astype(np.uint32),
        right=np.packbits(point.right),
        pixels=point.pixels.astype(np.uint32),
        pictures=matches.pictures.astype(np.uint16),
        kinds=matches.kinds.astype(np.uint8),
        scores=matches.scores.astype(np.float16),
        hits=np.packbits(matches.hits),
        truths=matches.truths.astype(np.uint8),
    )
    partial.replace(path)


def read_point(path: Path) -> ScenePoint:
    """What `write_point` wrote."""
    with np.load(path, allow_pickle=False) as file:
        sizes = file["sizes"].astype(np.float64)
        scores = file["scores"].astype(np.float64)
        matches = Matches(
            file["pictures"].astype(np.int64),
            file["kinds"].astype(np.int64),
            scores,
            np.unpackbits(file["hits"])[: len(scores)].astype(bool),
            file["truths"].astype(np.int64),
        )
        right = np.unpackbits(file["right"])[: len(sizes)].astype(bool)
        return ScenePoint(sizes, right, file["pixels"].astype(np.int64), matches, json.loads(str(file["note"])))
