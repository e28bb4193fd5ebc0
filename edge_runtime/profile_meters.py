"""Power meters that a machine has built in: INA3221 on a Jetson, tegrastats, Linux powercap. None is the usual case."""

import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from edge_runtime.profile_energy import Sample
from edge_runtime.profile_system import ROOT
from edge_runtime.profile_tegrastats import TOTALS, parse_line

PERIOD_S = 0.1
_END_S = 10.0
_SENSORS = ("ina3221", "ina3221x", "ina238")


class Meter(Protocol):
    """Something that records power while it is open."""

    name: str

    def start(self) -> None:
        """Begin to record."""

    def stop(self) -> list[Sample]:
        """End, and give the samples on the clock of `time.time`."""


class PollingMeter:
    """Calls a function every 100 ms in a thread of its own."""

    def __init__(self, name: str, read: Callable[[], float | None], period_s: float = PERIOD_S) -> None:
        self.name = name
        self._read = read
        self._period_s = period_s
        self._samples: list[Sample] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="headtail-power", daemon=True)

    def start(self) -> None:
        """Begin to record; see `Meter.start`."""
        self._thread.start()

    def stop(self) -> list[Sample]:
        """End; see `Meter.stop`."""
        self._done.set()
        self._thread.join()
        return self._samples

    def _poll(self) -> None:
        while not self._done.is_set():
            watts = self._read()
            if watts is not None:
                self._samples.append(Sample(time.time(), watts))
            self._done.wait(self._period_s)


class TegrastatsMeter:
    """Runs tegrastats and reads what it prints."""

    name = "tegrastats"

    def __init__(self, program: str, period_s: float = PERIOD_S) -> None:
        self._command = [program, "--interval", str(round(1000 * period_s))]
        self._samples: list[Sample] = []
        self._process: subprocess.Popen[str] | None = None
        self._thread = threading.Thread(target=self._follow, name="headtail-tegrastats", daemon=True)

    def start(self) -> None:
        """Begin to record; see `Meter.start`."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True, errors="replace")
        self._thread.start()

    def stop(self) -> list[Sample]:
        """End; see `Meter.stop`."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(timeout=_END_S)
            except subprocess.TimeoutExpired:  # it must not outlive the measurement
                self._process.kill()
                self._process.wait()
            self._thread.join(timeout=_END_S)
            if self._process.stdout is not None:
                self._process.stdout.close()
        return list(self._samples)

    def _follow(self) -> None:
        process = self._process
        if process is None or process.stdout is None:
            return
        for line in process.stdout:
            if (reading := parse_line(line)) is not None:
                self._samples.append(Sample(time.time(), reading.total_w))


class PowercapCounter:
    """Watts out of powercap's energy counters of whole packages, which count microjoules and wrap around."""

    def __init__(self, zones: Mapping[Path, int], clock: Callable[[], float] = time.monotonic) -> None:
        self._zones = zones  # folder -> where its counter wraps
        self._clock = clock
        self._last: tuple[float, dict[Path, int]] | None = None

    def __call__(self) -> float | None:
        """Mean power since the call before; null at the first one."""
        now, counts = self._clock(), {zone: _number(zone / "energy_uj") for zone in self._zones}
        known = {zone: count for zone, count in counts.items() if count is not None}
        before, self._last = self._last, (now, known)
        if before is None or now <= before[0] or set(known) != set(before[1]):
            return None
        moved = 0
        for zone, count in known.items():
            step = count - before[1][zone]
            moved += step if step >= 0 else step + self._zones[zone]
        return moved / 1e6 / (now - before[0])


def find_meter(root: Path = ROOT) -> Meter | None:
    """The machine's own meter, the most direct one first; null where there is none that may be read."""
    if read_rails(root):
        return PollingMeter("ina3221", lambda: total_of(read_rails(root)))
    program = shutil.which("tegrastats") if root == ROOT else None
    if program is not None:
        return TegrastatsMeter(program)
    zones = powercap_zones(root)
    return PollingMeter("powercap", PowercapCounter(zones)) if zones else None


def read_rails(root: Path = ROOT) -> dict[str, float]:
    """Watts of each rail of a Jetson's sensors: hwmon (JetPack 5 on), or the driver of JetPack 4; empty elsewhere."""
    rails: dict[str, float] = {}
    for folder in sorted(root.glob("sys/class/hwmon/hwmon*")):
        if _text(folder / "name") in _SENSORS:
            rails |= _hwmon_rails(folder)
    for name_file in sorted(root.glob("sys/bus/i2c/drivers/ina3221x/*/iio:device*/rail_name_*")):
        milliwatts = _number(name_file.with_name(f"in_power{name_file.name.rpartition('_')[2]}_input"))
        name = _text(name_file)
        if name and milliwatts is not None:
            rails[name] = milliwatts / 1000
    return rails


def _hwmon_rails(folder: Path) -> dict[str, float]:
    rails = {}
    for label in sorted(folder.glob("in*_label")):
        number = re.sub(r"\D", "", label.name)
        name = _text(label)
        millivolts = _number(folder / f"in{number}_input")
        milliamperes = _number(folder / f"curr{number}_input")
        microwatts = _number(folder / f"power{number}_input")
        if not name or name.lower().startswith("sum"):  # the chip's sum of shunt voltages is no rail
            continue
        if microwatts is not None:
            rails[name] = microwatts / 1e6
        elif millivolts is not None and milliamperes is not None:
            rails[name] = millivolts * milliamperes / 1e6
    return rails


def total_of(rails: Mapping[str, float]) -> float | None:
    """Power of the whole module; null without rails."""
    if not rails:
        return None
    return next((rails[name] for name in TOTALS if name in rails), sum(rails.values()))


def powercap_zones(root: Path = ROOT) -> dict[Path, int]:
    """Folders of whole packages whose counter this user may read, and where each wraps around (microjoules)."""
    zones = {}
    for folder in sorted(root.glob("sys/class/powercap/*:*")):
        wrap = _number(folder / "max_energy_range_uj")
        if (_text(folder / "name") or "").startswith("package") and wrap and _number(folder / "energy_uj") is not None:
            zones[folder] = wrap
    return zones


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text is not None and re.fullmatch(r"-?\d{1,18}", text) else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text("utf-8", "replace").strip()[:200]
    except OSError:
        return None
