"""What the device process costs: start, memory, and what our session adds to the engine's own time."""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from statistics import median

from benchmarks.lite0 import pair, whole
from benchmarks.rows import ROOT
from device_profiles.errors import EdgeError

STARTS = 9
PROCESSES = 8
_TIMEOUT_S = 300


class ProbeError(EdgeError):
    """The process that measures failed."""


def rows() -> list[dict[str, object]]:
    """Rows agent_start, agent_rss, agent_rss_fallback and session_overhead."""
    model = whole()
    head, _ = pair(model)
    return [*start_rows(model), *fallback_rows(head, model), *overhead_rows(model)]


def start_rows(model: Path) -> list[dict[str, object]]:
    """Start and memory with a whole model."""
    found = [probe("start", model) for _ in range(STARTS)]
    total = median(one["import_s"] + one["load_s"] for one in found)
    peak = median(one["peak_bytes"] for one in found)
    loading = median(one["load_s"] for one in found)
    engine = f"onnxruntime {version('onnxruntime')}"
    what = f"edge-agent with {engine}, int8 Lite0"
    return [
        row("agent_start", f"{what}: import and load, fresh process, median of {STARTS}", total, "s", 0.6),
        row("agent_start.load", "of which opening the artefact and the session", loading, "s", None),
        row("agent_rss", f"{what}: largest resident set after 10 runs (MB = 10^6 B)", peak / 1e6, "MB", 90),
    ]


def fallback_rows(head: Path, model: Path) -> list[dict[str, object]]:
    """Memory with a head and the whole model that answers when the tail does not."""
    peak = median(probe("start", head, model)["peak_bytes"] for _ in range(3))
    what = "the same with a head and the whole model as its fallback, both loaded and run"
    return [row("agent_rss_fallback", what, peak / 1e6, "MB", 100)]


def overhead_rows(model: Path) -> list[dict[str, object]]:
    """What `Session.run` adds to `InferenceSession.run`."""
    found = [probe("overhead", model, ("ours", "plain")[index % 2]) for index in range(PROCESSES)]
    ratio = median(one["ratio"] for one in found)
    engine_ms = median(one["plain_ms"] for one in found)
    peer = {"peer": "onnxruntime", "peer_version": version("onnxruntime")}
    what = f"Session.run against InferenceSession.run, int8 Lite0, 1 thread: median of paired ratios in {PROCESSES} processes"
    plain = "the peer's own median at that model"
    return [
        {**row("session_overhead", what, 100 * (ratio - 1), "%", 3), **peer},
        {**row("session_overhead.plain", plain, engine_ms, "ms", None), **peer},
    ]


def row(name: str, what: str, value: float, unit: str, bar: float | None) -> dict[str, object]:
    """A measurement that must not exceed its bar; information without one."""
    return {
        "id": name,
        "what": what,
        "value": value,
        "unit": unit,
        "direction": "info" if bar is None else "<=",
        "bar": bar,
        "peer": None,
        "peer_version": None,
    }


def probe(*arguments: str | Path) -> dict[str, float]:
    """Measure in a fresh interpreter.

    Raises:
        ProbeError: With the end of its output.
    """
    command = [sys.executable, "-m", "benchmarks.agent_probe", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    if done.returncode != 0:
        raise ProbeError(f"Wanted figures from agent_probe, found exit status {done.returncode}: {done.stderr[-800:]}")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures
