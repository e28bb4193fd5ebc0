"""The process that measures: fresh, with one engine and one model in it, so that its memory is that of the model.

    python -m edge_runtime.profile_child REQUEST      a folder with request.json; answers there with answer.json

`plain` times whole runs without any instrumentation; `kernels` runs the same model with and without the engine's profiler
in turn. Both say `done` when they are warm, and then run one block for each line on standard input: the parent lets the two
take turns, so that a machine that gets slower meanwhile gets slower for both.
"""

import importlib
import itertools
import sys
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from device_profiles.errors import EdgeError
from edge_runtime.artefact import Artefact, open_artefact, read_raw
from edge_runtime.manifest import TensorSpec
from edge_runtime.profile_pairs import Pairs
from edge_runtime.profile_stats import CpuTimes, percentiles
from edge_runtime.profile_system import State, cpu_times, peak_rss_bytes, read_state
from edge_runtime.session import open_session

REQUEST, ANSWER, TRACE, OPTIMISED = "request.json", "answer.json", "trace", "optimised.onnx"
_ENGINES = {
    "onnxruntime": "edge_runtime.backends.onnxrt",
    "litert": "edge_runtime.backends.litert",
    "tflite-runtime": "edge_runtime.backends.litert",
    "tflite-micro": "edge_runtime.backends.litert",
    "tensorrt": "edge_runtime.backends.trt",
}
_READ_STATE_S = 1.0
_WARM_UP_S = 5.0
_SETTLE_RUNS = 2, 10  # least and most


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to measure. A block runs until both `runs` and `seconds` are reached, or `limit_s` is."""

    artefact: str
    mode: Literal["plain", "kernels"]
    threads: int
    warm_up: int = 10
    runs: int = 20
    seconds: float = 0.4
    limit_s: float = 6.0
    settle_s: float = 0.1  # of untimed runs before each block
    minutes: float = 0.0  # of a sustained run after the plain one
    idle_s: float = 0.0  # of doing nothing before the active phase; 0: no energy is measured
    active_s: float = 0.0


class Slice(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the sustained run; its times in milliseconds, where it lies in seconds."""

    begin_s: float
    seconds: float
    p50_ms: float
    p90_ms: float
    temperature_c: float | None


class Phase(msgspec.Struct, frozen=True, kw_only=True):
    """A stretch of time for a power meter, in seconds of the wall clock (Unix time)."""

    begin_s: float
    end_s: float
    runs: int = 0


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured; times of single runs in milliseconds, in order."""

    error: str | None = None
    init_ms: float = 0.0
    first_ms: float = 0.0
    wall_ms: list[float] = []
    cpu_ms: list[float] = []
    rss_bare: int | None = None
    rss_peak: int | None = None
    states: list[State] = []  # first, then about one a second
    machine_ticks: CpuTimes | None = None  # of all cores, during the blocks
    own_s: float = 0.0  # CPU seconds of this process during the blocks
    block_runs: list[int] = []
    plain_wall_ms: list[float] = []  # of `kernels`: the plain runs between the instrumented ones
    plain_cpu_ms: list[float] = []
    settled_runs: list[int] = []  # untimed, before each block
    hook_ms: list[float] = []  # of `kernels`: what the profiler adds to each kernel's time, for each block
    sustained: list[Slice] = []
    idle: Phase | None = None
    active: Phase | None = None
    provider: str | None = None


@dataclass
class Watch:
    """Reads the machine's state between runs, about once a second."""

    states: list[State] = field(default_factory=list)
    due: float = 0.0

    def look(self) -> None:
        """Read the state if it is time to."""
        if (now := time.monotonic()) >= self.due:
            self.due = now + _READ_STATE_S
            self.states.append(read_state())


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the request asks for; an `EdgeError` becomes part of the answer."""
    folder = Path((sys.argv[1:] if arguments is None else arguments)[0])
    request = msgspec.json.decode((folder / REQUEST).read_bytes(), type=Request)
    try:
        artefact = open_artefact(request.artefact)
        answer = measure_plain(artefact, request) if request.mode == "plain" else record(artefact, request, folder)
    except EdgeError as error:
        answer = Answer(error=f"{type(error).__name__}: {error}")
    (folder / ANSWER).write_bytes(msgspec.json.encode(answer))
    return 0


def measure_plain(artefact: Artefact, request: Request) -> Answer:
    """Times of whole runs, memory, and what the machine did meanwhile."""
    importlib.import_module(_ENGINES.get(artefact.manifest.engine.name, "edge_runtime.session"))
    bare, watch = peak_rss_bytes(), Watch()
    watch.look()
    begun = time.perf_counter()
    session = open_session(artefact, threads=request.threads)
    init_ms = 1000 * (time.perf_counter() - begun)
    inputs = make_inputs(artefact, session.inputs)
    first, _ = time_runs(lambda: session.run(inputs), runs=1)
    warm_up(lambda: session.run(inputs), request)
    wall, cpu = array("d"), array("d")

    def block() -> int:
        more = time_runs(
            lambda: session.run(inputs),
            runs=request.runs,
            seconds=request.seconds,
            limit_s=request.limit_s,
            watch=watch,
        )
        wall.extend(more[0])
        cpu.extend(more[1])
        return len(more[0])

    blocks = run_blocks(lambda: session.run(inputs), block, request.settle_s)
    peak = peak_rss_bytes()  # before the lists of a sustained run
    idle, active = power_phases(lambda: session.run(inputs), request)
    sustained = sustain(lambda: session.run(inputs), request.minutes, watch)
    session.close()
    watch.due = 0.0
    watch.look()
    return Answer(
        init_ms=init_ms,
        first_ms=first[0],
        wall_ms=wall.tolist(),
        cpu_ms=cpu.tolist(),
        rss_bare=bare,
        rss_peak=peak,
        states=watch.states,
        machine_ticks=blocks.machine,
        own_s=blocks.own_s,
        block_runs=blocks.runs,
        sustained=sustained,
        idle=idle,
        active=active,
    )


def record(artefact: Artefact, request: Request, folder: Path) -> Answer:
    """Run with and without ONNX Runtime's profiler in turn; leaves its trace and the graph that it runs in `folder`."""
    from edge_runtime.profile_hook import HookCost
    from edge_runtime.profile_record import Recording, open_plain

    bare, watch = peak_rss_bytes(), Watch()
    watch.look()
    specs = artefact.manifest.inputs
    feeds = {spec.engine_name: one for spec, one in zip(specs, make_inputs(artefact, specs), strict=True)}
    plain = open_plain(artefact, request.threads, feeds)
    plain()
    peak = peak_rss_bytes()
    recording = Recording(artefact, request.threads, feeds, folder=folder, optimised=folder / OPTIMISED)
    instrumented = recording.begin()

    def both() -> None:
        plain()
        instrumented()

    warm_up(both, request)
    pairs, hook = Pairs(), HookCost(folder, request.threads)

    def block() -> int:
        hook.measure()
        return pairs.measure(plain, instrumented, runs=request.runs, limit_s=request.limit_s)

    blocks = run_blocks(both, block, request.settle_s)
    provider = recording.end(folder / TRACE)
    watch.due = 0.0
    watch.look()
    return Answer(
        wall_ms=list(pairs.instrumented.wall),
        cpu_ms=list(pairs.instrumented.cpu),
        plain_wall_ms=list(pairs.plain.wall),
        plain_cpu_ms=list(pairs.plain.cpu),
        rss_bare=bare,
        rss_peak=peak,
        states=watch.states,
        machine_ticks=blocks.machine,
        own_s=blocks.own_s,
        block_runs=blocks.runs,
        settled_runs=blocks.settled,
        hook_ms=hook.end(),
        provider=provider,
    )


@dataclass
class Blocks:
    """How many runs each block had, and what the machine did meanwhile."""

    runs: list[int] = field(default_factory=list)
    settled: list[int] = field(default_factory=list)  # untimed runs before each block
    machine: CpuTimes | None = field(default_factory=lambda: CpuTimes(0, 0, 0))
    own_s: float = 0.0


def warm_up(run: Callable[[], object], request: Request) -> None:
    """Untimed runs: the engine chooses algorithms, clocks rise, caches fill."""
    until = time.monotonic() + _WARM_UP_S
    for _ in range(request.warm_up):
        run()
        if time.monotonic() > until:
            break


def settle(run: Callable[[], object], seconds: float) -> int:
    """Untimed runs until caches and clocks are ours again: the other process ran meanwhile. Returns how many."""
    until, (least, most) = time.monotonic() + seconds, _SETTLE_RUNS
    for count in itertools.count(1):
        run()
        if count >= most or (count >= least and time.monotonic() > until):
            break
    return count


def run_blocks(run: Callable[[], object], block: Callable[[], int], settle_s: float) -> Blocks:
    """Say `done`, then run a block and say it again for each line on standard input, until that ends.

    Args:
        run: One untimed run, to settle.
        block: Runs and times a block; how many runs it had.
        settle_s: Of settling before each block.
    """
    blocks = Blocks()
    sys.stdout.write("done\n")
    sys.stdout.flush()
    for _ in sys.stdin:
        blocks.settled.append(settle(run, settle_s))
        before, own = cpu_times(), time.process_time()
        blocks.runs.append(block())
        blocks.own_s += time.process_time() - own
        blocks.machine = _add_ticks(blocks.machine, before, cpu_times())
        sys.stdout.write("done\n")
        sys.stdout.flush()
    return blocks


def _add_ticks(total: CpuTimes | None, before: CpuTimes | None, after: CpuTimes | None) -> CpuTimes | None:
    if total is None or before is None or after is None:
        return None
    return CpuTimes(
        busy=total.busy + after.busy - before.busy,
        idle=total.idle + after.idle - before.idle,
        steal=total.steal + after.steal - before.steal,
    )


def make_inputs(artefact: Artefact, specs: Sequence[TensorSpec]) -> list[np.ndarray]:
    """The first golden inputs; where there are none, random values of a fixed seed."""
    if artefact.manifest.golden:
        paths = artefact.manifest.golden[0].inputs
        return [read_raw(artefact, path, spec) for path, spec in zip(paths, specs, strict=True)]
    generator = np.random.default_rng(0)
    return [_random(generator, spec) for spec in specs]


def _random(generator: np.random.Generator, spec: TensorSpec) -> np.ndarray:
    kind = np.dtype(spec.dtype)
    if kind.kind == "f":
        return generator.standard_normal(spec.shape).astype(kind)
    if kind.kind == "b":
        return generator.integers(0, 2, spec.shape).astype(kind)
    high = min(np.iinfo(kind).max, 127) + 1
    # Wide integers are indices of tables whose length is not known here: small ones are in range.
    return generator.integers(0, high if kind.itemsize == 1 else 2, spec.shape).astype(kind)


def time_runs(
    run: Callable[[], object],
    *,
    runs: int,
    seconds: float = 0.0,
    limit_s: float = float("inf"),
    watch: Watch | None = None,
) -> tuple[list[float], list[float]]:
    """Wall and CPU milliseconds of single runs; at least one, at least `runs` and `seconds` within `limit_s`."""
    wall, cpu = array("d"), array("d")
    begun = time.monotonic()
    for count in itertools.count(1):
        cpu_0, wall_0 = time.process_time_ns(), time.perf_counter_ns()
        run()
        wall_1, cpu_1 = time.perf_counter_ns(), time.process_time_ns()
        wall.append((wall_1 - wall_0) / 1e6)
        cpu.append(max(cpu_1 - cpu_0, 1) / 1e6)
        elapsed = time.monotonic() - begun
        if elapsed >= limit_s or (count >= runs and elapsed >= seconds):
            break
        if watch is not None:
            watch.look()
    return wall.tolist(), cpu.tolist()


def power_phases(run: Callable[[], object], request: Request) -> tuple[Phase | None, Phase | None]:
    """Nothing for `idle_s`, then runs for `active_s`: what a power meter is read over."""
    if request.idle_s <= 0:
        return None, None
    begun = time.time()
    time.sleep(request.idle_s)
    middle = time.time()
    wall, _ = time_runs(run, runs=1, seconds=request.active_s)
    return Phase(begin_s=begun, end_s=middle), Phase(begin_s=middle, end_s=time.time(), runs=len(wall))


def sustain(run: Callable[[], object], minutes: float, watch: Watch) -> list[Slice]:
    """Run for minutes; one slice a minute, or six for a run shorter than that."""
    if minutes <= 0:
        return []
    length = min(60.0, 10.0 * minutes) if minutes < 1 else 60.0
    slices, first = [], time.monotonic()
    for _ in range(max(1, round(60 * minutes / length))):
        begin_s = time.monotonic() - first
        wall, _ = time_runs(run, runs=1, seconds=length, watch=watch)
        times, heat = percentiles(wall), watch.states[-1].temperature_c
        took = time.monotonic() - first - begin_s
        slices.append(Slice(begin_s=begin_s, seconds=took, p50_ms=times.p50, p90_ms=times.p90, temperature_c=heat))
    return slices


if __name__ == "__main__":
    sys.exit(main())
