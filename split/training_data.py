"""Labelled pictures for training: folders by class, an .npz, or a function of one's own; decoded once, checked once."""

import importlib
import io
import logging
import re
import sys
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from device_profiles.errors import EdgeError
from edge_runtime.preprocess import rgb_pixels
from split.picture_archive import KEYS, LABEL_KEYS, PictureArchiveError, label_key, picture_files

logger = logging.getLogger(__name__)

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
MAX_PIXELS = 64 << 20  # of one encoded picture
_MAX_NAMED = 8

U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]
Decode = Callable[[], U8]  # one picture, (height, width, 3)


class TrainingDataError(EdgeError):
    """Data that nothing can be trained on: not there, not labelled, damaged, one class only."""


@dataclass(frozen=True)
class DataOptions:
    """How pictures become training data.

    Attributes:
        size: Height and width in pixels at which pictures are kept: the short side is resized to it, then the centre cut.
        label_key: Array of an .npz that holds the class ids; empty for the first of `LABEL_KEYS`.
        strict: A damaged picture is an error; otherwise it is skipped and counted.
        classes: Number of classes that the network has; 0 for as many as the labels show.
        max_bytes: That the decoded pictures may take in memory.
    """

    size: int
    label_key: str = ""
    strict: bool = False
    classes: int = 0
    max_bytes: int = 16 << 30


@dataclass(frozen=True)
class PictureSet:
    """Decoded pictures in memory.

    Attributes:
        images: uint8, (n, 3, size, size).
        labels: int64, (n,).
        classes: Names, one for each class id.
        skipped: Names of pictures that could not be decoded.
    """

    images: torch.Tensor
    labels: torch.Tensor
    classes: tuple[str, ...]
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def evenly(self, count: int) -> "PictureSet":
        """So many of them, at least one and at most all, evenly spaced."""
        count = max(1, min(count, len(self)))
        rows = torch.arange(count) * len(self) // count
        return replace(self, images=self.images[rows], labels=self.labels[rows])

    @staticmethod
    def of_arrays(images: U8, labels: npt.ArrayLike, *, classes: tuple[str, ...] = ()) -> "PictureSet":
        """From pictures of one size, uint8 (n, 3, size, size), and their class ids.

        Raises:
            TrainingDataError: Labels that do not belong to the pictures or classes.
        """
        ids = np.asarray(labels)
        _check_labels(ids, len(images), len(classes), "the arrays")
        names = classes or tuple(str(one) for one in range(int(ids.max()) + 1))
        return PictureSet(torch.from_numpy(images), torch.from_numpy(ids.astype(np.int64)), names)


def open_pictures(source: str | Path, options: DataOptions) -> PictureSet:
    """Read labelled pictures.

    Args:
        source: A folder with one folder of pictures for each class (the classes in alphabetical order); an .npz with
            encoded files (`data` uint8, `offset`) or pictures (`images` uint8, (n, height, width, 3)) and labels; or
            `module:function`, which returns a sequence of pictures (bytes or uint8 arrays) and their class ids.
        options: Size, labels, strictness.

    Raises:
        TrainingDataError: Nothing usable there; labels out of range; one class only; or (strict) a damaged picture.
    """
    raw = find_pictures(str(source), options)
    _check_labels(raw.labels, len(raw.pictures), options.classes or len(raw.classes), raw.source)
    needed = len(raw.pictures) * 3 * options.size**2
    if needed > options.max_bytes:
        raise TrainingDataError(
            f"Wanted at most {options.max_bytes} bytes of decoded pictures, found {needed} ({len(raw.pictures)} of {options.size} x "
            f"{options.size} in {raw.source}). Use a smaller size or fewer pictures."
        )
    images = np.empty((len(raw.pictures), 3, options.size, options.size), np.uint8)
    kept: list[int] = []
    skipped: list[str] = []
    for index, decode in enumerate(raw.pictures):
        try:
            images[len(kept)] = _fit(decode(), options.size)
            kept.append(index)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            name = raw.names[index] if raw.names else f"number {index}"
            if options.strict:
                raise TrainingDataError(
                    f"Wanted a picture, found {type(error).__name__}: {error} at {name} of {raw.source}. Remove it or drop --strict."
                ) from error
            skipped.append(name)
    if skipped:
        logger.warning(
            "Skipped %d of %d pictures that cannot be decoded: %s", len(skipped), len(raw.pictures), some(skipped)
        )
    labels = raw.labels[kept].astype(np.int64)
    if len(np.unique(labels)) < 2:
        raise TrainingDataError(
            f"Wanted readable pictures of at least 2 classes in {raw.source}, found {len(kept)} pictures of "
            f"{len(np.unique(labels))} ({len(skipped)} damaged). Give one folder for each class."
        )
    names = raw.classes or tuple(str(one) for one in range(options.classes or int(raw.labels.max()) + 1))
    return PictureSet(torch.from_numpy(images[: len(kept)]), torch.from_numpy(labels), names, tuple(skipped))


@dataclass(frozen=True)
class RawPictures:
    """Pictures that are not decoded yet: each function gives uint8 (height, width, 3); class ids, (n,); names may be missing."""

    source: str
    pictures: Sequence[Decode]
    labels: npt.NDArray[Any]
    classes: tuple[str, ...] = ()
    names: tuple[str, ...] = field(default=())


def find_pictures(source: str, options: DataOptions) -> RawPictures:
    """Labelled pictures that are not decoded yet.

    Args:
        source: As in `open_pictures`.
        options: As there.

    Raises:
        TrainingDataError: No such source, or labels that do not belong to its pictures.
    """
    if options.size < 1:
        raise TrainingDataError(f"Wanted a size of at least 1 pixel, found {options.size}.")
    path = Path(source)
    if path.is_dir():
        return _folder(path)
    if path.suffix == ".npz" and path.is_file():
        return _archive(path, options.label_key)
    if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", source):
        return _function(source)
    raise TrainingDataError(
        f"Wanted a folder with one folder for each class, an .npz file or module:function, found none at {source!r}. Check the path."
    )


def _folder(path: Path) -> RawPictures:
    classes = tuple(sorted(one.name for one in path.iterdir() if one.is_dir() and not one.name.startswith(".")))
    files = [
        (one, number)
        for number, name in enumerate(classes)
        for one in sorted((path / name).rglob("*"))
        if one.suffix.lower() in SUFFIXES and one.is_file()
    ]
    if not files:
        raise TrainingDataError(
            f"Wanted pictures ({', '.join(SUFFIXES)}) in one folder for each class below {path}, found folders "
            f"{list(classes[:_MAX_NAMED])} without any. Check the path."
        )
    pictures = [_decoder_of_file(one) for one, _ in files]
    names = tuple(one.relative_to(path).as_posix() for one, _ in files)
    return RawPictures(str(path), pictures, np.array([number for _, number in files]), classes, names)


def _archive(path: Path, wanted: str) -> RawPictures:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise TrainingDataError(f"Wanted an .npz without pickled objects, found {error} in {path}.") from error
    key = wanted or label_key(arrays)
    if key not in arrays or not (set(KEYS) <= set(arrays) or "images" in arrays):
        raise TrainingDataError(
            f"Wanted arrays `images`, or `data` and `offset`, and labels ({wanted or ', '.join(LABEL_KEYS)}) in {path}, "
            f"found {sorted(arrays)}. Name the labels with --label-key."
        )
    if "images" in arrays:
        images = arrays["images"]
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise TrainingDataError(
                f"Wanted `images` as uint8 (n, height, width, 3) in {path}, found {images.dtype} {images.shape}. Scale to 0 to 255, "
                "put the colours last, and repeat grey three times."
            )
        return RawPictures(str(path), [_decoder_of_array(one) for one in images], arrays[key])
    try:
        files = picture_files(*(arrays[one] for one in KEYS))
    except PictureArchiveError as error:
        raise TrainingDataError(f"{error} Look at {path}.") from error
    return RawPictures(str(path), [_decoder_of_bytes(one) for one in files], arrays[key])


def _function(source: str) -> RawPictures:
    module_name, name = source.split(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        function = getattr(importlib.import_module(module_name), name)
    except (ModuleNotFoundError, AttributeError) as error:
        raise TrainingDataError(f"Wanted the function {name!r} in module {module_name!r}, found {error}.") from error
    result = function()
    if not isinstance(result, tuple) or len(result) != 2 or len(result[0]) != len(result[1]):
        raise TrainingDataError(
            f"Wanted (pictures, labels) of one length from {source}, found {type(result).__name__}."
        )
    pictures = [_decoder_of_bytes(one) if isinstance(one, bytes) else _decoder_of_array(one) for one in result[0]]
    return RawPictures(source, pictures, np.asarray(result[1]))


def _decoder_of_file(path: Path) -> Decode:
    return lambda: _decode(path.read_bytes())


def _decoder_of_bytes(data: bytes | memoryview) -> Decode:
    return lambda: _decode(data)


def _decoder_of_array(array: npt.ArrayLike) -> Decode:
    def check() -> U8:
        values = np.asarray(array)
        if values.dtype != np.uint8 or values.ndim != 3 or values.shape[2] != 3:
            raise ValueError(f"wanted uint8 (height, width, 3), found {values.dtype} {values.shape}")
        return values

    return check


def _decode(data: bytes | memoryview) -> U8:
    with Image.open(io.BytesIO(data)) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels are more than {MAX_PIXELS}")
        return rgb_pixels(image)


def _fit(picture: U8, size: int) -> U8:
    """Short side to `size`, the centre, channels first."""
    height, width = picture.shape[:2]
    if min(height, width) != size:
        scale = size / min(height, width)
        shape = max(size, round(width * scale)), max(size, round(height * scale))
        picture = np.asarray(Image.fromarray(picture).resize(shape, Image.Resampling.BILINEAR))
    top, left = (picture.shape[0] - size) // 2, (picture.shape[1] - size) // 2
    cut: U8 = picture[top : top + size, left : left + size].transpose(2, 0, 1)
    return cut


def _check_labels(labels: npt.NDArray[Any], pictures: int, classes: int, source: str) -> None:
    if labels.shape != (pictures,) or not np.issubdtype(labels.dtype, np.integer) or not pictures:
        raise TrainingDataError(
            f"Wanted one integer class id for each of the {pictures} pictures of {source}, found {labels.dtype} "
            f"{labels.shape}."
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or (classes and high >= classes):
        raise TrainingDataError(
            f"Wanted class ids in 0 to {classes - 1 if classes else 'the number of classes'} in {source}, found {low} to {high}. "
            "Give the network's own classes, or a network with more."
        )


def some(names: Sequence[str]) -> str:
    """The first few of many names, for a message."""
    return ", ".join(names[:_MAX_NAMED]) + (f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else "")
