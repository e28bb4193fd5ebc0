"""Entropy tables of a cut: counted on the integers that really cross, over calibration data."""

from collections.abc import Sequence

import numpy as np

from edge_runtime.entropy import CountOptions, TableSet, count_tables, join_tables
from edge_runtime.manifest import TensorSpec
from export.cut_check import Arrays, kept_inputs, open_runner
from export.cut_source import CutSource
from export.samples import SampleSet
from split.cuts import Cut, CutError

MOST_SAMPLES = 256
_CODED = ("int8", "uint8")


def count_latents(source: CutSource, cut: Cut, head: bytes, samples: SampleSet) -> TableSet:
    """Run the head over the samples and count what it sends: one table for each channel of each tensor.

    Args:
        source: The whole network, for names, engine and preprocessing.
        cut: Where it is cut.
        head: The head's model file.
        samples: Pictures or arrays; at most `MOST_SAMPLES` of them, evenly spaced, are used.

    Raises:
        CutError: A crossing tensor of another type than int8 or uint8.
        DataError: The samples do not fit the network.
    """
    other = [tensor for tensor in cut.tensors if tensor.dtype not in _CODED]
    if other:
        raise CutError(
            f"Wanted int8 or uint8 tensors for the entropy coder, found {other[0].dtype} at {other[0].name}. Use --codec raw."
        )
    latents = _run_head(source, cut, head, samples)
    sets = []
    for index, tensor in enumerate(cut.tensors):
        axis = 0 if source.kind == "onnx" else 1  # channels first in ONNX, last in LiteRT
        fill = tensor.quantisation.zero_point if tensor.quantisation else 0
        sets.append(count_tables([one[index] for one in latents], CountOptions(channel_axis=axis, fill=fill)))
    return sets[0] if len(sets) == 1 else join_tables(sets)


def _run_head(source: CutSource, cut: Cut, head: bytes, samples: SampleSet) -> list[Arrays]:
    keep = kept_inputs(source, cut)
    specs = [source.inputs[index] for index in keep]
    run = open_runner(source, head, [spec.engine_name for spec in specs], cut.names)
    preprocessing = source.artefact.manifest.preprocessing if source.artefact else None
    rows = samples.inputs(source.inputs, preprocessing, samples.picked(MOST_SAMPLES))
    return [run(_matched([row[index] for index in keep], specs)) for row in rows]


def _matched(arrays: Sequence[np.ndarray], specs: Sequence[TensorSpec]) -> Arrays:
    """Quantise real samples for inputs that hold integers."""
    return [_stored(array, spec) for array, spec in zip(arrays, specs, strict=True)]


def _stored(array: np.ndarray, spec: TensorSpec) -> np.ndarray:
    if array.dtype.name == spec.dtype or spec.quantisation is None:
        return array
    limits = np.iinfo(spec.dtype)
    steps = np.rint(array / np.float32(spec.quantisation.scale)) + spec.quantisation.zero_point
    stored: np.ndarray = np.clip(steps, limits.min, limits.max).astype(spec.dtype)
    return stored
