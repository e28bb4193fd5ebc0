"""Scenes of one's own: pictures with masks, boxes and a class each, from one .npz."""

from pathlib import Path

import numpy as np
import torch

from split.scenes import SceneError, SceneSet

_ARRAYS = ("images", "masks", "boxes", "kinds", "labels")


def open_scenes(path: Path) -> SceneSet:
    """Read scenes.

    Args:
        path: An .npz of `images`, uint8 (n, side, side, 3); `masks`, (n, side, side), class ids of pixels with 0 for background; `boxes`,
            (n, objects, 4), left, top, right, bottom in pixels; `kinds`, (n, objects), their class ids from 1, and 0 where there
            is no object; `labels`, (n,), class ids from 0. `classes`, their names, may be there too.

    Raises:
        SceneError: No such file, an array that is missing or has another form, class ids or boxes out of range.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
    except (OSError, ValueError) as error:
        raise SceneError(f"Wanted scenes as .npz in {path}, found: {error}.") from error
    lacking = sorted(set(_ARRAYS) - set(found))
    if lacking:
        raise SceneError(f"Wanted the arrays {', '.join(_ARRAYS)} in {path}, found none named {', '.join(lacking)}.")
    _check_forms(found, path)
    names = (
        found["classes"].tolist() if "classes" in found else range(max(found["masks"].max(), found["labels"].max() + 1))
    )
    classes = tuple(str(one) for one in names)
    _check_values(found, len(classes), path)
    return SceneSet(
        torch.from_numpy(np.ascontiguousarray(found["images"].transpose(0, 3, 1, 2))),
        torch.from_numpy(found["masks"].astype(np.uint8)),
        torch.from_numpy(found["boxes"].astype(np.float32)),
        torch.from_numpy(found["kinds"].astype(np.int64)),
        torch.from_numpy(found["labels"].astype(np.int64)),
        classes,
    )


def _check_forms(found: dict[str, np.ndarray], path: Path) -> None:
    count, side = len(found["labels"]), found["images"].shape[1] if found["images"].ndim == 4 else 0
    objects = found["kinds"].shape[1] if found["kinds"].ndim == 2 else 0
    wanted = {
        "images": (count, side, side, 3),
        "masks": (count, side, side),
        "boxes": (count, objects, 4),
        "kinds": (count, objects),
        "labels": (count,),
    }
    wrong = [f"{name} {found[name].shape}" for name, shape in wanted.items() if found[name].shape != shape]
    if wrong or not count or found["images"].dtype != np.uint8:
        raise SceneError(
            f"Wanted square uint8 images (n, side, side, 3) and arrays that belong to them, as {wanted}, found "
            f"{', '.join(wrong) or found['images'].dtype} in {path}."
        )


def _check_values(found: dict[str, np.ndarray], classes: int, path: Path) -> None:
    for name, least, most in (("masks", 0, classes), ("kinds", 0, classes), ("labels", 0, classes - 1)):
        low, high = found[name].min(), found[name].max()
        if low < least or high > most:
            raise SceneError(f"Wanted class ids of {least} to {most} in {name} of {path}, found {low} to {high}.")
    boxes = found["boxes"][found["kinds"] > 0]
    side = found["images"].shape[1]
    bad = ~((boxes[:, :2] < boxes[:, 2:]).all(1) & (boxes >= 0).all(1) & (boxes <= side).all(1))
    if bad.any():
        raise SceneError(
            f"Wanted boxes inside pictures of {side} pixels, left before right, found {boxes[bad][0]} in {path}."
        )
