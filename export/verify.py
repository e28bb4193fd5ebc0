"""How much an artefact differs from its reference: SQNR, top-1 agreement, accuracy, and how fast it is here."""

import hashlib
import math
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edge_runtime.manifest import BenchRow, Quality, TensorSpec
from edge_runtime.session import Session
from export.errors import VerificationError
from export.routes import Route

Runner = Callable[[list[np.ndarray]], list[np.ndarray]]

FLOAT_SQNR_DB = {"fp32": 60.0, "fp16": 30.0}  # below it the conversion is wrong, not imprecise
EMPTY_SHA256 = hashlib.sha256().hexdigest()
_MAX_DB = 200.0  # equal outputs
_TIMED_RUNS = 30
_TIMED_SECONDS = 2.0


@dataclass(frozen=True)
class Comparison:
    """What two runners gave on the same inputs."""

    count: int
    sqnr_db: float
    agreement: float | None  # share of equal top-1 answers; null where the first output is not (1, classes)
    reference_accuracy: float | None
    accuracy: float | None


def compare(
    reference: Runner, candidate: Runner, samples: Iterable[list[np.ndarray]], labels: Sequence[int] | None = None
) -> Comparison:
    """Run both on every sample and compare all outputs.

    Args:
        reference: Takes float inputs in the source's own layout, gives float outputs.
        candidate: The same.
        samples: Batch-1 inputs; read once, one at a time.
        labels: Class ids in the samples' order.

    Raises:
        VerificationError: The outputs differ in number or shape, or are not finite.
    """
    signal = noise = 0.0
    answers: list[tuple[int, int]] = []
    count = 0
    for arrays in samples:
        wanted, found = reference(arrays), candidate(arrays)
        _check_outputs(wanted, found)
        for a, b in zip(wanted, found, strict=True):
            exact = a.astype(np.float64)
            signal += float(np.square(exact).sum())
            noise += float(np.square(exact - b).sum())
        if wanted[0].ndim == 2 and wanted[0].shape[0] == 1 and wanted[0].shape[1] > 1:
            answers.append((int(wanted[0].argmax()), int(found[0].argmax())))
        count += 1
    if not count:
        raise VerificationError("Wanted at least one sample to compare on, found none.")
    pairs = np.array(answers, np.int64).reshape(-1, 2)
    known = None if labels is None or len(pairs) != count else np.asarray(labels[:count])
    return Comparison(
        count=count,
        sqnr_db=sqnr_db(signal, noise),
        agreement=float((pairs[:, 0] == pairs[:, 1]).mean()) if len(pairs) else None,
        reference_accuracy=None if known is None else float((pairs[:, 0] == known).mean()),
        accuracy=None if known is None else float((pairs[:, 1] == known).mean()),
    )


def sqnr_db(signal: float, noise: float) -> float:
    """Signal to quantisation noise ratio, 10 log10(signal / noise) dB, at most 200; both are sums of squares."""
    if noise <= 0.0:
        return _MAX_DB
    return min(_MAX_DB, 10.0 * math.log10(max(signal, 1e-300) / noise))


def engine_runner(session: Session, source_inputs: Sequence[TensorSpec]) -> Runner:
    """Run a session on float inputs in the source's layout: transpose, quantise, run, dequantise.

    Args:
        session: Opened on the artefact.
        source_inputs: How the source itself takes its inputs, in the same order.
    """

    def run(arrays: list[np.ndarray]) -> list[np.ndarray]:
        stored = to_engine(arrays, source_inputs, session.inputs)
        return [dequantize(one, spec) for one, spec in zip(session.run(stored), session.outputs, strict=True)]

    return run


def to_engine(
    arrays: Sequence[np.ndarray], source: Sequence[TensorSpec], engine: Sequence[TensorSpec]
) -> list[np.ndarray]:
    """Float inputs in the source's layout as the engine takes them."""
    stored = []
    for array, wanted, spec in zip(arrays, source, engine, strict=True):
        moved = array.transpose(0, 2, 3, 1) if (wanted.layout, spec.layout) == ("nchw", "nhwc") else array
        stored.append(np.ascontiguousarray(quantize(moved, spec)))
    return stored


def quantize(array: np.ndarray, spec: TensorSpec) -> np.ndarray:
    """Real values as the spec stores them, rounding half to even."""
    if spec.quantisation is None:
        return array.astype(spec.dtype, copy=False)
    limits = np.iinfo(spec.dtype)
    steps = np.rint(array / np.float32(spec.quantisation.scale)) + spec.quantisation.zero_point
    stored: np.ndarray = np.clip(steps, limits.min, limits.max).astype(spec.dtype)
    return stored


def dequantize(array: np.ndarray, spec: TensorSpec) -> np.ndarray:
    """Stored values as real numbers, float32 where the spec has a scale."""
    if spec.quantisation is None:
        return array
    real: np.ndarray = (array.astype(np.float32) - spec.quantisation.zero_point) * np.float32(spec.quantisation.scale)
    return real


def to_quality(found: Comparison, *, data: str, data_sha256: str, worst: tuple[tuple[str, float], ...] = ()) -> Quality:
    """A comparison as the manifest states it."""
    measured = found.accuracy is not None and found.reference_accuracy is not None
    return Quality(
        metric="top-1" if measured else "sqnr",
        reference=found.reference_accuracy,
        this=found.accuracy,
        drop=(found.reference_accuracy or 0.0) - (found.accuracy or 0.0) if measured else None,
        agreement=found.agreement,
        sqnr_db=round(found.sqnr_db, 2),
        data=data,
        data_sha256=data_sha256,
        count=found.count,
        worst_layers=worst,
    )


def check_float(found: Comparison, *, precision: str, name: str) -> None:
    """A float conversion that is far off computes something else.

    Raises:
        VerificationError: The SQNR is below the limit of that precision.
    """
    limit = FLOAT_SQNR_DB.get(precision)
    if limit is not None and found.sqnr_db < limit:
        raise VerificationError(
            f"Wanted at least {limit:.0f} dB between {name} and its {precision} export, found {found.sqnr_db:.1f} dB on "
            f"{found.count} inputs. The converter changed what the network computes; please report it with the model."
        )


def time_both(reference: Session, candidate: Session, inputs: Sequence[list[np.ndarray]]) -> tuple[float, float]:
    """Median latency of two sessions in ms, run in turns so that other load hits both alike.

    Args:
        reference: Usually fp32.
        candidate: Usually int8.
        inputs: Stored inputs for each of the two.
    """
    sessions = (reference, candidate)
    for session, arrays in zip(sessions, inputs, strict=True):
        session.run(arrays)
    times: tuple[list[float], list[float]] = ([], [])
    stop = time.perf_counter() + _TIMED_SECONDS
    while len(times[0]) < 3 or (len(times[0]) < _TIMED_RUNS and time.perf_counter() < stop):
        for one, session, arrays in zip(times, sessions, inputs, strict=True):
            start = time.perf_counter()
            session.run(arrays)
            one.append((time.perf_counter() - start) * 1e3)
    return float(np.median(times[0])), float(np.median(times[1]))


def bench_rows(fp32_ms: float, this_ms: float, *, precision: str, threads: int) -> tuple[BenchRow, ...]:
    """The two medians as rows of the manifest."""
    device = f"{platform.machine()}, {threads} thread(s), where it was exported"
    return (
        BenchRow(what="fp32 latency p50", value=round(fp32_ms, 4), unit="ms", device=device),
        BenchRow(what=f"{precision} latency p50", value=round(this_ms, 4), unit="ms", device=device),
    )


def golden_rule(
    route: Route, outputs: Sequence[np.ndarray], step: float | None
) -> tuple[Literal["exact", "absolute", "argmax"], float]:
    """How closely another device must meet the golden outputs, and the tolerance.

    int8 on the engine that made the vectors may be off by one step (kernels round differently between versions of an
    engine); floats by the rounding of their precision, relative to the largest output. Where another engine had to
    make the vectors, only the answer must be equal: its int8 kernels round differently in every layer. A
    microcontroller runs the reference kernels, which made the vectors here: equal, bit for bit.
    """
    largest = max(float(np.abs(array).max(initial=0.0)) for array in outputs)
    if route.engine == "tflite-micro":
        return "exact", 0.0
    if route.engine == "tflite-runtime" or (route.engine == "tensorrt" and route.precision == "int8"):
        return "argmax", 0.0
    if route.precision == "int8":
        if np.issubdtype(outputs[0].dtype, np.integer):
            return "absolute", 1.0
        return "absolute", step * 1.001 if step is not None else largest * 2e-2
    if route.precision == "fp16" or route.engine == "tensorrt":
        return "absolute", max(largest * 2e-2, 1e-3)
    return "absolute", max(largest * 1e-4, 1e-5)


def _check_outputs(wanted: list[np.ndarray], found: list[np.ndarray]) -> None:
    shapes = [array.shape for array in wanted], [array.shape for array in found]
    if shapes[0] != shapes[1]:
        raise VerificationError(f"Wanted outputs of {shapes[0]}, found {shapes[1]}.")
    if not all(np.isfinite(array).all() for array in found):
        raise VerificationError(
            "Wanted finite outputs, found NaN or infinity. fp16 overflows above 65504: choose fp32 or int8."
        )
