"""Mean intersection over union of masks, mean average precision of boxes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Boxes:
    """Boxes of one picture.

    Attributes:
        corners: (n, 4): left, top, right, bottom.
        kinds: (n,): class ids.
        scores: (n,), larger is surer; null for true boxes.
    """

    corners: npt.NDArray[np.floating]
    kinds: npt.NDArray[np.integer]
    scores: npt.NDArray[np.floating] | None = None


def mean_iou(found: npt.NDArray[np.integer], wanted: npt.NDArray[np.integer], classes: int) -> float:
    """Mean over the classes that occur (background too) of intersection over union, over all pictures together.

    Args:
        found: Class ids, any shape.
        wanted: The same shape.
        classes: Number of ids.
    """
    joint = np.bincount(wanted.reshape(-1).astype(np.int64) * classes + found.reshape(-1), minlength=classes**2)
    matrix = joint.reshape(classes, classes).astype(np.float64)
    both = np.diag(matrix)
    union = matrix.sum(0) + matrix.sum(1) - both
    return float((both[union > 0] / union[union > 0]).mean())


def mean_average_precision(found: Sequence[Boxes], wanted: Sequence[Boxes], *, overlap: float = 0.5) -> float:
    """Mean over the classes that occur among the true boxes of the area under the precision-recall curve.

    A found box is right when it overlaps a true one of its class, that no surer one has taken, by at least `overlap`.

    Args:
        found: One for each picture, with scores.
        wanted: The true ones.
        overlap: Intersection over union that is enough.

    Source: Everingham et al. 2010, PASCAL VOC; all points, as since 2010.
    """
    kinds = sorted({int(kind) for one in wanted for kind in one.kinds})
    return float(np.mean([_average_precision(found, wanted, kind, overlap) for kind in kinds])) if kinds else 0.0


def box_overlaps(a: npt.NDArray[np.floating], b: npt.NDArray[np.floating]) -> F64:
    """Intersection over union of each of a, (n, 4), with each of b, (m, 4): (n, m)."""
    a, b = a.astype(np.float64)[:, None], b.astype(np.float64)[None]
    low, high = np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])
    inner = np.prod(np.maximum(high - low, 0), -1)
    areas = np.prod(a[..., 2:] - a[..., :2], -1) + np.prod(b[..., 2:] - b[..., :2], -1)
    result: F64 = inner / np.maximum(areas - inner, 1e-12)
    return result


def _average_precision(found: Sequence[Boxes], wanted: Sequence[Boxes], kind: int, overlap: float) -> float:
    scores: list[float] = []
    right: list[bool] = []
    total = 0
    for ours, theirs in zip(found, wanted, strict=True):
        true = theirs.corners[theirs.kinds == kind]
        total += len(true)
        mine = ours.kinds == kind
        assert ours.scores is not None
        order = np.argsort(-ours.scores[mine], kind="stable")
        corners, sure = ours.corners[mine][order], ours.scores[mine][order]
        overlaps = box_overlaps(corners, true)
        taken = np.zeros(len(true), bool)
        for row, score in zip(overlaps, sure, strict=True):
            free = np.where(taken, -1.0, row)
            best = int(free.argmax()) if len(free) else -1
            hit = best >= 0 and free[best] >= overlap
            if hit:
                taken[best] = True
            scores.append(float(score))
            right.append(bool(hit))
    if not scores:
        return 0.0
    hits = np.array(right)[np.argsort(-np.array(scores), kind="stable")]
    recall = np.cumsum(hits) / total
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    highest = np.maximum.accumulate(precision[::-1])[::-1]  # best precision at this recall or a larger one
    return float((np.diff(np.concatenate([[0.0], recall])) * highest).sum())
