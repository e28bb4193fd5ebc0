"""The data that chooses int8 ranges: opened, counted, hashed, decoded once."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge_runtime.manifest import Calibration, Preprocessing, TensorSpec
from export.errors import CalibrationError
from export.samples import DataError, SampleSet, open_samples

MAX_SAMPLES = 512  # more do not move min-max ranges by much, and take time
MAX_BYTES = 2 << 30


@dataclass(frozen=True)
class CalibrationData:
    """Decoded calibration inputs in the source's own layout, and what the manifest says of them."""

    record: Calibration
    samples: tuple[list[np.ndarray], ...]


def open_calibration(path: Path | str | None, *, labels: Sequence[str] = ()) -> SampleSet:
    """Find the calibration data.

    Raises:
        CalibrationError: None given, or nothing usable there.
    """
    if path is None:
        raise CalibrationError(
            "Wanted calibration data for int8, found none. Pass --calibration DIR: 50 to 500 pictures like those that the "
            "device will see, or an .npz of input arrays."
        )
    try:
        return open_samples(path, labels=labels)
    except DataError as error:
        raise CalibrationError(f"Wanted calibration data. {error}") from error


def decode_calibration(
    samples: SampleSet, specs: Sequence[TensorSpec], preprocessing: Preprocessing | None, *, method: str
) -> CalibrationData:
    """Decode at most `MAX_SAMPLES` evenly spaced samples and hash the tensors.

    Args:
        samples: From `open_calibration`.
        specs: The model's float inputs in the source's own layout.
        preprocessing: For pictures.
        method: How the ranges will be chosen; goes into the record.

    Raises:
        CalibrationError: The data does not fit the model, holds a NaN or infinity, or needs too much memory.
    """
    indices = samples.picked(MAX_SAMPLES)
    size = len(indices) * sum(spec.nbytes for spec in specs)
    if size > MAX_BYTES:
        raise CalibrationError(
            f"Wanted calibration inputs of at most {MAX_BYTES} B together, found {size} B in {samples.source}. Give fewer samples."
        )
    try:
        decoded = tuple(samples.inputs(specs, preprocessing, indices))
    except DataError as error:
        raise CalibrationError(f"Wanted calibration data for this model. {error}") from error
    for index, arrays in zip(indices, decoded, strict=True):
        if not all(np.isfinite(array).all() for array in arrays):
            raise CalibrationError(
                f"Wanted finite numbers, found NaN or infinity in sample {index} of {samples.source}."
            )
    name = Path(samples.source).name  # a path would say where the user keeps things
    record = Calibration(method=method, source=name, count=len(decoded), sha256=tensors_sha256(decoded))
    return CalibrationData(record, decoded)


def tensors_sha256(samples: Iterable[list[np.ndarray]]) -> str:
    """sha256 over the raw tensors, in order; 64 hex digits."""
    digest = hashlib.sha256()
    for arrays in samples:
        for array in arrays:
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
