"""Energy out of power samples: integration, idle subtracted, dropped samples counted; and figures that a user states."""

import csv
import itertools
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from device_profiles.errors import EdgeError
from device_profiles.measurement import EnergyUse

MAX_DROPPED = 0.2  # share of missing samples above which there is no figure
MAX_CSV_BYTES = 1 << 28
_GAP = 1.75  # periods between two samples above which some are missing


class EnergyError(EdgeError):
    """Power samples give no energy: too few, too many missing, or not readable."""


@dataclass(frozen=True)
class Sample:
    """Power at one instant."""

    time_s: float  # of any clock, the same for all samples
    watts: float


@dataclass(frozen=True)
class Integral:
    """Energy over a window."""

    joules: float
    seconds: float
    samples: int
    dropped: int

    @property
    def watts(self) -> float:
        """Mean power."""
        return self.joules / self.seconds


def integrate(samples: Sequence[Sample], begin_s: float, end_s: float) -> Integral:
    """Energy between two instants, by trapezoids; across gaps the power is taken to change linearly.

    Args:
        samples: In order of time. Before the first and after the last one power is taken as theirs.
        begin_s: Start of the window, on the samples' clock.
        end_s: End of the window.

    Raises:
        EnergyError: Fewer than two samples in the window, values that are not finite, or more than `MAX_DROPPED` missing.
    """
    inside = [one for one in samples if begin_s <= one.time_s <= end_s]
    if end_s <= begin_s or len(inside) < 2:
        raise EnergyError(
            f"Wanted two or more power samples in {end_s - begin_s:.3g} s, found {len(inside)}. Measure longer."
        )
    if not all(math.isfinite(one.watts) for one in inside):
        raise EnergyError("Wanted finite power samples, found one that is not. Check the sensor.")
    dropped = count_dropped([one.time_s for one in inside], begin_s, end_s)
    if dropped > MAX_DROPPED * (dropped + len(inside)):
        raise EnergyError(
            f"Wanted at most {MAX_DROPPED:.0%} of the power samples missing, found {dropped} missing and {len(inside)} there. "
            "Sample more slowly or free the processor."
        )
    times = [one.time_s for one in samples]
    points = [Sample(begin_s, _at(samples, times, begin_s)), *inside, Sample(end_s, _at(samples, times, end_s))]
    joules = math.fsum((b.time_s - a.time_s) * (a.watts + b.watts) / 2 for a, b in itertools.pairwise(points))
    return Integral(joules, end_s - begin_s, len(inside), dropped)


def count_dropped(times: Sequence[float], begin_s: float, end_s: float) -> int:
    """How many samples are missing: gaps of more than 1.75 median periods, also at the window's edges."""
    gaps = [b - a for a, b in itertools.pairwise(times)]
    period = statistics.median(gaps)
    if period <= 0:
        return 0
    inner = sum(round(gap / period) - 1 for gap in gaps if gap > _GAP * period)
    edges = sum(int(gap / period) for gap in (times[0] - begin_s, end_s - times[-1]) if gap > _GAP * period)
    return inner + edges


def _at(samples: Sequence[Sample], times: Sequence[float], when: float) -> float:
    """Power at an instant, linear between its neighbours."""
    after = next((index for index, time in enumerate(times) if time >= when), None)
    if after is None:
        return samples[-1].watts
    if after == 0:
        return samples[0].watts
    a, b = samples[after - 1], samples[after]
    share = (when - a.time_s) / (b.time_s - a.time_s) if b.time_s > a.time_s else 0.0
    return a.watts + share * (b.watts - a.watts)


def measured_energy(provider: str, idle: Integral, active: Integral, runs: int) -> EnergyUse:
    """Energy of one run above idle: (active energy - idle power x active time) / runs, never below zero."""
    joules = active.joules - idle.watts * active.seconds
    return EnergyUse(
        provider=provider,
        origin="measured",
        idle_w=max(0.0, idle.watts),
        active_w=max(0.0, active.watts),
        mj_per_run=max(0.0, 1000 * joules / max(1, runs)),
        samples=active.samples,
        dropped=active.dropped,
    )


def stated_energy(text: str, run_ms: float | None) -> EnergyUse:
    """What a user states: `idle=2.7,active=4.1,tx=5.0`, in watts; `tx` may be missing.

    Raises:
        EnergyError: Another key, a missing one, or a value that is not a power.
    """
    values: dict[str, float] = {}
    for part in text.split(","):
        key, _, number = part.partition("=")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if key not in ("idle", "active", "tx") or key in values or not (math.isfinite(value) and 0 <= value < 1e4):
            raise EnergyError(f"Wanted idle=W,active=W[,tx=W] in watts, found {part!r} in {text!r}.")
        values[key] = value
    if "idle" not in values or values.get("active", -1.0) < values["idle"]:
        raise EnergyError(f"Wanted idle=W,active=W[,tx=W] with active >= idle, found {text!r}.")
    above = values["active"] - values["idle"]
    return EnergyUse(
        provider="stated",
        origin="stated",
        idle_w=values["idle"],
        active_w=values["active"],
        tx_w=values.get("tx"),
        mj_per_run=None if run_ms is None else above * run_ms,
    )


def read_meter_csv(path: Path) -> list[Sample]:
    """Samples of a USB power meter: a header, a time column and power, or voltage and current.

    Columns are found by the start of their names, whatever the case: `time` or `timestamp` (Unix seconds, or ISO 8601),
    `power` or `watt` (W), `voltage` or `volt` (V), `current` or `amp` (A). A unit in milli- is taken from the name
    (`power_mw`, `current (mA)`). Lines that do not parse are left out and count as dropped samples.

    Raises:
        EnergyError: Too large, or columns that are not there.
    """
    if path.stat().st_size > MAX_CSV_BYTES:
        raise EnergyError(f"Wanted a log of at most {MAX_CSV_BYTES} B, found more in {path}.")
    with path.open(newline="", encoding="utf-8", errors="replace") as stream:
        return parse_meter(stream, str(path))


def parse_meter(lines: Iterable[str], where: str) -> list[Sample]:
    """Samples out of a meter's lines; see `read_meter_csv`."""
    rows = csv.reader(lines)
    header = [name.strip().lower() for name in next(rows, [])]
    when = _column(header, "time", "timestamp")
    power = _column(header, "power", "watt")
    volts, amps = _column(header, "volt"), _column(header, "current", "amp")
    if when is None or (power is None and (volts is None or amps is None)):
        raise EnergyError(f"Wanted columns time and power, or voltage and current, found {header} in {where}.")
    samples = []
    for row in rows:
        try:
            if power is not None:
                watts = float(row[power]) * _unit(header[power])
            elif volts is not None and amps is not None:
                watts = float(row[volts]) * _unit(header[volts]) * float(row[amps]) * _unit(header[amps])
            sample = Sample(_time(row[when]), watts)
        except (ValueError, IndexError):
            continue
        if math.isfinite(sample.watts) and math.isfinite(sample.time_s):
            samples.append(sample)
    return sorted(samples, key=lambda one: one.time_s)


def _column(header: Sequence[str], *starts: str) -> int | None:
    return next((index for index, name in enumerate(header) if name.startswith(starts)), None)


def _unit(name: str) -> float:
    return (
        1e-3
        if name.replace("(", "_").replace("[", "_").replace(" ", "_").rstrip(")]").endswith(("_mw", "_ma", "_mv"))
        else 1.0
    )


def _time(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return datetime.fromisoformat(text.strip().replace("Z", "+00:00")).timestamp()
