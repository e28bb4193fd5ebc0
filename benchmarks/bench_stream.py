"""A stream at 30 frames a second through agent, broker and tail, each a process; the tail is killed once with kill -9.

Every frame that the agent took must end exactly once, and the latency at the end must be that of the beginning.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.lite0 import calibration_folder, pair, whole
from benchmarks.rows import ROOT
from device_profiles.errors import EdgeError
from edge_runtime.messages import Heartbeat, Topics, decode_control
from edge_runtime.mqtt import LinkOptions, MqttLink
from orchestrator.broker import BrokerOptions, MosquittoBroker

DEVICE = "stream"
GROWTH_BAR = 1.25  # p50 of the last fifth over that of the first, both with the tail there


class StreamError(EdgeError):
    """A process of the stream failed."""


@dataclass(frozen=True)
class Stream:
    """What is streamed: folders of the artefacts and the agent's source options."""

    head: Path
    tail: Path
    fallback: Path
    source: tuple[str, ...]
    fps: float = 30.0
    seconds: float = 60.0
    deadline_ms: float = 500.0


@dataclass(frozen=True)
class Outcome:
    """The results in the order in which frames ended, and what the agent's last heartbeat said."""

    results: list[dict[str, Any]]
    beat: Heartbeat
    seconds: float
    lost: int  # frames taken that have no result
    twice: int  # frames with more than one


def run_stream(stream: Stream) -> Outcome:
    """Run the stream; the tail is killed after 40 % of it and started again at 50 %.

    Raises:
        StreamError: A process failed or did not end.
    """
    beats: list[Heartbeat] = []
    subscriptions = ((Topics("default", DEVICE).up("hb"), 0),)
    with (
        tempfile.TemporaryDirectory(prefix="headtail-stream.") as folder,
        MosquittoBroker(BrokerOptions(port=0)) as broker,
        MqttLink(
            broker.url,
            LinkOptions(subscriptions=subscriptions),
            lambda _t, payload, _q: beats.append(decode_control(payload, Heartbeat)),
        ) as link,
    ):
        link.wait_connected(10)
        results = Path(folder) / "results.jsonl"
        tail = start_tail(stream.tail, broker.url)
        agent = start_agent(stream, broker.url, Path(folder), results)
        try:
            _wait_for(lambda: results.is_file() and results.stat().st_size > 0, "the first result")
            begun = time.monotonic()
            _sleep_until(begun + 0.4 * stream.seconds)
            tail.kill()
            tail.wait()
            _sleep_until(begun + 0.5 * stream.seconds)
            tail = start_tail(stream.tail, broker.url)
            _sleep_until(begun + stream.seconds)
            agent.terminate()
            seconds = time.monotonic() - begun
            if agent.wait(30) != 0:
                raise StreamError(f"Wanted the agent to end in order, found exit status {agent.returncode}.")
        finally:
            for process in (agent, tail):
                process.kill()
                process.wait()
        rows = [json.loads(line) for line in results.read_text().splitlines()]
    return judge(rows, beats, seconds)


def judge(rows: list[dict[str, Any]], beats: list[Heartbeat], seconds: float) -> Outcome:
    """Compare what was taken with what ended."""
    if not beats:
        raise StreamError("Wanted heartbeats of the agent, found none.")
    sequence = [row["seq"] for row in rows]
    twice = len(sequence) - len(set(sequence))
    beat = beats[-1]
    ended_by_beat = beat.remote + beat.local + beat.failed
    # At the beat, at most one frame is between being taken and its end.
    lost = max(0, beat.frames - ended_by_beat - 1, beat.frames - len(rows))
    return Outcome(rows, beat, seconds, lost, twice)


def start_tail(artefact: Path, url: str) -> subprocess.Popen[str]:
    """`headtail tail serve`, ready.

    Raises:
        StreamError: It does not serve.
    """
    process = _start("from orchestrator.cli import main; main()", "tail", "serve", str(artefact), "--broker", url)
    assert process.stdout is not None
    line = process.stdout.readline()
    if "serving" not in line:
        process.kill()
        raise StreamError(f"Wanted `headtail tail serve {artefact}` to serve, found {line!r}.")
    return process


def start_agent(stream: Stream, url: str, folder: Path, results: Path) -> subprocess.Popen[str]:
    """`edge-agent run` with head, fallback and source."""
    options = ["--broker", url, "--device", DEVICE, "--state", str(folder / "state"), "--results", str(results)]
    options += ["--head", str(stream.head), "--whole", str(stream.fallback), "--fps", str(stream.fps)]
    options += ["--deadline-ms", str(stream.deadline_ms), "--source", *stream.source]
    return _start("from edge_runtime.cli import main; main()", "run", *options)


def latency_growth(outcome: Outcome) -> tuple[float, float, float]:
    """p50 of the total in ms of the first and the last fifth of the remote answers, and their ratio."""
    remote = [row["ms"]["total_ms"] for row in outcome.results if row["source"] == "remote"]
    fifth = max(1, len(remote) // 5)
    first, last = median(remote[:fifth]), median(remote[-fifth:])
    return first, last, last / first


def rows() -> list[dict[str, Any]]:
    """Rows stream_30fps and its parts."""
    model = whole()
    head, tail = pair(model)
    outcome = run_stream(Stream(head, tail, model, (f"dir:{calibration_folder()}", "--loop")))
    count = len(outcome.results)
    sources = {name: sum(row["source"] == name for row in outcome.results) for name in ("remote", "local", "error")}
    first, last, growth = latency_growth(outcome)
    what = f"{outcome.seconds:.0f} s at 30 frames/s, tail killed once with kill -9: frames lost or ended twice"
    return [
        row("stream_30fps", f"{what} ({count} frames: {sources})", outcome.lost + outcome.twice, "frames", "==", 0),
        row(
            "stream_30fps.growth", f"p50 {first:.1f} ms at first, {last:.1f} ms at last", growth, "x", "<=", GROWTH_BAR
        ),
        row("stream_30fps.errors", "frames that ended in an error", sources["error"], "frames", "==", 0),
        row("stream_30fps.rate", "frames that ended, a second", count / outcome.seconds, "1/s", "info", None),
        row("stream_30fps.dropped", "frames that a newer one replaced", outcome.beat.dropped, "frames", "info", None),
    ]


def row(identity: str, what: str, value: float, unit: str, direction: str, bar: float | None) -> dict[str, Any]:
    """One measurement."""
    return {"id": identity, "what": what, "value": round(value, 3), "unit": unit, "direction": direction, "bar": bar}


def _start(code: str, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def _wait_for(condition: Any, what: str, timeout_s: float = 60.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            raise StreamError(f"Wanted {what} within {timeout_s:g} s, found none.")
        time.sleep(0.05)


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))


if __name__ == "__main__":
    for one in rows():
        print(one)
