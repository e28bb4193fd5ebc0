"""The second half's last scene: a real agent streams, the broker is stopped, the fallback answers in time."""

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from device_profiles.errors import EdgeError
from edge_runtime.messages import Result
from orchestrator.demo.build import Built
from orchestrator.demo.processes import Children, edge_agent, headtail

DEVICE = "demo-device"
FPS = 10
_PATIENCE_S = 60.0


class OutageError(EdgeError):
    """The stream did not do what the demo shows."""


@dataclass(frozen=True)
class Outage:
    """What became of every picture of the stream."""

    deadline_ms: float
    before: tuple[Result, ...]
    after: tuple[Result, ...]

    @property
    def late(self) -> int:
        """Answers after the deadline, and errors."""
        return sum(
            r.source == "error" or r.ms.get("total_ms", 0.0) > self.deadline_ms for r in (*self.before, *self.after)
        )

    def points(self) -> list[tuple[float, float, str]]:
        """(second, ms until the answer, source) for the plot; frames come at a fixed rate."""
        results = (*self.before, *self.after)
        return [(index / FPS, result.ms.get("total_ms", 0.0), result.source) for index, result in enumerate(results)]


def show_outage(
    folder: Path, children: Children, built: Built, *, device_url: str, broker_url: str, deadline_ms: float
) -> Outage:
    """Deploy to an agent, let it stream, kill the broker, and read what it answered.

    Args:
        folder: The demo's folder.
        children: Holds the running broker (named "broker") and tail.
        built: From the first half.
        device_url: The broker as the device sees it, behind the link.
        broker_url: The broker as the host sees it.
        deadline_ms: For every picture.

    Raises:
        OutageError: No remote answers before, or no local ones after the broker's end.
        ChildError: A process failed.
    """
    results = folder / "stream.jsonl"
    results.unlink(missing_ok=True)
    state = folder / ".demo-device"
    shutil.rmtree(state, ignore_errors=True)  # a device that has nothing yet
    stream = ["--source", f"dir:{folder / 'pictures'}", "--loop", "--fps", str(FPS), "--deadline-ms", str(deadline_ms)]
    start = ["run", "--device", DEVICE, "--broker", device_url, "--state", str(state), "--threads", "1"]
    children.start(
        "agent", edge_agent("--log-level", "info", *start, *stream, "--results", str(results)), ready="edge-agent"
    )
    for name, artefact in (("fallback", built.whole_int8), ("head", built.live_pair / "head")):
        children.run(f"deploy-{name}", headtail("deploy", str(artefact), "--to", DEVICE, "--broker", broker_url))
    remote = _wait_for(results, "remote", 3 * FPS)
    children.stop("broker")
    _wait_for(results, "local", 3 * FPS, after=len(remote))
    children.stop("agent")
    every = _read(results)
    cut = max(index for index, result in enumerate(every) if result.source == "remote") + 1
    first = next(index for index, result in enumerate(every) if result.source == "remote")
    return Outage(deadline_ms, tuple(every[first:cut]), tuple(every[cut:]))


def _wait_for(results: Path, source: str, count: int, *, after: int = 0) -> Sequence[Result]:
    end = time.monotonic() + _PATIENCE_S
    while time.monotonic() < end:
        found = _read(results)
        if sum(result.source == source for result in found[after:]) >= count:
            return found
        time.sleep(0.1)
    raise OutageError(
        f"Wanted {count} {source} answers within {_PATIENCE_S:.0f} s, found {len(_read(results)[after:])} answers in {results}."
    )


def _read(results: Path) -> Sequence[Result]:
    lines = results.read_bytes().split(b"\n")[:-1] if results.is_file() else []
    return [msgspec.json.decode(line, type=Result) for line in lines]
