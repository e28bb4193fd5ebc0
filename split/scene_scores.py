"""From a scene tail's outputs to its score: accuracy, mean IoU, mean average precision at an overlap of one half."""

import numpy as np
import torch
from torch.nn import functional

from split.quality import accuracy
from split.scene_metrics import Boxes, mean_average_precision, mean_iou
from split.scene_tails import SceneTail, run_tail
from split.scenes import SceneSet

_MOST_BOXES = 12  # of a picture
_LEAST_SCORE = 0.02


def score_tail(tail: SceneTail, inputs: torch.Tensor, scenes: SceneSet) -> float:
    """The task's own measure, in [0, 1].

    Args:
        tail: Trained, on the inputs' device.
        inputs: As for `train_tail`.
        scenes: In the same order.
    """
    found = run_tail(tail, inputs)
    if tail.task == "classes":
        return accuracy(found.cpu().numpy(), scenes.labels.cpu().numpy())
    if tail.task == "masks":
        size = scenes.masks.shape[1:]
        ids = [functional.interpolate(one, size=size, mode="bilinear").argmax(1) for one in found.split(64)]
        return mean_iou(torch.cat(ids).cpu().numpy(), scenes.masks.cpu().numpy(), tail.classes + 1)
    wanted = [
        Boxes(box[kind > 0].numpy(), kind[kind > 0].numpy())
        for box, kind in zip(scenes.boxes.cpu(), scenes.kinds.cpu(), strict=True)
    ]
    return mean_average_precision(read_boxes(found, tail.classes, scenes.images.shape[-1]), wanted)


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
