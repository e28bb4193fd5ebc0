"""From a scene tail's outputs to its score: accuracy, mean IoU, mean average precision at an overlap of one half."""

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from edge_runtime.scene_maps import Boxes, read_boxes
from split.scene_metrics import Matches, count_pixels, match_boxes, mean_average_precision, mean_iou
from split.scene_tails import SceneTail, run_tail
from split.scenes import SceneSet

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
    size = scenes.images.shape[-1]
    boxes = [read_boxes(one[None], size) for one in found.float().cpu().numpy()]
    return match_boxes(boxes, wanted, len(scenes.classes))
