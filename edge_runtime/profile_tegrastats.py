"""NVIDIA's tegrastats: power rails out of its lines, on every Jetson family.

A rail is `NAME now/average` in milliwatts; the unit is written from JetPack 5 on, a third figure (the maximum) with some
releases, and a rail may read below zero. The total is `POM_5V_IN` (Nano), `VDD_IN` (TX2, Xavier NX, Orin Nano and NX) or
`VIN` (Thor); where none of them is listed (AGX Xavier, AGX Orin) the listed rails together are the module's power.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from edge_runtime.profile_energy import EnergyError, Sample

TOTALS = ("POM_5V_IN", "VDD_IN", "VIN")
_RAIL = re.compile(r"(?:^|\s)([A-Z][A-Z0-9_]*) (-?\d{1,7})(?:mW)?/-?\d{1,7}(?:mW)?(?:/-?\d{1,7}(?:mW)?)?(?=\s|$)")
_STAMP = re.compile(r"(\d\d)-(\d\d)-(\d{4}) (\d\d):(\d\d):(\d\d) ")
_TEMPERATURE = re.compile(r"(?:^|\s)([A-Za-z][A-Za-z0-9_]*)@(-?\d{1,3}(?:\.\d+)?)C")
_NOT_PROCESSOR = ("pmic", "tboard", "tdiode")  # PMIC says 100 whatever happens
MAX_LINE = 4096


@dataclass(frozen=True)
class Reading:
    """One line. Rails in watts, temperature of the hottest sensor of the processor."""

    rails: dict[str, float]
    stamp_s: float | None  # whole seconds, where the line begins with date and time
    temperature_c: float | None

    @property
    def total_w(self) -> float:
        """Power of the whole module."""
        for name in TOTALS:
            if name in self.rails:
                return self.rails[name]
        return sum(self.rails.values())


def parse_line(line: str) -> Reading | None:
    """Read one line; null where it holds no rail, as a line cut short does."""
    line = line[:MAX_LINE].strip()
    rails = {name: int(now) / 1000 for name, now in _RAIL.findall(line)}
    if not rails:
        return None
    stamp = _STAMP.match(line)
    seconds = None
    if stamp is not None:
        month, day, year, hour, minute, second = (int(part) for part in stamp.groups())
        try:
            seconds = datetime(year, month, day, hour, minute, second).timestamp()
        except ValueError:
            return None
    heat = [float(value) for name, value in _TEMPERATURE.findall(line) if not name.lower().startswith(_NOT_PROCESSOR)]
    return Reading(rails, seconds, max((one for one in heat if one > -40), default=None))


def read_log(lines: Iterable[str], *, interval_s: float) -> list[Sample]:
    """Samples of a recorded log, the first at 0 s.

    Lines carry whole seconds or no time at all, so that time is counted in intervals; where the written time runs ahead
    by a second plus an interval or more, or where a line is broken, samples are missing and time goes on without them.
    A line that lacks rails which the first one had is broken too.

    Args:
        lines: As tegrastats printed them.
        interval_s: What was given as `--interval`, in seconds.

    Raises:
        EnergyError: No line holds a rail.
    """
    samples: list[Sample] = []
    names: frozenset[str] | None = None
    zero: float | None = None
    step = -1
    for line in lines:
        step += 1
        reading = parse_line(line)
        if reading is None or (names is not None and frozenset(reading.rails) != names):
            continue
        names = frozenset(reading.rails) if names is None else names
        if reading.stamp_s is not None:
            zero = reading.stamp_s - step * interval_s if zero is None else zero
            ahead = reading.stamp_s - zero - step * interval_s
            if ahead > 0.999 + interval_s:
                step += round(ahead / interval_s)
        samples.append(Sample(step * interval_s, reading.total_w))
    if not samples:
        raise EnergyError("Wanted lines of tegrastats with power rails, found none. Run it as root on the Jetson.")
    first = samples[0].time_s
    return [Sample(one.time_s - first, one.watts) for one in samples]
