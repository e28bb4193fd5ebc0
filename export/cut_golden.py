"""Golden vectors of a head and its tail, and how closely another device must meet them.

When a pair is written, head + tail is compared with the unsplit network bit for bit. On the device the same vectors
say whether its engine computes the same: kernels of another processor may round a value the other way, so there an
integer may be one step off; engines other than the one that made the vectors get more room.
"""

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edge_runtime.manifest import Golden
from export.cut_check import Arrays
from export.cut_source import CutSource

_SAME_ENGINE_STEPS = 1.0
_OTHER_ENGINE_STEPS = 8.0  # rounding differs in every layer; wrong weights or layouts are off by far more
_RELATIVE = 2e-2  # of the largest output, where nothing better is known


@dataclass(frozen=True)
class GoldenRule:
    """How outputs are compared, and on what the vectors were made. A null tolerance follows the outputs' size."""

    compare: Literal["exact", "absolute", "argmax"]
    tolerance: float | None
    produced_on: str


@dataclass(frozen=True)
class GoldenSet:
    """Vectors for a manifest, and the content of their files."""

    vectors: tuple[Golden, ...]
    files: dict[str, bytes]


def latent_rule(source: CutSource) -> GoldenRule:
    """For the crossing tensors of a head: integers, within steps."""
    same = source.engine.name in ("onnxruntime", "litert")
    return GoldenRule("absolute", _SAME_ENGINE_STEPS if same else _OTHER_ENGINE_STEPS, _produced_on(source))


def output_rule(source: CutSource) -> GoldenRule:
    """For the outputs of a tail: as the whole network's own vectors are compared, where it has any."""
    golden = source.artefact.manifest.golden if source.artefact else ()
    if golden:
        return GoldenRule(golden[0].compare, golden[0].tolerance, _produced_on(source))
    integers = all(spec.dtype in ("uint8", "int8", "int16") for spec in source.outputs)
    return GoldenRule("absolute", _SAME_ENGINE_STEPS if integers else None, _produced_on(source))


def make_golden(pairs: Sequence[tuple[Arrays, Arrays]], rule: GoldenRule) -> GoldenSet:
    """Write (inputs, outputs) down: raw little-endian values, one file for each tensor."""
    files: dict[str, bytes] = {}
    vectors = []
    for number, (given, wanted) in enumerate(pairs):
        names: dict[str, list[str]] = {"input": [], "expected": []}
        for kind, arrays in (("input", given), ("expected", wanted)):
            for index, array in enumerate(arrays):
                path = f"golden/{number}-{kind}-{index}.bin"
                files[path] = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
                names[kind].append(path)
        tolerance = rule.tolerance
        if tolerance is None:
            tolerance = _RELATIVE * max(float(np.abs(array).max(initial=0.0)) for array in wanted)
        vectors.append(
            Golden(
                inputs=tuple(names["input"]),
                expected=tuple(names["expected"]),
                compare=rule.compare,
                tolerance=tolerance,
                produced_on=rule.produced_on,
            )
        )
    return GoldenSet(tuple(vectors), files)


def _produced_on(source: CutSource) -> str:
    return f"{source.checked_on} {platform.machine()}"
