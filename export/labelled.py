"""Pictures with the class ids that a network means: by the names of its classes, where it has names."""

from dataclasses import replace
from pathlib import Path

import torch

from split.training_data import DataOptions, PictureSet, TrainingDataError, open_pictures

_NAMED = 8


def open_labelled(source: str | Path, options: DataOptions, labels: tuple[str, ...] = ()) -> PictureSet:
    """Read labelled pictures; folders that are called like the network's classes, or by numbers, give these ids.

    Args:
        source: As in `split.training_data.open_pictures`.
        options: `classes` is the number of the network's classes.
        labels: The network's class names, in the order of its outputs.

    Raises:
        TrainingDataError: As `open_pictures`, or folders that are none of the network's classes.
    """
    data = open_pictures(source, options)
    if not Path(source).is_dir():
        return data if not labels else replace(data, classes=labels)
    if all(name.isdigit() for name in data.classes):
        ids = [int(name) for name in data.classes]
        _check_ids(ids, options.classes, source)
    elif labels and set(data.classes) <= set(labels):
        ids = [labels.index(name) for name in data.classes]
    elif labels:
        other = [name for name in data.classes if name not in labels]
        raise TrainingDataError(
            f"Wanted folders named like the network's classes ({', '.join(labels[:_NAMED])}, ...) in {source}, found "
            f"{other[:_NAMED]}. Rename them."
        )
    else:
        ids = list(range(len(data.classes)))
    return replace(data, labels=torch.tensor(ids)[data.labels], classes=labels or data.classes)


def hold_out(data: PictureSet, every: int = 5) -> tuple[PictureSet, PictureSet]:
    """Training pictures, and every so many-th one of each class to measure on."""
    rank = torch.zeros(len(data), dtype=torch.int64)
    for one in data.labels.unique():
        where = torch.nonzero(data.labels == one).flatten()
        rank[where] = torch.arange(len(where))
    out = rank % every == every - 1
    return _part(data, ~out), _part(data, out)


def _part(data: PictureSet, rows: torch.Tensor) -> PictureSet:
    return replace(data, images=data.images[rows], labels=data.labels[rows])


def _check_ids(ids: list[int], classes: int, source: str | Path) -> None:
    if classes and max(ids) >= classes:
        raise TrainingDataError(
            f"Wanted class ids in 0 to {classes - 1} as folder names in {source}, found {max(ids)}. Give the network's own classes."
        )
