"""Measure an artefact on this machine: whole runs, single kernels, memory, energy, and what disturbed the measurement.

Every measurement runs in a fresh process. Whole runs carry no instrumentation; kernels come from a run of their own.
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import msgspec

from device_profiles.errors import EdgeError
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
from edge_runtime.profile_meters import find_meter
from edge_runtime.profile_stats import percentiles, repeat_cov, usage
from edge_runtime.profile_trace import read_trace
from edge_runtime.session import EngineError

STEAL_LIMIT = 0.05  # share of all cores' time
OTHER_LIMIT = 0.10  # with more than one thread, where CPU time is not latency
KERNEL_RUNS = 50
KERNEL_WARM_UP = 5
_SPARE_S = 300.0
_DISTRIBUTIONS = {
    "onnxruntime": "onnxruntime",
    "litert": "ai-edge-litert",
    "tflite-micro": "ai-edge-litert",
    "tflite-runtime": "tflite-runtime",
    "tensorrt": "tensorrt",
}


class ProfilerError(EdgeError):
    """A measurement did not come to its end."""


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
    on_step("whole runs")
    answer, samples, meter = _run_plain(artefact, options, threads)
    remarks: list[str] = []
    energy = _energy(answer, samples, meter, options, remarks)
    kernels: tuple[KernelTime, ...] = ()
    profiled: Percentiles | None = None
    memory = MemoryUse(rss_bare=answer.rss_bare, rss_peak=_growth(answer))
    provider = None
    if artefact.manifest.engine.name == "onnxruntime":
        on_step("single kernels")
        kernels, profiled, memory, provider = _run_kernels(artefact, threads, memory)
    else:
        remarks.append(
            f"no times of single kernels: {artefact.manifest.engine.name} gives none to Python; the figures are of the whole"
        )
    condition = _condition(answer, load, threads)
    status, why = _status(answer, condition, threads, complete=bool(kernels))
    whole = percentiles(answer.wall_ms)
    profile = Profile(
        board=system.board_id(),
        model=artefact.manifest.model.name,
        model_sha256=artefact.manifest.files_by_path[artefact.manifest.entry].sha256,
        precision=artefact.manifest.precision,
        engine=_settings(artefact, threads, provider),
        power_mode=system.power_mode(),
        created=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        whole=whole,
        whole_cpu=percentiles(answer.cpu_ms) if threads == 1 else None,
        whole_profiled=profiled,
        init_ms=answer.init_ms,
        first_ms=answer.first_ms,
        kernels=kernels,
        memory=memory,
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


def _run_plain(
    artefact: Artefact, options: ProfileOptions, threads: int
) -> tuple[child.Answer, list[Sample], str | None]:
    """The plain run, and what a meter recorded meanwhile."""
    meter = find_meter() if options.power is None and options.power_csv is None else None
    metered = meter is not None or options.power_csv is not None
    request = child.Request(
        artefact=str(artefact.folder.resolve()),
        mode="plain",
        threads=threads,
        runs=options.runs,
        seconds=options.seconds,
        limit_s=options.limit_s,
        minutes=options.minutes,
        idle_s=options.energy_s if metered else 0.0,
        active_s=options.energy_s,
    )
    with tempfile.TemporaryDirectory(prefix="headtail-profile-") as folder:
        if meter is None:
            answer = _measure(request, Path(folder))
            csv = options.power_csv
            return answer, read_meter_csv(csv) if csv is not None else [], "usb-csv" if csv is not None else None
        meter.start()
        try:
            answer = _measure(request, Path(folder))
        finally:
            samples = meter.stop()
    return answer, samples, meter.name


def _run_kernels(
    artefact: Artefact, threads: int, memory: MemoryUse
) -> tuple[tuple[KernelTime, ...], Percentiles, MemoryUse, str | None]:
    """The run with ONNX Runtime's profiler on, mapped to the names of the artefact's graph."""
    request = child.Request(
        artefact=str(artefact.folder.resolve()),
        mode="kernels",
        threads=threads,
        warm_up=KERNEL_WARM_UP,
        runs=KERNEL_RUNS,
        limit_s=30.0,
    )
    with tempfile.TemporaryDirectory(prefix="headtail-profile-") as folder:
        answer = _measure(request, Path(folder))
        whole = read_trace(Path(folder, child.TRACE))
        trace = whole.skip(min(KERNEL_WARM_UP, len(whole.runs) - 1))
        original = read_graph(artefact.entry)
        kernels = build_kernels(trace, original, read_graph(Path(folder, child.OPTIMISED)))
    peak, held = arena_bytes(whole)
    memory = msgspec.structs.replace(memory, weights=weight_bytes(original), arena_peak=peak, arena_held=held)
    return kernels, percentiles([us / 1000 for us in trace.whole_us]), memory, answer.provider


def _measure(request: child.Request, folder: Path) -> child.Answer:
    """Ask a fresh process.

    Raises:
        EngineError: The engine refused the model there.
        ProfilerError: The process died or took too long.
    """
    (folder / child.REQUEST).write_bytes(msgspec.json.encode(request))
    command = [sys.executable, "-m", "edge_runtime.profile_child", str(folder)]
    limit_s = request.limit_s + 60 * request.minutes + request.idle_s + request.active_s + _SPARE_S
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired as error:
        raise ProfilerError(f"Wanted figures within {limit_s:.0f} s, found the process still measuring.") from error
    if done.returncode != 0:
        raise ProfilerError(
            f"Wanted figures from a fresh process, found exit status {done.returncode} (negative: killed, for lack of "
            f"memory?): {done.stderr.strip()[-800:]}"
        )
    answer = msgspec.json.decode((folder / child.ANSWER).read_bytes(), type=child.Answer)
    if answer.error is not None:
        raise EngineError(answer.error)
    return answer


def _energy(
    answer: child.Answer, samples: list[Sample], meter: str | None, options: ProfileOptions, remarks: list[str]
) -> EnergyUse | None:
    """Energy above idle; null, with a remark, where no meter gave enough."""
    if meter is None or answer.idle is None or answer.active is None:
        return None
    try:
        idle = integrate(samples, answer.idle.begin_s, answer.idle.end_s)
        active = integrate(samples, answer.active.begin_s, answer.active.end_s)
    except EnergyError as error:
        remarks.append(f"no energy from {meter}: {error}")
        return None
    return measured_energy(meter, idle, active, answer.active.runs)


def _condition(answer: child.Answer, load: float | None, threads: int) -> Condition:
    first, last = answer.states[0], answer.states[-1]
    used = None
    if answer.cpu_before is not None and answer.cpu_after is not None:
        used = usage(answer.cpu_before, answer.cpu_after, own_s=answer.own_s, ticks_per_s=system.ticks_per_second())
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


def _status(
    answer: child.Answer, condition: Condition, threads: int, *, complete: bool
) -> tuple[Status, tuple[str, ...]]:
    """`judge`, and what only the processors' shares tell; a quiet run without kernels is incomplete."""
    status, why = judge(condition, cov_of_repeats=repeat_cov(answer.cpu_ms) if threads == 1 else None)
    more = []
    if condition.steal_share is not None and condition.steal_share > STEAL_LIMIT:
        more.append(f"the hypervisor took {condition.steal_share:.0%} of the processors (limit {STEAL_LIMIT:.0%})")
    if threads > 1 and condition.other_share is not None and condition.other_share > OTHER_LIMIT:
        more.append(f"other processes used {condition.other_share:.0%} of the processors (limit {OTHER_LIMIT:.0%})")
    if more and status == "ok":
        status = "noisy"
    if status == "ok" and not complete:
        status = "incomplete"
    return status, (*why, *more)


def _growth(answer: child.Answer) -> int | None:
    if answer.rss_peak is None or answer.rss_bare is None:
        return None
    return answer.rss_peak - answer.rss_bare


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
