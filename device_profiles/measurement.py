"""What was measured of one model on one board: the schema of a profile, and the checks before a planner may use it.

A profile holds for one board, power mode, engine, version, optimisation level and number of threads: none of these may
be exchanged for another (the optimisation level alone doubles or halves a latency).
"""

import math
from pathlib import Path
from typing import Literal

import msgspec

from device_profiles.errors import EdgeError

PROFILE_SCHEMA = 1
MAX_PROFILE_BYTES = 8 << 20
MAX_KERNELS = 16384
CONTENTION_LIMIT = 1.1  # wall over CPU time, one thread; above it the machine was busy with something else

Status = Literal["ok", "noisy", "throttled", "incomplete"]
TimeUnit = Literal["ms", "instructions"]  # an emulator counts instructions, which are never milliseconds


class ProfileError(EdgeError):
    """A profile is not valid: a field is unknown, missing, or a time is not a positive finite number."""


class ProfileMismatchError(ProfileError):
    """A profile was taken with another board, engine, version, optimisation level, threads or power mode."""


class NoisyProfileError(ProfileError):
    """A profile is marked as disturbed: it is shown to users but no plan is made from it."""


class _Data(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of everything that crosses a file here."""


class EngineSettings(_Data, frozen=True, kw_only=True):
    """Under which engine the times hold."""

    name: str  # onnxruntime, litert, tensorrt, generated-c ..
    version: str
    optimisation: str = "all"
    threads: int = 1
    provider: str | None = None  # execution provider or delegate; null: the engine's own CPU kernels


class Percentiles(_Data, frozen=True, kw_only=True):
    """Latency over `runs` runs, in the profile's unit (ms; instructions on an emulator)."""

    p50: float
    p90: float
    p99: float
    runs: int
    mean: float | None = None
    p95: float | None = None
    cov: float | None = None  # standard deviation over mean, of the run times

    @property
    def p95_or_bound(self) -> float:
        """p95 where it was recorded, else p99, which it does not exceed."""
        return self.p99 if self.p95 is None else self.p95


class KernelTime(_Data, frozen=True, kw_only=True):
    """One kernel as the engine runs it: a fused group of operators of the user's graph."""

    name: str  # the engine's name for it
    nodes: tuple[str, ...]  # names of the graph's operators that it computes; empty: not attributed
    kind: str  # kernel class: conv, depthwise, pointwise, matmul, pool, elementwise ..
    macs: int
    bytes: int  # read and written: inputs, weights, outputs
    latency: Percentiles
    output: str | None = None  # name of the tensor that it makes
    op: str | None = None  # the engine's operator


class MemoryUse(_Data, frozen=True, kw_only=True):
    """Bytes, null where not measured. `rss_peak` is the growth over the bare process, in a fresh process."""

    rss_bare: int | None = None  # interpreter and engine before the model is opened
    arena_held: int | None = None  # what the engine's arena took from the system
    weights: int | None = None
    arena_peak: int | None = None
    rss_peak: int | None = None
    sram_peak: int | None = None
    stack_peak: int | None = None
    flash: int | None = None


class EnergyUse(_Data, frozen=True, kw_only=True):
    """Device energy. `origin` says how it is known; a figure that nobody measured or stated does not exist."""

    provider: str  # ina3221, tegrastats, usb-csv, powercap, stated
    origin: Literal["measured", "stated"]
    idle_w: float
    active_w: float
    tx_w: float | None = None
    mj_per_run: float | None = None  # idle subtracted
    samples: int = 0  # read while the model ran
    dropped: int = 0  # missing between them


class Condition(_Data, frozen=True, kw_only=True):
    """State of the board while measuring; null is unknown."""

    machine: str | None = None  # what the machine calls itself
    cpu: str | None = None
    cores: int | None = None
    load_1m: float | None = None  # before the run
    steal_share: float | None = None  # of all cores' time, taken by the hypervisor
    other_share: float | None = None  # of all cores' time, used by other processes
    contention: float | None = None  # wall p50 over CPU p50, one thread
    throttled: tuple[str, ...] = ()
    clock_before_hz: int | None = None
    clock_after_hz: int | None = None
    governor: str | None = None
    temperature_before_c: float | None = None
    temperature_max_c: float | None = None


class Slice(_Data, frozen=True, kw_only=True):
    """A part of a sustained run: a minute, less where the run is shorter than that."""

    begin_s: float  # since the sustained run began
    seconds: float
    p50: float
    p90: float
    temperature_c: float | None = None


class Profile(_Data, frozen=True, kw_only=True):
    """One model, measured on one board under one set of settings. `whole` and `kernels` come from separate runs."""

    schema: int = PROFILE_SCHEMA
    board: str
    model: str
    model_sha256: str
    precision: Literal["fp32", "fp16", "int8"]
    engine: EngineSettings
    power_mode: str | None = None
    unit: TimeUnit = "ms"
    created: str  # UTC, ISO 8601
    whole: Percentiles  # plain run
    whole_cpu: Percentiles | None = None  # CPU time of the plain run; null with several threads
    whole_profiled: Percentiles | None = None  # with per-kernel timing on: slower, only to judge the overhead
    whole_beside: Percentiles | None = None  # plain runs that took turns with the instrumented ones, one by one
    hook_ms: float | None = None  # what the engine's profiler added to each kernel's time; subtracted in `kernels`
    init_ms: float | None = None
    first_ms: float | None = None
    kernels: tuple[KernelTime, ...] = ()
    memory: MemoryUse = MemoryUse()
    energy: EnergyUse | None = None
    condition: Condition = Condition()
    sustained: tuple[Slice, ...] = ()
    status: Status = "ok"
    remarks: tuple[str, ...] = ()

    @property
    def kernel_sum(self) -> float:
        """Sum of the kernels' medians, in the profile's unit."""
        return math.fsum(kernel.latency.p50 for kernel in self.kernels)

    @property
    def unaccounted(self) -> float:
        """Plain run minus kernels, below zero when instrumentation cost more than was missing."""
        return self.kernel_reference.p50 - self.kernel_sum

    @property
    def kernel_reference(self) -> Percentiles:
        """The plain runs that kernels are compared with: their neighbours where there were any, else the CPU time."""
        return self.whole_beside or self.whole_cpu or self.whole

    @property
    def mapped_share(self) -> float:
        """Share of the kernel time that belongs to operators of the user's graph, 0..1."""
        total = self.kernel_sum
        return math.fsum(k.latency.p50 for k in self.kernels if k.nodes) / total if total else 0.0


def parse_profile(data: bytes) -> Profile:
    """Decode and check a profile.

    Raises:
        ProfileError: Too large, not JSON, an unknown field or schema, or a value out of range.
    """
    if len(data) > MAX_PROFILE_BYTES:
        raise ProfileError(f"Wanted a profile of at most {MAX_PROFILE_BYTES} B, found {len(data)} B.")
    try:
        profile = msgspec.json.decode(data, type=Profile)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProfileError(f"Wanted the fields of a profile, found: {error}. Run `headtail profile` again.") from error
    return check_profile(profile)


def load_profile(path: Path) -> Profile:
    """Read a profile.

    Raises:
        ProfileError: As `parse_profile`; the message names the file.
    """
    try:
        if path.stat().st_size > MAX_PROFILE_BYTES:
            raise ProfileError(f"Wanted at most {MAX_PROFILE_BYTES} B, found {path.stat().st_size} B.")
        return parse_profile(path.read_bytes())
    except OSError as error:
        raise ProfileError(f"Wanted a profile, found {error.strerror} at {path}.") from error
    except ProfileError as error:
        raise type(error)(f"{error} File: {path}") from error


def dump_profile(profile: Profile) -> bytes:
    """JSON with sorted keys, checked before it is written.

    Raises:
        ProfileError: As `check_profile`.
    """
    return msgspec.json.format(msgspec.json.encode(check_profile(profile), order="sorted"), indent=1) + b"\n"


def check_profile(profile: Profile) -> Profile:
    """Check what types alone cannot say; returns the profile.

    Raises:
        ProfileError: Another schema, a time that is NaN, infinite, negative or zero, a name twice, or too many kernels.
    """
    if profile.schema != PROFILE_SCHEMA:
        raise ProfileError(f"Wanted profile schema {PROFILE_SCHEMA}, found {profile.schema}. Profile the model again.")
    if len(profile.kernels) > MAX_KERNELS:
        raise ProfileError(f"Wanted at most {MAX_KERNELS} kernels, found {len(profile.kernels)}.")
    if profile.engine.threads < 1:
        raise ProfileError(f"Wanted at least 1 thread, found {profile.engine.threads}.")
    _check_latency("the whole model", profile.whole)
    for name in ("whole_cpu", "whole_profiled", "whole_beside"):
        latency = getattr(profile, name)
        if latency is not None:
            _check_latency(name, latency)
    if profile.hook_ms is not None and not (math.isfinite(profile.hook_ms) and profile.hook_ms >= 0):
        raise ProfileError(f"Wanted a finite hook_ms >= 0, found {profile.hook_ms}. Profile the model again.")
    owner: dict[str, str] = {}
    for kernel in profile.kernels:
        _check_kernel(kernel)
        for node in kernel.nodes:
            if node in owner:
                raise ProfileError(
                    f"Wanted each operator in one kernel, found {node!r} in {owner[node]!r} and {kernel.name!r}."
                )
            owner[node] = kernel.name
    _check_energy(profile.energy)
    contention = profile.condition.contention
    if contention is not None and not (math.isfinite(contention) and contention > 0):
        raise ProfileError(f"Wanted a positive contention, found {contention}.")
    return profile


_NEXT = {
    "incomplete": "Calibrate the board instead (headtail calibrate) and plan with --device-calibration or --host-calibration.",
    "noisy": "Stop other work on the board and profile again.",
    "throttled": "Cool the board, or let it rest, and profile again.",
}


def require_usable(profile: Profile, *, engine: EngineSettings, board: str, power_mode: str | None = None) -> Profile:
    """Refuse a profile that says nothing of the case at hand.

    Args:
        profile: Checked by `check_profile`.
        engine: What the plan will run on.
        board: Board id of the plan.
        power_mode: Null: whatever the profile has.

    Raises:
        ProfileMismatchError: Another board, engine, version, optimisation level, threads, provider or power mode, or
            instruction counts where milliseconds are wanted.
        NoisyProfileError: The profile is not marked `ok`.
    """
    pairs: list[tuple[str, object, object]] = [("board", board, profile.board)]
    pairs += [(name, getattr(engine, name), getattr(profile.engine, name)) for name in engine.__struct_fields__]
    if power_mode is not None:
        pairs.append(("power mode", power_mode, profile.power_mode))
    different = [f"{name} {found!r} instead of {wanted!r}" for name, wanted, found in pairs if wanted != found]
    if different:
        raise ProfileMismatchError(
            f"Wanted a profile of {profile.model} under the settings of the plan, found {', '.join(different)}. "
            "Profile it again under these settings."
        )
    if profile.unit != "ms":
        raise ProfileMismatchError(
            f"Wanted a profile in ms, found {profile.unit} of {profile.board}: an emulator's counts are no time."
        )
    if profile.status != "ok":
        why = "; ".join(profile.remarks) or "no remark"
        lasting = profile.status if profile.kernels else "incomplete"  # a quiet board would not bring kernels either
        raise NoisyProfileError(
            f"Wanted an undisturbed profile of {profile.model} on {board}, found status {profile.status!r} ({why}). {_NEXT[lasting]}"
        )
    return profile


def judge(condition: Condition, *, cov_of_repeats: float | None = None) -> tuple[Status, tuple[str, ...]]:
    """Status and remarks of a run from its circumstances.

    Args:
        condition: Of the board while measuring.
        cov_of_repeats: Coefficient of variation of the medians of repeats; above 0.05 a run is noisy.
    """
    if condition.throttled:
        return "throttled", (f"throttled: {', '.join(condition.throttled)}",)
    remarks = []
    if condition.contention is not None and condition.contention > CONTENTION_LIMIT:
        remarks.append(f"wall time is {condition.contention:.2f} times CPU time (limit {CONTENTION_LIMIT})")
    if cov_of_repeats is not None and cov_of_repeats > 0.05:
        remarks.append(f"medians of repeats vary by {100 * cov_of_repeats:.1f} % (limit 5 %)")
    return ("noisy" if remarks else "ok"), tuple(remarks)


def _check_latency(what: str, latency: Percentiles) -> None:
    for name in ("p50", "p90", "p99", "p95", "mean"):
        value = getattr(latency, name)
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ProfileError(f"Wanted a positive finite {name} of {what}, found {value}. Profile the model again.")
    order = (latency.p50, latency.p90, latency.p90 if latency.p95 is None else latency.p95, latency.p99)
    if list(order) != sorted(order):
        raise ProfileError(f"Wanted p50 <= p90 <= p95 <= p99 of {what}, found {order}.")
    if latency.runs < 1:
        raise ProfileError(f"Wanted at least 1 run of {what}, found {latency.runs}.")


def _check_kernel(kernel: KernelTime) -> None:
    _check_latency(f"kernel {kernel.name!r}", kernel.latency)
    if kernel.macs < 0 or kernel.bytes < 0:
        raise ProfileError(
            f"Wanted MACs and bytes >= 0, found {kernel.macs} and {kernel.bytes} in kernel {kernel.name!r}."
        )


def _check_energy(energy: EnergyUse | None) -> None:
    if energy is None:
        return
    for name in ("idle_w", "active_w", "tx_w", "mj_per_run"):
        value = getattr(energy, name)
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise ProfileError(f"Wanted a finite {name} >= 0 from {energy.provider}, found {value}.")
