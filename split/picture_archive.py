"""Encoded pictures in an .npz: the files back to back in `data` (uint8), and where each begins and the last ends in `offset`."""

from collections.abc import Container
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from device_profiles.errors import EdgeError

KEYS = ("data", "offset")
LABEL_KEYS = ("label", "labels", "coarse_label")  # of the class ids beside them, the first that is there
MAX_PICTURES = 1_000_000
MAX_PICTURE_BYTES = 64 << 20


class PictureArchiveError(EdgeError):
    """The arrays hold no pictures."""


def label_key(names: Container[str]) -> str:
    """The key of the class ids; "" where there is none."""
    return next((one for one in LABEL_KEYS if one in names), "")


def picture_files(data: npt.NDArray[Any], offset: npt.NDArray[Any]) -> list[memoryview]:
    """The pictures' files, in order; nothing is copied.

    Raises:
        PictureArchiveError: Other dtypes or shapes, places outside of the data, too many pictures or too large ones.
    """
    if not (
        data.dtype == np.uint8
        and data.ndim == offset.ndim == 1
        and offset.dtype.kind in "iu"
        and 2 <= len(offset) <= MAX_PICTURES + 1
        and offset[0] >= 0
        and (offset[:-1] <= offset[1:]).all()
        and offset[-1] <= len(data)
        and (offset[1:] - offset[:-1]).max() <= MAX_PICTURE_BYTES
    ):
        raise PictureArchiveError(
            f"Wanted 1 to {MAX_PICTURES} pictures of at most {MAX_PICTURE_BYTES} B, uint8 `data` and rising whole numbers in `offset` "
            f"within it, found {data.dtype} {data.shape} and {offset.dtype} {offset.shape}."
        )
    whole = np.ascontiguousarray(data).data
    return [whole[start:stop] for start, stop in pairwise(offset.tolist())]
