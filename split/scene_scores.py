"""From a scene tail's outputs to its score: accuracy, mean IoU, mean average precision at an overlap of one half."""

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from split.scene_metrics import Boxes, Matches, count_pixels, match_boxes, mean_average_precision, mean_iou
from split.scene_tails import SceneTail, run_tail
from split.scenes import SceneSet

_MOST_BOXES = 12  # of a picture
_LEAST_SCORE = 0.02
_CHUNK = 64


def score_tail(tail: SceneTail, inputs: torch.Tensor, scenes: SceneSet) -> float:
    """The task's own measure, in [0, 1]: accuracy, mean IoU, or mean average precision at an overlap of one half.

    Args:
        tail: Trained, on the inputs' device.
        inputs: As for `train_tail`.
        scenes: In the same order.
    """
    found = run_tail(tail, inputs)
    if tail.task == "classes":
        return float(right_classes(found, scenes).mean())
    if tail.task == "masks":
        return mean_iou(pixels_of(found, scenes))
    return mean_average_precision(matches_of(found, scenes))


def right_classes(found: torch.Tensor, scenes: SceneSet) -> npt.NDArray[np.bool_]:
    """Whether the largest of each scene's logits (n, classes) is its label's."""
    right: npt.NDArray[np.bool_] = (found.argmax(1).cpu() == scenes.labels.cpu()).numpy()
    return right


def pixels_of(found: torch.Tensor, scenes: SceneSet) -> npt.NDArray[np.int64]:
    """Pixels of each scene by wanted and found class, from logits (n, classes + 1, h, w) at any resolution."""
    size = scenes.masks.shape[1:]
    ids = [functional.interpolate(one, size=size, mode="bilinear").argmax(1) for one in found.split(_CHUNK)]
    return count_pixels(torch.cat(ids).cpu().numpy(), scenes.masks.cpu().numpy(), found.shape[1])


def matches_of(found: torch.Tensor, scenes: SceneSet) -> Matches:
    """The boxes of outputs (n, classes + 4, h, w) against the scenes'."""
    wanted = [
        Boxes(box[kind > 0].numpy(), kind[kind > 0].numpy())
        for box, kind in zip(scenes.boxes.cpu(), scenes.kinds.cpu(), strict=True)
    ]
    classes = len(scenes.classes)
    return match_boxes(read_boxes(found, classes, scenes.images.shape[-1]), wanted, classes)


def read_boxes(found: torch.Tensor, classes: int, size: int) -> list[Boxes]:
    """Boxes at the peaks of the heat, surest first.

    Args:
        found: Outputs of a box tail, (n, classes + 4, h, w).
        classes: Number of them.
        size: Of the pictures in pixels; boxes are in these.
    """
    height, width = found.shape[2:]
    heat = torch.sigmoid(found[:, :classes])
    heat = torch.where(functional.max_pool2d(heat, 3, stride=1, padding=1) == heat, heat, torch.zeros_like(heat))
    scores, places = heat.flatten(1).topk(min(_MOST_BOXES, heat[0].numel()))
    kinds, cells = places // (height * width), places % (height * width)
    at = torch.stack([(cells % width + 0.5) / width, (cells // width + 0.5) / height], -1)
    sides = found[:, classes:].flatten(2).gather(2, cells[:, None].expand(-1, 4, -1)).transpose(1, 2)
    corners = torch.cat([at - sides[..., :2], at + sides[..., 2:]], -1).clamp(0, 1) * size
    result = []
    for box, kind, score in zip(corners.cpu().numpy(), kinds.cpu().numpy(), scores.cpu().numpy(), strict=True):
        kept = score >= _LEAST_SCORE
        result.append(Boxes(box[kept], kind[kept].astype(np.int64) + 1, score[kept]))
    return result
