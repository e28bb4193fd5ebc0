"""Pictures or arrays from a user's folder, as inputs of the model: for calibration, and for measuring."""

import hashlib
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from device_profiles.errors import EdgeError
from edge_runtime.manifest import Preprocessing, TensorSpec
from edge_runtime.preprocess import ImageError, decode_image, prepare
from split import picture_archive
from split.picture_archive import KEYS, LABEL_KEYS, PictureArchiveError, picture_files

PICTURES = (".jpg", ".jpeg", ".png", ".webp")
MAX_FILES = 100_000
MAX_PICTURE_BYTES = 64 << 20
MAX_ARRAY_BYTES = 2 << 30
LABELS = "labels"  # the key of the class ids in an .npz


class DataError(EdgeError):
    """A data folder cannot be used: empty, too large, or not what the model takes."""


@dataclass(frozen=True)
class SampleSet:
    """Samples on disk. Nothing is decoded before `inputs` is read.

    Attributes:
        source: The path as the user gave it.
        sha256: Of file names and contents, in order; 64 hex digits.
        files: Pictures, in order; empty for arrays.
        arrays: By key; empty for pictures.
        encoded: Pictures out of an .npz, in order; empty for files and arrays.
        folders: For each picture the name of the folder directly above it.
        labels: Class ids, int64; null where the data names none.
    """

    source: str
    sha256: str
    files: tuple[Path, ...] = ()
    arrays: dict[str, np.ndarray] | None = None
    folders: tuple[str, ...] = ()
    labels: np.ndarray | None = None
    encoded: tuple[memoryview, ...] = ()

    def __len__(self) -> int:
        if self.arrays:
            return len(next(iter(self.arrays.values())))
        return len(self.files) or len(self.encoded)

    def picked(self, most: int) -> list[int]:
        """Indices of at most `most` samples, evenly spaced."""
        count = len(self)
        if count <= most:
            return list(range(count))
        return [index * count // most for index in range(most)]

    def inputs(
        self, specs: Sequence[TensorSpec], preprocessing: Preprocessing | None, indices: Sequence[int]
    ) -> Iterator[list[np.ndarray]]:
        """The chosen samples as batch-1 inputs, one list of arrays at a time.

        Args:
            specs: The model's inputs as float tensors.
            preprocessing: Turns pictures into the input; needed for pictures only.
            indices: Which samples.

        Raises:
            DataError: The data does not fit the specs, or a picture cannot be decoded; the message names it.
        """
        if self.arrays is None:
            _check_pictures(specs, preprocessing, self.source)
            chosen = []
        else:
            chosen = _match_arrays(self.arrays, specs, preprocessing, self.source)
        for index in indices:
            try:
                if self.arrays is None:
                    made = [prepare(decode_image(self._file(index)), specs[0], _known(preprocessing))]
                else:
                    made = [
                        _array_input(one[index], spec, preprocessing) for one, spec in zip(chosen, specs, strict=True)
                    ]
            except ImageError as error:
                raise DataError(f"{error} It is {self._name(index)}: mend it or take it out.") from error
            yield made

    def _file(self, index: int) -> bytes:
        return bytes(self.encoded[index]) if self.encoded else _read_picture(self.files[index])

    def _name(self, index: int) -> str:
        return str(self.files[index]) if self.files else f"number {index} of {self.source}"


def open_samples(path: Path | str, *, labels: Sequence[str] = (), label_key: str = "") -> SampleSet:
    """Find the samples in a folder of pictures (any depth), an .npz, or a folder with one .npz.

    Class ids come from the folder directly above each picture: all integers, or all among the model's labels. In an
    .npz they are the array `labels`; the other arrays are named like the inputs, samples first. It may hold pictures instead, as for
    training: encoded ones (`split.picture_archive`), or `images`, uint8 (n, height, width, 3), with class ids under any of its keys.

    Args:
        path: The folder or file.
        labels: The model's class names.
        label_key: Array of an .npz that holds the class ids; empty for the usual ones.

    Raises:
        DataError: Nothing usable there, or too much.
    """
    source = str(path)
    path = Path(path)
    if path.is_dir():
        packed = sorted(path.glob("*.npz"))
        if len(packed) == 1:
            path = packed[0]
    if path.is_file() and path.suffix == ".npz":
        return _open_arrays(path, source, label_key)
    if not path.is_dir():
        raise DataError(f"Wanted a folder of pictures or an .npz file, found neither at {path}. Check the path.")
    files = [one for one in sorted(path.rglob("*")) if one.suffix.lower() in PICTURES and one.is_file()]
    if not files or len(files) > MAX_FILES:
        raise DataError(f"Wanted 1 to {MAX_FILES} pictures ({', '.join(PICTURES)}) in {path}, found {len(files)}.")
    digest = hashlib.sha256()
    for one in files:
        data = _read_picture(one)
        digest.update(f"{one.relative_to(path).as_posix()} {len(data)} ".encode())
        digest.update(data)
    folders = tuple(one.parent.name if one.parent != path else "" for one in files)
    return SampleSet(source, digest.hexdigest(), tuple(files), None, folders, _class_ids(folders, labels))


def labelled(samples: SampleSet, labels: Sequence[str]) -> SampleSet:
    """The same samples, with class ids by these class names where folders are named so."""
    if samples.labels is not None or not samples.folders:
        return samples
    return replace(samples, labels=_class_ids(samples.folders, labels))


def _open_arrays(path: Path, source: str, label_key: str) -> SampleSet:
    try:
        with zipfile.ZipFile(path) as bundle:
            size = sum(member.file_size for member in bundle.infolist())
        if size > MAX_ARRAY_BYTES:
            raise DataError(f"Wanted at most {MAX_ARRAY_BYTES} B of arrays, found {size} B in {path}.")
        with np.load(path, allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files}
    except (
        zipfile.BadZipFile,
        zlib.error,
        NotImplementedError,
        RuntimeError,
        ValueError,
        OSError,
        EOFError,
        MemoryError,
    ) as error:
        raise DataError(f"Wanted an .npz of plain arrays, found: {error}, in {path}.") from error
    encoded: tuple[memoryview, ...] = ()
    if set(KEYS) <= set(arrays) and arrays["data"].dtype == np.uint8 and arrays["data"].ndim == 1:
        try:
            encoded = tuple(picture_files(arrays["data"], arrays["offset"]))
        except PictureArchiveError as error:
            raise DataError(f"{error} Look at {path}.") from error
    if label_key and label_key not in arrays:
        raise DataError(
            f"Wanted class ids as {label_key} in {path}, found {sorted(arrays)}. Name one of them as --label-key."
        )
    key, names = _kept(arrays, label_key, encoded=bool(encoded))
    ids = arrays.pop(key, None)
    arrays = {name: arrays[name] for name in names}
    if ids is not None and (ids.dtype.kind not in "iu" or ids.ndim != 1):
        raise DataError(
            f"Wanted class ids as whole numbers, one a sample, found {key} as {ids.dtype} {ids.shape} in {path}."
        )
    samples = [encoded] if encoded else [array if array.ndim else () for array in arrays.values()]
    counts = {len(one) for one in (*samples, *([] if ids is None else [ids]))}
    if not arrays or len(counts) != 1 or 0 in counts:
        raise DataError(
            f"Wanted arrays with the same number of samples (first axis), found {sorted(counts)} in {path}."
        )
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape} ".encode())
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    if ids is not None:
        digest.update(ids.astype("<i8").tobytes())
    labels = None if ids is None else ids.astype(np.int64)
    return SampleSet(source, digest.hexdigest(), (), None if encoded else arrays, (), labels, encoded)


def _kept(arrays: dict[str, np.ndarray], wanted: str, *, encoded: bool) -> tuple[str, list[str]]:
    """The key of the class ids, and those of what they belong to; a training set holds names and other class ids besides."""
    key = wanted or picture_archive.label_key(arrays)
    if encoded:
        return key, list(KEYS)
    pictures = arrays.get("images")
    if pictures is None or pictures.dtype != np.uint8 or pictures.ndim != 4:
        return wanted or LABELS, [name for name in arrays if name not in (wanted, LABELS)]
    if key not in ("", LABELS):
        return key, ["images"]
    return LABELS, [name for name, one in arrays.items() if name not in LABEL_KEYS and one.dtype.kind not in "US"]


def _class_ids(folders: tuple[str, ...], labels: Sequence[str]) -> np.ndarray | None:
    if all(name.isdecimal() for name in folders):
        return np.array([int(name) for name in folders], np.int64)
    by_name = {name: index for index, name in enumerate(labels)}
    if by_name and all(name in by_name for name in folders):
        return np.array([by_name[name] for name in folders], np.int64)
    return None


def _match_arrays(
    arrays: dict[str, np.ndarray], specs: Sequence[TensorSpec], preprocessing: Preprocessing | None, source: str
) -> list[np.ndarray]:
    """The array of each input: by name, or the only one for the only input."""
    if len(specs) == 1 and len(arrays) == 1:
        chosen = list(arrays.values())
    else:
        missing = [spec.name for spec in specs if spec.name not in arrays]
        if missing:
            raise DataError(f"Wanted the arrays {[spec.name for spec in specs]}, found {sorted(arrays)} in {source}.")
        chosen = [arrays[spec.name] for spec in specs]
    for array, spec in zip(chosen, specs, strict=True):
        is_pictures = array.dtype == np.uint8 and preprocessing is not None and array.ndim == 4
        if spec.shape[0] != 1 or (not is_pictures and array.shape[1:] != spec.shape[1:]):
            raise DataError(
                f"Wanted samples of {spec.shape[1:]} for {spec.name} (batch 1), found {array.dtype} {array.shape[1:]} "
                f"(batch {spec.shape[0]}) in {source}."
            )
    return chosen


def _array_input(sample: np.ndarray, spec: TensorSpec, preprocessing: Preprocessing | None) -> np.ndarray:
    if sample.dtype == np.uint8 and preprocessing is not None and sample.ndim == 3:
        return prepare(sample, spec, preprocessing)
    return np.ascontiguousarray(sample[np.newaxis].astype(spec.dtype))


def _check_pictures(specs: Sequence[TensorSpec], preprocessing: Preprocessing | None, source: str) -> None:
    if preprocessing is None or len(specs) != 1:
        raise DataError(
            f"Wanted to know how the pictures in {source} become the input ({', '.join(s.name for s in specs)}), found no "
            "preprocessing. Return (module, example, Preprocessing), export with --crop, --mean and --std, or give an .npz of arrays."
        )


def _known(preprocessing: Preprocessing | None) -> Preprocessing:
    assert preprocessing is not None  # `_check_pictures` has checked it
    return preprocessing


def _read_picture(path: Path) -> bytes:
    size = path.stat().st_size
    if size > MAX_PICTURE_BYTES:
        raise DataError(f"Wanted pictures of at most {MAX_PICTURE_BYTES} B, found {size} B in {path}.")
    return path.read_bytes()
