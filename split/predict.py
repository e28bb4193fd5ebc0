"""Latency of a network on a board that did not run it: a roofline per kernel class, with intervals from left-out networks.

A calibration holds for one board, engine, version, optimisation level, number of threads, power mode and precision,
like the profiles that it was fitted on.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np

from device_profiles.measurement import EngineSettings, Profile, ProfileMismatchError, check_profile
from split.predict_memory import MemoryModel
from split.roofline import MIN_SAMPLES, PredictError, Roofline, Sample, choose_overlap, fit_roofline

CALIBRATION_SCHEMA = 1
LEVEL = 0.9  # of the intervals
MIN_NETWORKS = 4  # of which each is left out once
Origin = Literal["measured", "datasheet", "derived"]


class Interval(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Factors on a prediction between which 90 % of left-out measurements lay."""

    low: float
    high: float


class KernelClass(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One class of kernels. `mape` is over kernels of left-out networks, null where nothing was measured."""

    kind: str
    roofline: Roofline
    interval: Interval
    samples: int = 0
    mape: float | None = None
    within_10: float | None = None  # share of left-out kernels predicted within 10 %


class Calibration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What predicts a board. `whole` is the factor from a sum of kernels to a whole network, `interval` its spread."""

    schema: int = CALIBRATION_SCHEMA
    board: str
    precision: str
    engine: EngineSettings | None  # null: from a datasheet, of no engine in particular
    threads: int
    origin: Origin
    classes: tuple[KernelClass, ...]
    other: KernelClass  # for classes that were not measured
    whole: float = 1.0
    interval: Interval
    power_mode: str | None = None
    remarks: tuple[str, ...] = ()
    memory: MemoryModel | None = None  # null: not measured, or too few networks

    def class_of(self, kind: str) -> KernelClass:
        """The class of that name, or the one for all others."""
        return next((one for one in self.classes if one.kind == kind), self.other)


@dataclass(frozen=True)
class Work:
    """One kernel to predict."""

    name: str
    kind: str
    macs: int
    bytes: int


@dataclass(frozen=True)
class Predicted:
    """Time in ms with its 90 % interval; `measured_class` false: the class was not measured, only its bytes count."""

    name: str
    ms: float
    low_ms: float
    high_ms: float
    bound: str
    measured_class: bool = True


@dataclass(frozen=True)
class Prediction:
    """A whole network. The interval is that of whole left-out networks, not the sum of the kernels' intervals."""

    kernels: tuple[Predicted, ...]
    ms: float
    low_ms: float
    high_ms: float
    origin: Origin


def samples_from(profiles: Sequence[Profile]) -> tuple[list[Sample], dict[str, float]]:
    """Kernels of chain networks, and for each network its whole median, ms.

    Raises:
        ProfileMismatchError: Profiles of different settings.
        PredictError: Profiles in instructions, or the same network twice.
        ProfileError: As `check_profile`.
    """
    samples: list[Sample] = []
    wholes: dict[str, float] = {}
    for profile in profiles:
        check_profile(profile)
        first = profiles[0]
        settings = (profile.board, profile.engine, profile.power_mode, profile.precision)
        if settings != (first.board, first.engine, first.power_mode, first.precision):
            raise ProfileMismatchError(
                f"Wanted networks measured under the same settings, found {settings} beside those of {first.model}."
            )
        if profile.unit != "ms" or profile.model in wholes:
            raise PredictError(f"Wanted each network once and in ms, found {profile.model} in {profile.unit}.")
        wholes[profile.model] = (profile.whole_cpu or profile.whole).p50
        samples += [
            Sample(kernel.kind, kernel.macs, kernel.bytes, kernel.latency.p50, profile.model)
            for kernel in profile.kernels
            if kernel.bytes > 0
        ]
    return samples, wholes


def calibrate(
    samples: Sequence[Sample], *, board: str, precision: str, engine: EngineSettings,
    wholes: Mapping[str, float] | None = None, power_mode: str | None = None,
) -> Calibration:  # fmt: skip
    """Fit every class, and find intervals by leaving one network out at a time.

    Args:
        samples: Kernels of at least `MIN_NETWORKS` networks (`group`).
        board: Its id.
        precision: fp32, fp16 or int8.
        engine: Under which the samples were measured.
        wholes: Network -> whole latency in ms; null: the sum of its kernels.
        power_mode: Of the board while measuring.

    Raises:
        PredictError: Fewer networks, or too few kernels of every class.
    """
    groups = sorted({sample.group for sample in samples})
    if len(groups) < MIN_NETWORKS:
        raise PredictError(
            f"Wanted kernels of at least {MIN_NETWORKS} networks, found {len(groups)}. Measure more chains."
        )
    totals = {group: math.fsum(s.ms for s in samples if s.group == group) for group in groups}
    totals |= {group: ms for group, ms in (wholes or {}).items() if group in totals}
    overlaps = {kind: choose_overlap(each) for kind, each in _by_kind(samples).items()}
    ratios: dict[str, list[float]] = {}
    whole_ratios = []
    for group in groups:
        fitted, other = _fit_classes([sample for sample in samples if sample.group != group], overlaps)
        predicted = 0.0
        for sample in (one for one in samples if one.group == group):
            ms = fitted.get(sample.kind, other).ms(sample.macs, sample.bytes)
            predicted += ms
            ratios.setdefault(sample.kind, []).append(sample.ms / ms)
        whole_ratios.append(totals[group] / predicted)
    fitted, other = _fit_classes(samples, overlaps)
    everything = [ratio for each in ratios.values() for ratio in each]
    whole = float(np.median(whole_ratios))
    return Calibration(
        board=board,
        precision=precision,
        engine=engine,
        threads=engine.threads,
        origin="measured",
        classes=tuple(_class(kind, fitted[kind], ratios[kind]) for kind in sorted(fitted)),
        other=_class("other", other, everything),
        whole=whole,
        interval=_interval([ratio / whole for ratio in whole_ratios]),
        power_mode=power_mode,
    )


def predict(calibration: Calibration, work: Sequence[Work], *, engine: EngineSettings | None = None) -> Prediction:
    """Predict a network.

    Args:
        calibration: Of the board.
        work: Kernels, fused as the engine fuses them.
        engine: What it will run on; checked against the calibration where that has an engine.

    Raises:
        ProfileMismatchError: Another engine, version, optimisation level or number of threads.
        PredictError: No kernels, or negative work.
    """
    if engine is not None and calibration.engine is not None and engine != calibration.engine:
        raise ProfileMismatchError(f"Wanted a calibration of {engine}, found {calibration.engine}. Calibrate under it.")
    if not work or any(one.macs < 0 or one.bytes < 0 for one in work):
        raise PredictError("Wanted kernels with MACs and bytes >= 0, found none or a negative one.")
    kernels = []
    for one in work:
        kind = calibration.class_of(one.kind)
        ms = kind.roofline.ms(one.macs, one.bytes)
        bound = kind.roofline.bound(one.macs, one.bytes)
        known = kind is not calibration.other
        kernels.append(Predicted(one.name, ms, ms * kind.interval.low, ms * kind.interval.high, bound, known))
    total = calibration.whole * math.fsum(kernel.ms for kernel in kernels)
    spread = calibration.interval
    return Prediction(tuple(kernels), total, total * spread.low, total * spread.high, calibration.origin)


def dump_calibration(calibration: Calibration) -> bytes:
    """JSON with sorted keys."""
    return msgspec.json.format(msgspec.json.encode(calibration, order="sorted"), indent=1) + b"\n"


def parse_calibration(data: bytes) -> Calibration:
    """Decode a calibration.

    Raises:
        PredictError: Not JSON, an unknown field, another schema, or constants out of range.
    """
    try:
        calibration = msgspec.json.decode(data, type=Calibration)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PredictError(
            f"Wanted the fields of a calibration, found: {error}. Run `headtail calibrate` again."
        ) from error
    if calibration.schema != CALIBRATION_SCHEMA:
        raise PredictError(f"Wanted calibration schema {CALIBRATION_SCHEMA}, found {calibration.schema}.")
    for one in (*calibration.classes, calibration.other):
        peaks = [peak for peak in (one.roofline.macs_per_ms, one.roofline.bytes_per_ms) if peak is not None]
        if not all(math.isfinite(peak) and peak > 0 for peak in peaks) or not 0 <= one.roofline.overhead_ms < math.inf:
            raise PredictError(f"Wanted positive finite constants of class {one.kind!r}, found {one.roofline}.")
    return calibration


def _by_kind(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    """Classes with enough kernels."""
    found: dict[str, list[Sample]] = {}
    for sample in samples:
        found.setdefault(sample.kind, []).append(sample)
    return {kind: each for kind, each in found.items() if len(each) >= MIN_SAMPLES}


def _fit_classes(samples: Sequence[Sample], overlaps: Mapping[str, bool]) -> tuple[dict[str, Roofline], Roofline]:
    by_kind = _by_kind(samples)
    fitted = {kind: fit_roofline(each, overlapped=overlaps[kind]) for kind, each in by_kind.items()}
    if not fitted:
        raise PredictError(f"Wanted a class with {MIN_SAMPLES} kernels, found none.")
    rates = [one.bytes_per_ms for one in fitted.values() if one.bytes_per_ms is not None]
    overhead = float(np.median([one.overhead_ms for one in fitted.values()]))
    return fitted, Roofline(macs_per_ms=None, bytes_per_ms=float(np.median(rates)), overhead_ms=overhead)


def _class(kind: str, roofline: Roofline, ratios: Sequence[float]) -> KernelClass:
    errors = [abs(1 / ratio - 1) for ratio in ratios]
    return KernelClass(
        kind=kind,
        roofline=roofline,
        interval=_interval(ratios),
        samples=len(ratios),
        mape=float(np.mean(errors)),
        within_10=float(np.mean([error <= 0.1 for error in errors])),
    )


def _interval(ratios: Sequence[float]) -> Interval:
    """From the order statistics: with few ratios, the extreme ones."""
    low, high = np.quantile(ratios, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="inverted_cdf")
    return Interval(low=float(min(low, 1.0)), high=float(max(high, 1.0)))
