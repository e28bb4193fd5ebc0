"""Mean intersection over union of masks, mean average precision of boxes; counted picture by picture, so that pictures can be weighed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge_runtime.scene_maps import Boxes

F64 = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Matches:
    """Found boxes of several pictures against the true ones.

    Attributes:
        pictures: (n,): of each found box.
        kinds: (n,): its class id.
        scores: (n,): how sure it is.
        hits: (n,), bool: it is right.
        truths: (pictures, classes): true boxes of each class id from 1.
    """

    pictures: npt.NDArray[np.integer]
    kinds: npt.NDArray[np.integer]
    scores: npt.NDArray[np.floating]
    hits: Mask
    truths: npt.NDArray[np.integer]


def count_pixels(
    found: npt.NDArray[np.integer], wanted: npt.NDArray[np.integer], classes: int
) -> npt.NDArray[np.int64]:
    """Pixels of each picture by wanted and found class id.

    Args:
        found: Class ids, (pictures, ...).
        wanted: The same shape.
        classes: Number of ids.

    Returns:
        (pictures, classes, classes): rows are what was wanted.
    """
    pairs = (wanted.astype(np.int64) * classes + found).reshape(len(wanted), -1)
    counts = np.stack([np.bincount(one, minlength=classes**2) for one in pairs])
    return counts.reshape(-1, classes, classes)


def mean_iou(counts: npt.NDArray[np.integer], weights: F64 | None = None) -> float:
    """Mean over the classes that occur (background too) of intersection over union, over the pixels of all pictures together.

    Args:
        counts: Of `count_pixels`.
        weights: Of the pictures; null for one each.

    Source: Everingham et al. 2015, The PASCAL Visual Object Classes Challenge: A Retrospective, section 3.3.
    """
    matrix = np.tensordot(np.ones(len(counts)) if weights is None else weights, counts.astype(np.float64), 1)
    both = np.diag(matrix)
    union = matrix.sum(0) + matrix.sum(1) - both
    return float((both[union > 0] / union[union > 0]).mean())


def match_boxes(found: Sequence[Boxes], wanted: Sequence[Boxes], classes: int, *, overlap: float = 0.5) -> Matches:
    """Which found boxes are right: those that overlap a true one of their class, that no surer one has taken, enough.

    Args:
        found: One for each picture, with scores.
        wanted: The true ones.
        classes: Largest class id.
        overlap: Intersection over union that is enough.

    Source: Everingham et al. 2010, PASCAL VOC, section 4.4.
    """
    pictures: list[int] = []
    order, hits = [], []
    for number, (ours, theirs) in enumerate(zip(found, wanted, strict=True)):
        assert ours.scores is not None
        order.append(np.argsort(-ours.scores, kind="stable"))
        hits.append(_hits(ours, theirs, order[-1], overlap))
        pictures += [number] * len(ours.kinds)
    truths = [np.bincount(one.kinds, minlength=classes + 1)[1:] for one in wanted]
    kinds, scores = (
        np.concatenate([getattr(one, name)[rows] for one, rows in zip(found, order, strict=True)])
        for name in ("kinds", "scores")
    )
    return Matches(np.array(pictures, np.int64), kinds, scores, np.concatenate(hits), np.array(truths))


def mean_average_precision(matches: Matches, weights: F64 | None = None) -> float:
    """Mean over the classes that occur among the true boxes of the area under the precision-recall curve.

    Args:
        matches: Of all pictures.
        weights: Of the pictures; null for one each.

    Source: Everingham et al. 2010, PASCAL VOC, section 4.2; all points instead of eleven, as since 2010.
    """
    weights = np.ones(len(matches.truths)) if weights is None else weights
    totals = weights @ matches.truths
    order = np.argsort(-matches.scores, kind="stable")
    kinds, hits, weight = matches.kinds[order], matches.hits[order], weights[matches.pictures[order]]
    found = [
        _average_precision(hits[kinds == kind], weight[kinds == kind], total)
        for kind, total in enumerate(totals, 1)
        if total > 0
    ]
    return float(np.mean(found)) if found else 0.0


def box_overlaps(a: npt.NDArray[np.floating], b: npt.NDArray[np.floating]) -> F64:
    """Intersection over union of each of a, (n, 4), with each of b, (m, 4): (n, m)."""
    a, b = a.astype(np.float64)[:, None], b.astype(np.float64)[None]
    low, high = np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])
    inner = np.prod(np.maximum(high - low, 0), -1)
    areas = np.prod(a[..., 2:] - a[..., :2], -1) + np.prod(b[..., 2:] - b[..., :2], -1)
    result: F64 = inner / np.maximum(areas - inner, 1e-12)
    return result


def _hits(ours: Boxes, theirs: Boxes, order: npt.NDArray[np.integer], overlap: float) -> Mask:
    """For each found box in its order; each takes the true one that it overlaps most among those that are free."""
    overlaps = box_overlaps(ours.corners[order], theirs.corners)
    overlaps = np.where(ours.kinds[order][:, None] == theirs.kinds[None], overlaps, -1.0)
    hits = np.zeros(len(order), bool)
    for number, row in enumerate(overlaps):
        best = int(row.argmax()) if len(row) else -1
        if best >= 0 and row[best] >= overlap:
            hits[number] = True
            overlaps[:, best] = -1.0
    return hits


def _average_precision(hits: Mask, weights: F64, total: float) -> float:
    """Of one class, the surest first."""
    right, all_ = np.cumsum(hits * weights), np.cumsum(weights)
    precision = right / np.maximum(all_, 1e-12)
    highest = np.maximum.accumulate(precision[::-1])[::-1]  # best precision at this recall or a larger one
    return float((np.diff(right / total, prepend=0.0) * highest).sum())
