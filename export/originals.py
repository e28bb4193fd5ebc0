"""Labelled pictures at their own sizes, so that each artefact prepares them itself, as a device does."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from device_profiles.errors import EdgeError
from edge_runtime.manifest import Preprocessing
from edge_runtime.preprocess import ImageError, centre_crop
from export.labelled import open_labelled
from split.training_data import DataOptions, find_pictures

U8 = npt.NDArray[np.uint8]
_KEPT_BYTES = 4 << 30  # of cropped pictures in memory; more are cropped again each time


class OriginalsError(EdgeError):
    """A picture that the preprocessing of an artefact does not take."""


@dataclass
class OriginalPictures:
    """Pictures that are decoded when they are asked for; what one way of cropping leaves of them stays in memory.

    Attributes:
        decode: One function for each picture: uint8, RGB, (height, width, 3).
        names: Of the pictures, for messages.
        labels: int64, (n,).
        skipped: Names of pictures that could not be decoded.
    """

    decode: Sequence[Callable[[], U8]]
    names: Sequence[str]
    labels: torch.Tensor
    skipped: tuple[str, ...] = ()
    _crops: list[U8] = field(default_factory=list, repr=False)
    _cropped_for: Preprocessing | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    def crops(self, preprocessing: Preprocessing) -> Iterable[U8]:
        """Every picture resized and cropped, uint8 (crop height, crop width, 3), in order.

        Raises:
            OriginalsError: A picture is smaller than the crop, and is not to be resized.
        """
        if self._cropped_for is not None and _cuts_alike(self._cropped_for, preprocessing):
            return self._crops
        made = (self._crop(number, preprocessing) for number in range(len(self)))
        height, width = preprocessing.crop
        if 3 * height * width * len(self) > _KEPT_BYTES:
            return made
        self._cropped_for, self._crops = None, []  # frees the others first
        self._crops = list(made)
        self._cropped_for = preprocessing
        return self._crops

    def sha256(self) -> str:
        """Of all pixels, each picture channels first, and the class ids: that of a `PictureSet` with the same pictures."""
        digest = hashlib.sha256()
        for decode in self.decode:
            digest.update(np.ascontiguousarray(decode().transpose(2, 0, 1)).data)
        digest.update(self.labels.numpy().tobytes())
        return digest.hexdigest()

    def _crop(self, number: int, preprocessing: Preprocessing) -> U8:
        try:
            return np.ascontiguousarray(centre_crop(self.decode[number](), preprocessing))
        except ImageError as error:
            raise OriginalsError(
                f"{error} This is {self.names[number]}, which a device refuses, too. Export with --resize-short as it says, or leave it out."
            ) from error


def open_originals(source: str | Path, options: DataOptions, labels: tuple[str, ...] = ()) -> OriginalPictures:
    """Find labelled pictures, and decode each once to see whether it is damaged.

    Args:
        source: As in `split.training_data.open_pictures`; pictures of an array stay as they are.
        options: As there; the size is not used.
        labels: The network's class names, as in `export.labelled.open_labelled`.

    Raises:
        TrainingDataError: As `open_labelled`.
    """
    options = replace(options, size=1)
    checked = open_labelled(source, options, labels)
    found = find_pictures(str(source), options)
    names = found.names or tuple(f"number {number}" for number in range(len(found.pictures)))
    damaged = set(checked.skipped)
    kept = [number for number, name in enumerate(names) if name not in damaged]
    return OriginalPictures(
        [found.pictures[number] for number in kept],
        [f"{names[number]} of {found.source}" for number in kept],
        checked.labels,
        checked.skipped,
    )


def _cuts_alike(one: Preprocessing, other: Preprocessing) -> bool:
    """Whether both crop the same pixels; what is made of these does not matter here."""
    return (one.resize_short, one.crop, one.interpolation) == (other.resize_short, other.crop, other.interpolation)
