"""A profile in words, for terminals without any library: the facts as pairs, and the kernels that cost most."""

from collections.abc import Sequence

from device_profiles.measurement import Condition, EnergyUse, KernelTime, Percentiles, Profile, Slice

_PLUMBING = ("QuantizeLinear", "DequantizeLinear")
SHOWN = 12
_MINUTE_S = 60.0


def facts(profile: Profile) -> list[tuple[str, str]]:
    """What was measured, as names and texts; a figure that nobody measured is said to be unknown."""
    unit = profile.unit
    engine, memory = profile.engine, profile.memory
    rows = [
        ("machine", _machine(profile)),
        ("engine", f"{engine.name} {engine.version}, optimisation {engine.optimisation}, {engine.threads} thread(s)"),
        ("status", profile.status if profile.status == "ok" else f"{profile.status}: not used for planning"),
        *[("remark", remark) for remark in profile.remarks],
        ("whole", _latency(profile.whole, unit)),
    ]
    if profile.whole_cpu is not None:
        rows.append(("whole, CPU time", _latency(profile.whole_cpu, unit)))
    if profile.init_ms is not None and profile.first_ms is not None:
        rows.append(("opening, first run", f"{profile.init_ms:.1f} ms, {profile.first_ms:.2f} ms"))
    if profile.kernels:
        rows.append(("kernels", _kernels(profile)))
        rows.append(
            (
                "unaccounted",
                f"{format_time(profile.unaccounted, unit)} {unit} between the kernels' sum and the plain run",
            )
        )
    if profile.whole_profiled is not None:
        rows.append(("instrumented run", _instrumented(profile, profile.whole_profiled)))
    sizes = (
        ("weights", memory.weights),
        ("arena", memory.arena_peak),
        ("process growth", memory.rss_peak),
        ("bare process", memory.rss_bare),
        ("SRAM", memory.sram_peak),
        ("stack", memory.stack_peak),
        ("flash", memory.flash),
    )
    rows.append(("memory", ", ".join(f"{name} {_size(size)}" for name, size in sizes if size is not None) or "unknown"))
    if profile.unit != "instructions":  # an emulator has neither a meter nor a temperature
        rows += [("energy", energy_text(profile.energy)), ("condition", _condition(profile.condition))]
    rows += [
        (_when(one), f"p50 {one.p50:.3f}, p90 {one.p90:.3f} {unit}, {_degrees(one.temperature_c)}")
        for one in profile.sustained
    ]
    return rows


def describe(profile: Profile) -> str:
    """The facts and the kernels that take most time, as plain text."""
    lines = [f"{profile.model} ({profile.precision}) on {profile.board}"]
    lines += [f"  {name:<18} {text}" for name, text in facts(profile)]
    if profile.kernels:
        lines.append(f"  {'share':>6} {'p50 ' + profile.unit:>10} {'MAC':>12}  kernel and what it computes")
    total = profile.kernel_sum
    for kernel in costliest(profile.kernels):
        share = kernel.latency.p50 / total
        lines.append(
            f"  {share:>6.1%} {format_time(kernel.latency.p50, profile.unit):>10} {kernel.macs:>12,}  {kernel.op or ''} {label(kernel)}"
        )
    return "\n".join(lines) + "\n"


def costliest(kernels: Sequence[KernelTime], count: int = SHOWN) -> list[KernelTime]:
    """The kernels with the longest median, longest first."""
    return sorted(kernels, key=lambda kernel: -kernel.latency.p50)[:count]


def label(kernel: KernelTime) -> str:
    """The user's names for what a kernel computes, without the quantisation around it."""
    names = [name for name in kernel.nodes if not name.split("/")[0].endswith(_PLUMBING)] or list(kernel.nodes)
    return " + ".join(names) if names else f"{kernel.name} (the engine's own)"


def energy_text(energy: EnergyUse | None) -> str:
    """Energy in words; unknown where nobody measured or stated it."""
    if energy is None:
        return "unknown: no meter on this machine (state figures with --power, or log a meter with --power-csv)"
    parts = [f"idle {energy.idle_w:.2f} W, active {energy.active_w:.2f} W"]
    if energy.tx_w is not None:
        parts.append(f"sending {energy.tx_w:.2f} W")
    if energy.mj_per_run is not None:
        parts.append(f"{energy.mj_per_run:.2f} mJ a run above idle")
    if energy.origin == "stated":
        return f"stated by the user, not measured: {', '.join(parts)}"
    return f"{energy.provider}: {', '.join(parts)} ({energy.samples} samples, {energy.dropped} missing)"


def _latency(found: Percentiles, unit: str) -> str:
    if found.runs == 1:  # an exact count
        return f"{format_time(found.p50, unit)} {unit}"
    p50, p90, p99 = (format_time(one, unit) for one in (found.p50, found.p90, found.p99))
    return f"p50 {p50}, p90 {p90}, p99 {p99} {unit} over {found.runs} runs"


def format_time(value: float, unit: str) -> str:
    """Milliseconds to three places, instructions whole."""
    return f"{value:,.0f}" if unit == "instructions" else f"{value:.3f}"


def _size(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 1e5 else f"{count:,} B"


def _kernels(profile: Profile) -> str:
    whole = profile.kernel_reference.p50
    return (
        f"{len(profile.kernels)}, together {format_time(profile.kernel_sum, profile.unit)} {profile.unit} "
        f"({profile.kernel_sum / whole - 1:+.1%} of the plain run), {profile.mapped_share:.1%} of it in nodes of your graph"
    )


def _when(part: Slice) -> str:
    """Minutes of a run that has them, else seconds; a slice ends with the run that begins in it."""
    if part.seconds >= _MINUTE_S:
        return f"minute {1 + round(part.begin_s / _MINUTE_S)}"
    return f"{part.begin_s:.1f} to {part.begin_s + part.seconds:.1f} s"


def _instrumented(profile: Profile, found: Percentiles) -> str:
    parts = [f"p50 {format_time(found.p50, profile.unit)} {profile.unit}; in no other figure"]
    if profile.whole_beside is not None:
        parts.append(f"plain runs between them {profile.whole_beside.p50:.3f} {profile.unit}")
    if profile.hook_ms is not None:
        parts.append(f"{1000 * profile.hook_ms:.1f} us of instrumentation subtracted from each kernel")
    return ", ".join(parts)


def _machine(profile: Profile) -> str:
    condition = profile.condition
    known = [condition.machine, condition.cpu, f"{condition.cores} cores" if condition.cores else None]
    mode = f"power mode {profile.power_mode}" if profile.power_mode else None
    return ": ".join(part for part in (profile.board, ", ".join(one for one in (*known, mode) if one)) if part)


def _condition(condition: Condition) -> str:
    parts = []
    if condition.contention is not None:
        parts.append(f"wall / CPU {condition.contention:.2f}")
    if condition.steal_share is not None:
        parts.append(f"stolen {condition.steal_share:.0%}")
    if condition.other_share is not None:
        parts.append(f"other processes {condition.other_share:.0%}")
    if condition.load_1m is not None:
        parts.append(f"load {condition.load_1m:.1f}")
    if condition.clock_before_hz is not None and condition.clock_after_hz is not None:
        parts.append(f"clock {condition.clock_before_hz / 1e6:.0f} -> {condition.clock_after_hz / 1e6:.0f} MHz")
    parts.append(f"governor {condition.governor or 'unknown'}")
    most = condition.temperature_max_c
    parts.append(_degrees(condition.temperature_before_c) + ("" if most is None else f", at most {_degrees(most)}"))
    parts.append(f"throttled: {', '.join(condition.throttled) or 'no flag seen'}")
    return ", ".join(parts)


def _degrees(value: float | None) -> str:
    return "temperature unknown" if value is None else f"{value:.1f} °C"
