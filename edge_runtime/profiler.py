"""Measure an artefact on this machine: whole runs, single kernels, memory, energy, and what disturbed the measurement.

Whole runs carry no instrumentation; kernels come from a run of their own, with the engine's profiler on. Each is a fresh
process, and the two take turns. In that of the kernels each instrumented run is the neighbour of a plain one: only these
are compared, so that a machine that slows down slows down for both.
"""

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path

import msgspec

from device_profiles.measurement import (
    Condition,
    EnergyUse,
    EngineSettings,
    Profile,
    Slice,
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
from edge_runtime.profile_meters import Meter, find_meter
from edge_runtime.profile_process import BLOCKS, MeasuringProcess, ProfilerError, take_turns
from edge_runtime.profile_runs import Measured, kernel_request, memory_of, read_kernels, read_pairs
from edge_runtime.profile_stats import percentiles, repeat_cov, usage

STEAL_LIMIT = 0.05  # share of all cores' time
OTHER_LIMIT = 0.10  # with more than one thread, where CPU time is not latency
KERNEL_RUNS = 50
_MOST_MINUTES = 24 * 60
_DISTRIBUTIONS = {
    "onnxruntime": "onnxruntime",
    "litert": "ai-edge-litert",
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
        ProfilerError: Options out of range, or a measuring process died or took too long.
        EnergyError: Stated figures, or the log of a meter, are not valid.
    """
    options = options or ProfileOptions()
    threads = threads_of(artefact, options)
    if threads < 1 or not 0 <= options.minutes < _MOST_MINUTES:
        raise ProfilerError(
            f"Wanted at least one thread and 0 to {_MOST_MINUTES} minutes, found {threads} and {options.minutes:g}."
        )
    if options.power is not None:
        stated_energy(options.power, None)  # wrong text is said before anything runs
    load = system.load_1m()
    measured = _run(artefact, options, threads, on_step)
    return assemble(artefact, options, threads, measured, load)


def threads_of(artefact: Artefact, options: ProfileOptions) -> int:
    """The options' number, else the manifest's."""
    return artefact.manifest.engine.threads if options.threads is None else options.threads


def assemble(
    artefact: Artefact, options: ProfileOptions, threads: int, measured: Measured, load: float | None
) -> Profile:
    """The profile of what the processes gave.

    Args:
        artefact: What ran.
        options: Under which it ran.
        threads: Of the engine.
        measured: By the processes and the meter.
        load: Of the machine before that, over one minute.

    Raises:
        EnergyError, ProfileError: Figures that cannot be.
    """
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
        hook_ms=measured.hook_ms,
        init_ms=answer.init_ms,
        first_ms=answer.first_ms,
        kernels=kernels,
        memory=measured.memory,
        energy=stated_energy(options.power, whole.p50) if options.power is not None else energy,
        condition=condition,
        sustained=tuple(
            Slice(
                begin_s=one.begin_s,
                seconds=one.seconds,
                p50=one.p50_ms,
                p90=one.p90_ms,
                temperature_c=one.temperature_c,
            )
            for one in answer.sustained
        ),
        status=status,
        remarks=(*why, *remarks),
    )
    return check_profile(profile)


def _run(artefact: Artefact, options: ProfileOptions, threads: int, on_step: Callable[[str], None]) -> Measured:
    """The plain process, the one with the engine's profiler where there is one, and a meter meanwhile."""
    meter = find_meter() if options.power is None and options.power_csv is None else None
    metered = meter is not None or options.power_csv is not None
    plain = msgspec.structs.replace(
        make_request(artefact, options, threads, BLOCKS),
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
            return Measured(answer, samples, name, memory=memory_of(answer))
        request = kernel_request(plain, runs=KERNEL_RUNS // BLOCKS)
        on_step("whole runs and single kernels in turn")
        with MeasuringProcess(request, second) as other:
            other.wait_ready()
            take_turns(process, other)
            recorded = other.finish()
        answer, samples, name = _finish_plain(process, meter, options.power_csv)
        return read_kernels(
            artefact, second, recorded, Measured(answer, samples, name, memory=memory_of(answer)), threads
        )


def make_request(artefact: Artefact, options: ProfileOptions, threads: int, blocks: int) -> child.Request:
    """Plain runs, a share of them in each block."""
    return child.Request(
        artefact=str(artefact.folder.resolve()),
        mode="plain",
        threads=threads,
        runs=-(-options.runs // blocks),
        seconds=options.seconds / blocks,
        limit_s=options.limit_s / blocks,
        minutes=options.minutes,
    )


def _run_kernels(artefact: Artefact, plain: child.Request, folder: Path, threads: int) -> Measured:
    """One process alone: what a calibration needs of many networks."""
    with MeasuringProcess(kernel_request(plain, runs=plain.runs), folder) as process:
        process.wait_ready()
        take_turns(process, None)
        recorded = process.finish()
    return read_pairs(artefact, folder, recorded, threads, range(len(recorded.block_runs)))


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


def _energy(measured: Measured, remarks: list[str]) -> EnergyUse | None:
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


def _status(measured: Measured, condition: Condition, threads: int) -> tuple[Status, tuple[str, ...]]:
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


def _settings(artefact: Artefact, threads: int, provider: str | None) -> EngineSettings:
    from importlib.metadata import PackageNotFoundError, version

    engine = artefact.manifest.engine
    # Without the package tflite-micro its integers come from LiteRT's reference kernels.
    stands_in = engine.name == "tflite-micro" and find_spec("tflite_micro") is None
    distribution = "ai-edge-litert" if stands_in else _DISTRIBUTIONS.get(engine.name, engine.name)
    try:
        found = version(distribution)
    except PackageNotFoundError:
        found = "unknown"
    # The CPU provider is the engine's own kernels, which the schema writes as null.
    own = None if provider == "CPUExecutionProvider" else provider
    return EngineSettings(
        name=engine.name, version=found, optimisation=engine.optimisation, threads=threads, provider=own
    )
