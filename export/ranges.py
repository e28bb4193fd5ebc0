"""Watch a float ONNX network on calibration inputs, and choose the range of each activation that rounds best.

One pass gives, for every float tensor, its extremes, the mean of each channel (for `bias_correction`) and a random
subset of its values. The range then is the one whose 8-bit grid has the least mean square error on that subset:
a few outliers may be clipped where that makes the steps of all other values finer.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime

from export.onnx_model import parse

VALUES_PER_SAMPLE = 1000  # kept of each tensor, of each sample
_VALUES_SEARCHED = 20_000
_SHRINK = np.linspace(1.0, 0.4, 25)  # of each end of the range, towards zero
_STEPS = 255  # of an 8-bit grid


@dataclass
class Observed:
    """One tensor over all samples."""

    low: float = np.inf
    high: float = -np.inf
    mean: np.ndarray | float = 0.0  # of each channel (axis 1)
    values: list[np.ndarray] = field(default_factory=list)


def observe(
    prepared: bytes, names: Sequence[str], samples: Iterable[list[np.ndarray]], *, seed: int = 0
) -> dict[str, Observed]:
    """Run the samples through the network and note every float tensor, inputs included.

    Args:
        prepared: The float model that will be quantised.
        names: Of the inputs.
        samples: Calibration inputs; read once.
        seed: Of the choice of values.
    """
    session = _open_with_all_outputs(parse(prepared))
    wanted = [value.name for value in session.get_outputs() if value.type == "tensor(float)"]
    seen = {name: Observed() for name in (*names, *wanted)}
    generator = np.random.default_rng(seed)
    count = 0
    for arrays in samples:
        found = dict(zip(wanted, session.run(wanted, dict(zip(names, arrays, strict=True))), strict=True))
        found.update(zip(names, arrays, strict=True))
        for name, array in found.items():
            _note(seen[name], array, generator)
        count += 1
    for one in seen.values():
        one.mean = one.mean / max(count, 1)
    return seen


def best_range(observed: Observed, *, symmetric: bool) -> tuple[float, float]:
    """The range with the least mean square rounding error on an 8-bit grid; it contains zero.

    Args:
        observed: A tensor that was seen at least once.
        symmetric: Whether the range must be (-a, a), as TensorRT wants it.
    """
    low, high = min(observed.low, 0.0), max(observed.high, 0.0)
    values = np.concatenate(observed.values).astype(np.float32)
    values = values[:: max(1, len(values) // _VALUES_SEARCHED)]
    if symmetric:
        top = max(-low, high)
        scale = min((float(s) for s in _SHRINK), key=lambda s: _error(values, -s * top, s * top))
        return -scale * top, scale * top
    # One end at a time, twice: the ends hardly influence each other.
    ends = [1.0, 1.0]
    for end in (0, 1, 0, 1):
        if (low, high)[end] == 0.0:
            continue

        def error(shrink: float, end: int = end) -> float:
            tried = [shrink if end == 0 else ends[0], shrink if end == 1 else ends[1]]
            return _error(values, tried[0] * low, tried[1] * high)

        ends[end] = min((float(s) for s in _SHRINK), key=error)
    return ends[0] * low, ends[1] * high


def _error(values: np.ndarray, low: float, high: float) -> float:
    """Mean square error of rounding to an 8-bit grid over [low, high]."""
    step = (high - low) / _STEPS
    if step < np.finfo(np.float32).tiny:  # its reciprocal is not a float32
        return float(np.square(values).mean())
    zero = np.rint(-low / step)
    grid = np.clip(np.rint(values * np.float32(1.0 / step)) + np.float32(zero), 0, _STEPS)
    return float(np.square((grid - np.float32(zero)) * np.float32(step) - values).mean())


def _note(one: Observed, array: np.ndarray, generator: np.random.Generator) -> None:
    if not array.size or array.dtype != np.float32:
        return
    one.low, one.high = min(one.low, float(array.min())), max(one.high, float(array.max()))
    axes = tuple(axis for axis in range(array.ndim) if axis != 1)
    one.mean = one.mean + array.mean(axis=axes, dtype=np.float64)
    flat = array.reshape(-1)
    keep = flat if flat.size <= VALUES_PER_SAMPLE else flat[generator.integers(0, flat.size, VALUES_PER_SAMPLE)]
    one.values.append(keep.copy())


def _open_with_all_outputs(model: Any) -> Any:  # noqa: ANN401 - ModelProto in, InferenceSession out
    """A session that returns every tensor; without optimisation, because a fused operator does not make all of them."""
    known = {value.name for value in (*model.graph.input, *model.graph.output)}
    for node in model.graph.node:
        for name in node.output:
            if name and name not in known and node.op_type != "Constant":
                model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
                known.add(name)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
