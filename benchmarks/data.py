"""Third-party models and pictures that benchmarks read: found through HEADTAIL_DATA, checked against data.toml.

python -m benchmarks.data      checks every file
"""

import hashlib
import itertools
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np

from device_profiles.errors import EdgeError

CATALOGUE = Path(__file__).with_name("data.toml")
VARIABLE = "HEADTAIL_DATA"
SAMPLES = "data/imagenet-samples/images.npz"
CALIBRATION_STEP = 5  # every fifth picture calibrates, the others are evaluated
MAX_PICTURES = 100_000

Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]


class DataError(EdgeError):
    """A third-party file is missing, or is not the one that data.toml names."""


class DataFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file; `path` is relative to the folder that HEADTAIL_DATA names."""

    path: str
    origin: str  # where it lies in the source's repository
    bytes: int
    sha256: Sha256


class Source(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a group of files comes from."""

    name: str
    repository: str
    commit: str
    licence: str
    note: str
    files: tuple[DataFile, ...]


class Catalogue(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of data.toml."""

    sources: tuple[Source, ...]


@dataclass(frozen=True)
class Samples:
    """Encoded pictures with their ImageNet class ids."""

    pictures: tuple[bytes, ...]
    labels: np.ndarray  # int64, (pictures,)

    def calibration(self) -> list[int]:
        """Indices of the pictures that calibrate."""
        return list(range(0, len(self.pictures), CALIBRATION_STEP))

    def evaluation(self) -> list[int]:
        """Indices of the pictures that are evaluated: never one that calibrates."""
        return [index for index in range(len(self.pictures)) if index % CALIBRATION_STEP]


def read_catalogue(path: Path = CATALOGUE) -> Catalogue:
    """Read data.toml.

    Raises:
        DataError: An unknown or missing field.
    """
    try:
        return msgspec.toml.decode(path.read_bytes(), type=Catalogue)
    except msgspec.DecodeError as error:
        raise DataError(f"Wanted sources with files, found: {error}, in {path}.") from error


def data_folder() -> Path:
    """The folder that HEADTAIL_DATA names.

    Raises:
        DataError: Unset, or no folder.
    """
    value = os.environ.get(VARIABLE, "")
    if not value or not Path(value).is_dir():
        raise DataError(
            f"Wanted {VARIABLE} to name the folder of third-party files, found {value!r}. "
            f"Fetch what {CATALOGUE.name} lists and set {VARIABLE}."
        )
    return Path(value)


def data_path(relative: str) -> Path:
    """Where a listed file lies, after its size and hash were checked.

    Raises:
        DataError: Not listed, missing, or another file.
    """
    listed = {file.path: file for source in read_catalogue().sources for file in source.files}
    if relative not in listed:
        raise DataError(f"Wanted a file that {CATALOGUE.name} lists, found {relative!r}. Add its source and licence.")
    path = data_folder() / relative
    problem = check_file(path, listed[relative])
    if problem is not None:
        raise DataError(problem)
    return path


def check_file(path: Path, wanted: DataFile) -> str | None:
    """What is wrong with a file; null when it is the one that is listed."""
    if not path.is_file():
        return f"Wanted {wanted.path} in {VARIABLE}, found no such file."
    size = path.stat().st_size
    if size != wanted.bytes:
        return f"Wanted {wanted.bytes} B in {wanted.path}, found {size} B."
    with path.open("rb") as stream:
        digest = hashlib.sha256()
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    if digest.hexdigest() != wanted.sha256:
        return (
            f"Wanted sha256 {wanted.sha256[:16]}.. of {wanted.path}, found {digest.hexdigest()[:16]}... Fetch it again."
        )
    return None


def imagenet_samples() -> Samples:
    """The ImageNet sample pictures as JPEG files, one a class.

    Raises:
        DataError: As `data_path`.
    """
    with np.load(data_path(SAMPLES), allow_pickle=False) as content:
        data, offset, labels = content["data"], content["offset"], content["label"]
    if len(labels) + 1 != len(offset) or len(labels) > MAX_PICTURES:
        raise DataError(f"Wanted one more offset than labels in {SAMPLES}, found {len(offset)} and {len(labels)}.")
    pictures = tuple(data[start:end].tobytes() for start, end in itertools.pairwise(offset))
    return Samples(pictures, labels.astype(np.int64))


def main() -> int:
    """Check every listed file; 1 when one is missing or differs."""
    try:
        folder = data_folder()
        catalogue = read_catalogue()
    except DataError as error:
        print(f"DataError: {error}", file=sys.stderr)
        return 1
    bad = 0
    for source in catalogue.sources:
        problems = [check_file(folder / file.path, file) for file in source.files]
        found = [problem for problem in problems if problem is not None]
        bad += len(found)
        print(f"{'ok' if not found else 'BAD':<4} {source.name}: {len(source.files)} files, licence {source.licence}")
        for problem in found:
            print(f"     {problem}", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
