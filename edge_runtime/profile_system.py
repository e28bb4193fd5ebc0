"""What a Linux machine says of its own state in /proc and /sys: clocks, temperature, throttling, power mode, memory.

Everything is read below a root folder, so that tests can show it the trees of boards that are not at hand. A file that
is missing gives null, never a guess.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from device_profiles.errors import BoardError
from device_profiles.load import load_board, this_board_id
from edge_runtime.profile_stats import CpuTimes

ROOT = Path("/")
_MAX_BYTES = 1 << 20
# CPU implementer and part of /proc/cpuinfo -> core (Arm's and NVIDIA's main identification registers)
_CORES = {
    ("0x41", "0xd03"): "Cortex-A53",
    ("0x41", "0xd07"): "Cortex-A57",
    ("0x41", "0xd08"): "Cortex-A72",
    ("0x41", "0xd0b"): "Cortex-A76",
    ("0x41", "0xd42"): "Cortex-A78AE",
    ("0x41", "0xd83"): "Neoverse-V3AE",
    ("0x4e", "0x003"): "Denver 2",
    ("0x4e", "0x004"): "Carmel",
}
# start of the machine's name -> board id; with {} where the id names the memory in GB
_BOARDS = (
    ("Raspberry Pi 3 Model B Plus", "rpi-3b-plus"),
    ("Raspberry Pi 4 Model B", "rpi-4b-{}gb"),
    ("Raspberry Pi 5", "rpi-5-{}gb"),
    ("Raspberry Pi Zero 2", "rpi-zero-2w"),
    ("NVIDIA Jetson Nano", "jetson-nano"),
    ("NVIDIA Jetson TX2", "jetson-tx2"),
    ("quill", "jetson-tx2"),
    ("NVIDIA Jetson Xavier NX", "jetson-xavier-nx"),
    ("NVIDIA Jetson AGX Orin", "jetson-agx-orin-64gb"),
    ("NVIDIA Jetson Orin NX", "jetson-orin-nx-16gb"),
    ("NVIDIA Jetson Orin Nano", "jetson-orin-nano-8gb"),
    ("NVIDIA Jetson AGX Thor", "jetson-agx-thor"),
)
# bits of the Raspberry Pi firmware's get_throttled that hold now, and (16 higher) that held since the start
_PI_FLAGS = {0: "under-voltage", 1: "frequency capped", 2: "throttled", 3: "soft temperature limit"}


@dataclass(frozen=True)
class State:
    """One reading. `counters` hold events since the machine started; compare two readings."""

    clock_hz: int | None  # fastest core
    temperature_c: float | None  # hottest sensor of the processor
    throttled_now: tuple[str, ...]
    counters: dict[str, int]


def machine_name(root: Path = ROOT) -> str | None:
    """What the device tree or the firmware calls the machine."""
    for relative in ("proc/device-tree/model", "sys/firmware/devicetree/base/model", "sys/class/dmi/id/product_name"):
        text = _read(root / relative)
        if text:
            return text
    return None


def cpu_name(root: Path = ROOT) -> str | None:
    """Processor, from /proc/cpuinfo; on Arm the cores' names, each once."""
    text = _read(root / "proc/cpuinfo") or ""
    models = re.findall(r"^(?:model name|cpu model)\s*:\s*(.+)$", text, re.MULTILINE)
    implementers = re.findall(r"^CPU implementer\s*:\s*(\S+)$", text, re.MULTILINE)
    parts = re.findall(r"^CPU part\s*:\s*(\S+)$", text, re.MULTILINE)
    cores = [_CORES.get(pair, f"part {pair[1]} of {pair[0]}") for pair in zip(implementers, parts, strict=False)]
    if cores:
        return " + ".join(dict.fromkeys(cores))
    return models[0] if models else None


def board_id(root: Path = ROOT) -> str:
    """The board's id as far as the machine says it, else the generic board of its architecture.

    Raises:
        BoardError: Neither a known board nor x86-64 or aarch64.
    """
    name = machine_name(root) or ""
    for start, board in _BOARDS:
        if name.startswith(start):
            found = board.format(_memory_gb(root))
            return found if is_known(found) else found.rpartition("-")[0]
    return this_board_id()


def is_known(board: str) -> bool:
    """Whether there is a board file of that id."""
    try:
        load_board(board)
    except BoardError:
        return False
    return True


def _memory_gb(root: Path) -> int:
    """The size that was sold: the next power of two above what the kernel has left."""
    match = re.search(r"^MemTotal:\s*(\d+) kB", _read(root / "proc/meminfo") or "", re.MULTILINE)
    left = int(match[1]) / (1 << 20) if match else 1.0
    return next((size for size in (1, 2, 4, 8, 16) if left <= size), 16)


def governor(root: Path = ROOT) -> str | None:
    """The frequency governor of the first core that has one."""
    for folder in cores(root):
        if found := _read(folder / "cpufreq/scaling_governor"):
            return found
    return None


def power_mode(root: Path = ROOT) -> str | None:
    """A Jetson's power mode by name, as nvpmodel stored it; null elsewhere."""
    status = re.search(r"pmode:\s*(\d+)", _read(root / "var/lib/nvpmodel/status") or "")
    if status is None:
        return None
    number = int(status[1])
    for identifier, name in re.findall(
        r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+?)\s*>", _read(root / "etc/nvpmodel.conf") or ""
    ):
        if int(identifier) == number:
            return str(name)
    return f"mode {number}"


def read_state(root: Path = ROOT) -> State:
    """Clocks, temperature and throttling as they are now."""
    now, counters = _pi_flags(root)
    for path in sorted(root.glob("sys/class/hwmon/hwmon*/oc*_event_cnt")):  # Jetson: over-current alarms
        counters[f"over-current alarm {path.name.split('_')[0]}"] = _number(path) or 0
    for path in sorted(root.glob("sys/devices/system/cpu/cpu*/thermal_throttle/*_throttle_count")):  # x86
        key = f"thermal throttling of {path.name.split('_')[0]}"
        counters[key] = counters.get(key, 0) + (_number(path) or 0)
    return State(_clock(root), _temperature(root), now, counters)


def throttling(before: State, after: State) -> tuple[str, ...]:
    """What slowed the machine between two readings: flags that hold, and counters that rose."""
    flags = dict.fromkeys(before.throttled_now + after.throttled_now)
    rose = [name for name, count in after.counters.items() if count > before.counters.get(name, 0)]
    return tuple(flags | dict.fromkeys(rose))


def _pi_flags(root: Path) -> tuple[tuple[str, ...], dict[str, int]]:
    for path in sorted(root.glob("sys/devices/platform/soc*/soc*:firmware/get_throttled")):
        text = _read(path)
        if text is None or not re.fullmatch(r"(?:0x)?[0-9a-fA-F]{1,8}", text):
            continue
        bits = int(text, 16)
        now = tuple(name for bit, name in _PI_FLAGS.items() if bits >> bit & 1)
        return now, {name: bits >> (bit + 16) & 1 for bit, name in _PI_FLAGS.items()}
    return (), {}


def _clock(root: Path) -> int | None:
    khz = [_number(folder / "cpufreq/scaling_cur_freq") for folder in cores(root)]
    known = [one for one in khz if one]
    if known:
        return max(known) * 1000
    mhz = re.findall(r"^cpu MHz\s*:\s*([\d.]+)$", _read(root / "proc/cpuinfo") or "", re.MULTILINE)
    return round(max(float(one) for one in mhz) * 1e6) if mhz else None


def _temperature(root: Path) -> float | None:
    zones = {folder: _read(folder / "type") or "" for folder in root.glob("sys/class/thermal/thermal_zone*")}
    processor = [folder for folder, kind in zones.items() if re.search(r"cpu|soc|tj|pkg", kind, re.IGNORECASE)]
    values = [_number(folder / "temp") for folder in processor or list(zones)]
    # Sensors of parts that are switched off say values such as -256000.
    known = [value / 1000 for value in values if value is not None and -40_000 < value < 150_000]
    return max(known, default=None)


def cores(root: Path = ROOT) -> list[Path]:
    """The folders of the cores that the kernel knows."""
    return sorted(path for path in root.glob("sys/devices/system/cpu/cpu*") if re.fullmatch(r"cpu\d+", path.name))


def cpu_times(root: Path = ROOT) -> CpuTimes | None:
    """Clock ticks of all cores together, from the first line of /proc/stat."""
    line = (_read(root / "proc/stat") or "").partition("\n")[0].split()
    if len(line) < 9 or line[0] != "cpu":
        return None
    user, nice, system, idle, wait, interrupt, soft, steal = (int(one) for one in line[1:9])
    return CpuTimes(busy=user + nice + system + interrupt + soft, idle=idle + wait, steal=steal)


def ticks_per_second() -> int:
    """Length of a clock tick in /proc/stat."""
    return os.sysconf("SC_CLK_TCK")


def load_1m(root: Path = ROOT) -> float | None:
    """Load average over the last minute."""
    match = re.match(r"([\d.]+) ", _read(root / "proc/loadavg") or "")
    return float(match[1]) if match else None


def peak_rss_bytes(root: Path = ROOT) -> int | None:
    """Largest resident set of this process since it began (VmHWM)."""
    match = re.search(r"^VmHWM:\s*(\d+) kB", _read(root / "proc/self/status") or "", re.MULTILINE)
    return int(match[1]) * 1024 if match else None


def _number(path: Path) -> int | None:
    text = _read(path)
    return int(text) if text is not None and re.fullmatch(r"-?\d{1,18}", text) else None


def _read(path: Path) -> str | None:
    """A small file's text without surrounding white space and NUL; null where it cannot be read."""
    try:
        with path.open("rb") as stream:
            data = stream.read(_MAX_BYTES)
    except OSError:  # missing, or a sensor that is switched off
        return None
    return data.decode("utf-8", "replace").strip(" \t\r\n\0")
