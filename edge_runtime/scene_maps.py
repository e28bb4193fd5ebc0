"""From the maps of a tail for masks or boxes to what they show: class ids of pixels, boxes with class and score."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]

MOST_BOXES = 12  # of a picture
LEAST_SCORE = 0.02


@dataclass(frozen=True)
class Boxes:
    """Boxes of one picture.

    Attributes:
        corners: (n, 4): left, top, right, bottom.
        kinds: (n,): class ids, from 1.
        scores: (n,), larger is surer; null for true boxes.
    """

    corners: npt.NDArray[np.floating]
    kinds: npt.NDArray[np.integer]
    scores: npt.NDArray[np.floating] | None = None


def read_mask(maps: F32, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Class id of each pixel.

    Args:
        maps: Logits of a tail for masks, (1, classes + 1, h, w); class 0 is the background.
        size: Height and width of the picture.

    Returns:
        (height, width).
    """
    rows, columns = (_between(side, wanted) for side, wanted in zip(maps.shape[2:], size, strict=True))
    large = np.einsum("ih,chw,jw->cij", rows, maps[0], columns, optimize=True)
    ids: npt.NDArray[np.uint8] = large.argmax(0).astype(np.uint8)
    return ids


def read_boxes(maps: F32, size: int, *, most: int = MOST_BOXES, least: float = LEAST_SCORE) -> Boxes:
    """Boxes at the peaks of the heat, surest first.

    Args:
        maps: Outputs of a tail for boxes, (1, classes + 4, h, w): logits of heat, then distances to left, top, right, bottom in
            shares of the picture.
        size: Of the square picture in pixels; boxes are in these.
        most: Boxes at most.
        least: Score that a box has at least.

    Source: Zhou et al. 2019, Objects as Points (arXiv:1904.07850), section 3.1; peaks are the largest of 3 x 3 places.
    """
    classes, (height, width) = maps.shape[1] - 4, maps.shape[2:]
    heat = 1 / (1 + np.exp(-maps[0, :classes].astype(np.float32)))
    padded = np.pad(heat, ((0, 0), (1, 1), (1, 1)), constant_values=-1)
    around = [padded[:, y : y + height, x : x + width] for y in range(3) for x in range(3)]
    peaks = np.where(np.max(around, axis=0) == heat, heat, 0).reshape(-1)
    places = np.argsort(-peaks, kind="stable")[:most]
    places = places[peaks[places] >= least]
    cells = places % (height * width)
    at = np.stack([(cells % width + 0.5) / width, (cells // width + 0.5) / height], -1)
    sides = maps[0, classes:].reshape(4, -1)[:, cells].T
    corners = np.concatenate([at - sides[:, :2], at + sides[:, 2:]], -1).clip(0, 1) * size
    return Boxes(corners, places // (height * width) + 1, peaks[places])


def _between(side: int, wanted: int) -> F32:
    """Linear interpolation from one length to another, (wanted, side); the middles of first and last place stay inside."""
    at = np.clip((np.arange(wanted) + 0.5) * side / wanted - 0.5, 0, side - 1)
    low = np.minimum(at.astype(np.int64), max(side - 2, 0))
    weights = np.zeros((wanted, side), np.float32)
    weights[np.arange(wanted), low] = 1 - (at - low)
    if side > 1:
        weights[np.arange(wanted), low + 1] = at - low
    return weights
