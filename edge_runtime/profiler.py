"""Measure an artefact on this machine: whole runs, single kernels, memory, energy, and what disturbed the measurement.

Whole runs carry no instrumentation; kernels come from a run of their own, with the engine's profiler on. Each is a fresh
process, and the two take turns. In that of the kernels each instrumented run is the neighbour of a plain one: only these
are compared, so that a machine that slows down slows down for both.
"""

import tempfile
from array import array
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path

import msgspec

from device_profiles.measurement import (
    Condition,
    EnergyUse,
    EngineSettings,
    KernelTime,
    MemoryUse,
    Minute,
    Percentiles,
    Profile,
    Status,
    check_profile,
    judge,
)
from edge_runtime import profile_child as child
from edge_runtime import profile_system as system
from edge_runtime.artefact import Artefact
from edge_runtime.profile_energy import (
    EnergyError,
    Sample,
    integrate,
    measured_energy,
    read_meter_csv,
    stated_energy,
)
from edge_runtime.profile_graph import read_graph
from edge_runtime.profile_kernels import arena_bytes, build_kernels, weight_bytes
from edge_runtime.profile_meters import Meter, find_meter
from edge_runtime.profile_pairs import Pairs, Times
from edge_runtime.profile_process import BLOCKS, MeasuringProcess, take_turns
from edge_runtime.profile_stats import percentiles, repeat_cov, usage
from edge_runtime.profile_trace import read_trace

STEAL_LIMIT = 0.05  # share of all cores' time
OTHER_LIMIT = 0.10  # with more than one thread, where CPU time is not latency
KERNEL_RUNS = 50
KERNEL_WARM_UP = 5
MIN_QUIET_RUNS = 10  # of the instrumented ones
_DISTRIBUTIONS = {
    "onnxruntime": "onnxruntime",
    "litert": "ai-edge-litert",
    "tflite-micro": "ai-edge-litert",
    "tflite-runtime": "tflite-runtime",
    "tensorrt": "tensorrt",
}


@dataclass(frozen=True)
class ProfileOptions:
    """How long to measure, and what is known of power."""

    threads: int | None = None  # the manifest's number when null
    runs: int = 100
    seconds: float = 2.0
    limit_s: float = 30.0  # of the plain run; a slow model gets fewer runs
    minutes: float = 0.0  # of a sustained run
    power: str | None = None  # figures that the user states
    power_csv: Path | None = None  # log of an external meter that is written meanwhile
    energy_s: float = 3.0  # of the idle and of the active phase, where there is a meter
    kernels_only: bool = False  # no process of plain runs alone: the neighbours of instrumented runs stand for them


def profile_artefact(
    artefact: Artefact, options: ProfileOptions | None = None, *, on_step: Callable[[str], None] = lambda _text: None
) -> Profile:
    """Measure; see the module.

    Args:
        artefact: Checked by `open_artefact`.
        options: The defaults take about five seconds for a small model.
        on_step: Told what is done next, for people who wait.

    Raises:
        EngineError: The engine cannot open or run it here.
        ProfilerError: A measuring process died or took too long.
        EnergyError: Stated figures, or the log of a meter, are not valid.
    """
    options = options or ProfileOptions()
    threads = artefact.manifest.engine.threads if options.threads is None else options.threads
    if options.power is not None:
        stated_energy(options.power, None)  # wrong text is said before anything runs
    load = system.load_1m()
    measured = _run(artefact, options, threads, on_step)
    answer, kernels = measured.plain, measured.kernels
    remarks: list[str] = []
    energy = _energy(measured, remarks)
    if not kernels:
        remarks.append(
            f"no times of single kernels: {artefact.manifest.engine.name} gives none to Python; the figures are of the whole"
        )
    condition = _condition(answer, load, threads)
    status, why = _status(measured, condition, threads)
    whole = percentiles(answer.wall_ms)
    profile = Profile(
        board=system.board_id(),
        model=artefact.manifest.model.name,
        model_sha256=artefact.manifest.files_by_path[artefact.manifest.entry].sha256,
        precision=artefact.manifest.precision,
        engine=_settings(artefact, threads, measured.provider),
        power_mode=system.power_mode(),
        created=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        whole=whole,
        whole_cpu=percentiles(answer.cpu_ms) if threads == 1 else None,
        whole_profiled=measured.profiled,
        whole_beside=measured.beside,
        init_ms=answer.init_ms,
        first_ms=answer.first_ms,
        kernels=kernels,
        memory=measured.memory,
        energy=stated_energy(options.power, whole.p50) if options.power is not None else energy,
        condition=condition,
        sustained=tuple(
            Minute(minute=index, p50=one.p50_ms, p90=one.p90_ms, temperature_c=one.temperature_c)
            for index, one in enumerate(answer.sustained)
        ),
        status=status,
        remarks=(*why, *remarks),
    )
    return check_profile(profile)


@dataclass(frozen=True)
class _Measured:
    """What the two processes and the meter gave."""

    plain: child.Answer
    samples: list[Sample]
    meter: str | None
    kernels: tuple[KernelTime, ...] = ()
    profiled: Percentiles | None = None
    beside: Percentiles | None = None
    memory: MemoryUse = field(default_factory=MemoryUse)
    provider: str | None = None
    interrupted: bool = False  # too few instrumented runs kept the core


def _run(artefact: Artefact, options: ProfileOptions, threads: int, on_step: Callable[[str], None]) -> _Measured:
    """The plain process, the one with the engine's profiler where there is one, and a meter meanwhile."""
    meter = find_meter() if options.power is None and options.power_csv is None else None
    metered = meter is not None or options.power_csv is not None
    plain = child.Request(
        artefact=str(artefact.folder.resolve()),
        mode="plain",
        threads=threads,
        runs=-(-options.runs // BLOCKS),
        seconds=options.seconds / BLOCKS,
        limit_s=options.limit_s / BLOCKS,
        minutes=options.minutes,
        idle_s=options.energy_s if metered else 0.0,
        active_s=options.energy_s,
    )
    with ExitStack() as stack:
        first = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="headtail-profile-")))
        second = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="headtail-profile-")))
        if options.kernels_only and artefact.manifest.engine.name == "onnxruntime":
            return _run_kernels(artefact, plain, first, threads)
        on_step("whole runs")
        process = stack.enter_context(MeasuringProcess(plain, first))
        if not process.wait_ready():
            process.finish()  # says why it ended
        if artefact.manifest.engine.name != "onnxruntime":
            take_turns(process, None)
            answer, samples, name = _finish_plain(process, meter, options.power_csv)
            return _Measured(answer, samples, name, memory=_memory(answer))
        request = _kernel_request(plain, runs=KERNEL_RUNS // BLOCKS)
        on_step("whole runs and single kernels in turn")
        with MeasuringProcess(request, second) as other:
            other.wait_ready()
            take_turns(process, other)
            recorded = other.finish()
        answer, samples, name = _finish_plain(process, meter, options.power_csv)
        return _read_kernels(
            artefact, second, recorded, _Measured(answer, samples, name, memory=_memory(answer)), threads
        )


def _kernel_request(plain: child.Request, *, runs: int) -> child.Request:
    return msgspec.structs.replace(
        plain, mode="kernels", warm_up=KERNEL_WARM_UP, runs=runs, seconds=0.0, minutes=0.0, idle_s=0.0
    )


def _run_kernels(artefact: Artefact, plain: child.Request, folder: Path, threads: int) -> _Measured:
    """One process alone: what a calibration needs of many networks."""
    with MeasuringProcess(_kernel_request(plain, runs=plain.runs), folder) as process:
        process.wait_ready()
        take_turns(process, None)
        recorded = process.finish()
    answer = msgspec.structs.replace(recorded, wall_ms=recorded.plain_wall_ms, cpu_ms=recorded.plain_cpu_ms)
    return _read_kernels(artefact, folder, recorded, _Measured(answer, [], None, memory=_memory(answer)), threads)


def _finish_plain(
    process: MeasuringProcess, meter: Meter | None, csv: Path | None
) -> tuple[child.Answer, list[Sample], str | None]:
    """Energy and sustained phases follow the last turn; a meter records them."""
    if meter is None:
        answer = process.finish()
        return answer, read_meter_csv(csv) if csv is not None else [], "usb-csv" if csv is not None else None
    meter.start()
    try:
        answer = process.finish()
    finally:
        samples = meter.stop()
    return answer, samples, meter.name


def _read_kernels(
    artefact: Artefact, folder: Path, recorded: child.Answer, measured: _Measured, threads: int
) -> _Measured:
    """Map what the engine's profiler recorded to the names of the artefact's graph.

    Its clock runs on while another process has the core: with one thread only runs that kept it count, if enough did.
    """
    whole = read_trace(folder / child.TRACE)
    kept = kept_runs(len(whole.runs), recorded.settled_runs, recorded.block_runs)
    pairs = Pairs(
        Times(array("d", recorded.plain_wall_ms), array("d", recorded.plain_cpu_ms)),
        Times(array("d", recorded.wall_ms), array("d", recorded.cpu_ms)),
    )
    chosen = pairs.quiet() if threads == 1 else list(range(len(pairs)))
    interrupted = threads == 1 and len(chosen) < MIN_QUIET_RUNS
    chosen = list(range(len(pairs))) if interrupted else chosen
    trace = whole.keep([kept[index] for index in chosen])
    beside = pairs.plain.cpu if threads == 1 else pairs.plain.wall
    original = read_graph(artefact.entry)
    kernels = build_kernels(trace, original, read_graph(folder / child.OPTIMISED))
    peak, held = arena_bytes(whole)
    return replace(
        measured,
        kernels=kernels,
        profiled=percentiles([us / 1000 for us in trace.whole_us]),
        beside=percentiles([beside[index] for index in chosen]),
        memory=msgspec.structs.replace(
            measured.memory, weights=weight_bytes(original), arena_peak=peak, arena_held=held
        ),
        provider=recorded.provider,
        interrupted=interrupted,
    )


def kept_runs(total: int, settled: Sequence[int], block_runs: Sequence[int]) -> list[int]:
    """Indices of the runs that count: not the warm-up, and not those before each block, which find cold caches."""
    at = total - sum(block_runs) - sum(settled)  # runs before the first block
    kept: list[int] = []
    for before, count in zip(settled, block_runs, strict=True):
        kept += range(at + before, at + before + count)
        at += before + count
    return kept


def _energy(measured: _Measured, remarks: list[str]) -> EnergyUse | None:
    """Energy above idle; null, with a remark, where no meter gave enough."""
    idle, active = measured.plain.idle, measured.plain.active
    if measured.meter is None or idle is None or active is None:
        return None
    try:
        quiet = integrate(measured.samples, idle.begin_s, idle.end_s)
        busy = integrate(measured.samples, active.begin_s, active.end_s)
    except EnergyError as error:
        remarks.append(f"no energy from {measured.meter}: {error}")
        return None
    return measured_energy(measured.meter, quiet, busy, active.runs)


def _condition(answer: child.Answer, load: float | None, threads: int) -> Condition:
    first, last = answer.states[0], answer.states[-1]
    used = None
    if answer.machine_ticks is not None:
        used = usage(answer.machine_ticks, own_s=answer.own_s, ticks_per_s=system.ticks_per_second())
    contention = percentiles(answer.wall_ms).p50 / percentiles(answer.cpu_ms).p50
    heat = [state.temperature_c for state in answer.states if state.temperature_c is not None]
    return Condition(
        machine=system.machine_name(),
        cpu=system.cpu_name(),
        cores=len(system.cores()) or None,
        load_1m=load,
        steal_share=used.steal if used else None,
        other_share=used.other if used else None,
        contention=contention if threads == 1 else None,
        throttled=system.throttling(first, last),
        clock_before_hz=first.clock_hz,
        clock_after_hz=last.clock_hz,
        governor=system.governor(),
        temperature_before_c=first.temperature_c,
        temperature_max_c=max(heat, default=None),
    )


def _status(measured: _Measured, condition: Condition, threads: int) -> tuple[Status, tuple[str, ...]]:
    """`judge`, and what only the processors' shares tell; a quiet run without kernels is incomplete."""
    status, why = judge(condition, cov_of_repeats=repeat_cov(measured.plain.cpu_ms) if threads == 1 else None)
    more = []
    if condition.steal_share is not None and condition.steal_share > STEAL_LIMIT:
        more.append(f"the hypervisor took {condition.steal_share:.0%} of the processors (limit {STEAL_LIMIT:.0%})")
    if threads > 1 and condition.other_share is not None and condition.other_share > OTHER_LIMIT:
        more.append(f"other processes used {condition.other_share:.0%} of the processors (limit {OTHER_LIMIT:.0%})")
    if measured.interrupted:
        more.append("single kernels were interrupted by other processes: their times are too long")
    if more and status == "ok":
        status = "noisy"
    if status == "ok" and not measured.kernels:
        status = "incomplete"
    return status, (*why, *more)


def _memory(answer: child.Answer) -> MemoryUse:
    """Of the plain process: what it grew by when the model came."""
    if answer.rss_peak is None or answer.rss_bare is None:
        return MemoryUse()
    return MemoryUse(rss_bare=answer.rss_bare, rss_peak=answer.rss_peak - answer.rss_bare)


def _settings(artefact: Artefact, threads: int, provider: str | None) -> EngineSettings:
    from importlib.metadata import PackageNotFoundError, version

    engine = artefact.manifest.engine
    try:
        found = version(_DISTRIBUTIONS.get(engine.name, engine.name))
    except PackageNotFoundError:
        found = "unknown"
    # The CPU provider is the engine's own kernels, which the schema writes as null.
    own = None if provider == "CPUExecutionProvider" else provider
    return EngineSettings(
        name=engine.name, version=found, optimisation=engine.optimisation, threads=threads, provider=own
    )
