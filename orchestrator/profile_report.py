"""A profile as one HTML page: bars of the kernels, the roofline, memory, and the sustained run where there was one."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from device_profiles.measurement import KernelTime, Profile
from edge_runtime.profile_text import costliest, facts, label

BARS = 40
COLOURS = {
    "conv": "#2a6f97",
    "pointwise": "#61a5c2",
    "depthwise": "#e9a03b",
    "matmul": "#5b8c5a",
    "pool": "#8d99ae",
    "elementwise": "#c44536",
    "layout": "#9d4edd",
    "other": "#6c757d",
}


@dataclass(frozen=True)
class Point:
    """A kernel on the roofline."""

    kind: str
    intensity: float  # MAC a byte
    rate: float  # MAC/s


@dataclass(frozen=True)
class Roof:
    """The best that this very run reached: not the board's peak."""

    macs_per_s: float
    bytes_per_s: float

    @property
    def ridge(self) -> float:
        """MAC a byte at which work, not memory, becomes the limit."""
        return self.macs_per_s / self.bytes_per_s

    def limit(self, intensity: float) -> float:
        """MAC/s that a kernel of this intensity could reach."""
        return min(self.macs_per_s, intensity * self.bytes_per_s)


def roofline(kernels: Sequence[KernelTime]) -> tuple[list[Point], Roof | None]:
    """Points of the kernels that multiply, and the roof over all; no roof where none multiplies."""
    points = [
        Point(one.kind, one.macs / one.bytes, 1000 * one.macs / one.latency.p50)
        for one in kernels
        if one.macs > 0 and one.bytes > 0
    ]
    if not points:
        return [], None
    bandwidth = max(1000 * one.bytes / one.latency.p50 for one in kernels)
    return points, Roof(max(point.rate for point in points), bandwidth)


def render(profile: Profile) -> str:
    """The page as HTML text."""
    environment = Environment(
        loader=PackageLoader("orchestrator"),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    points, roof = roofline(profile.kernels)
    return environment.get_template("profile.html.j2").render(
        profile=profile,
        facts=facts(profile),
        kernels=[(kernel, label(kernel), _bound(kernel, roof)) for kernel in profile.kernels],
        bars=_data_uri(_plot_bars(profile)) if profile.kernels else None,
        roofline=_data_uri(_plot_roofline(points, roof)) if roof is not None else None,
        memory=_data_uri(_plot_memory(profile)) if _sizes(profile) else None,
        sustained=_data_uri(_plot_sustained(profile)) if profile.sustained else None,
    )


def _bound(kernel: KernelTime, roof: Roof | None) -> str:
    """What limits a kernel by the roof of this run, and how near it comes."""
    if roof is None or not kernel.bytes:
        return ""
    if not kernel.macs:
        return f"memory, {1000 * kernel.bytes / kernel.latency.p50 / roof.bytes_per_s:.0%}"
    intensity = kernel.macs / kernel.bytes
    reached = 1000 * kernel.macs / kernel.latency.p50 / roof.limit(intensity)
    return f"{'memory' if intensity < roof.ridge else 'work'}, {reached:.0%}"


def _plot_bars(profile: Profile) -> bytes:
    shown = [kernel for kernel in profile.kernels if kernel in costliest(profile.kernels, BARS)]  # in running order
    figure, axes = _axes(0.2 * len(shown) + 1.4)
    names = [f"{index}  {label(kernel)[:48]}" for index, kernel in enumerate(shown)]
    axes.barh(
        names[::-1],
        [kernel.latency.p50 for kernel in shown][::-1],
        xerr=[[0.0] * len(shown), [kernel.latency.p90 - kernel.latency.p50 for kernel in shown][::-1]],
        color=[COLOURS.get(kernel.kind, "#6c757d") for kernel in shown][::-1],
        error_kw={"elinewidth": 0.6, "ecolor": "#52606d"},
    )
    axes.tick_params(axis="y", labelsize=6)
    axes.margins(y=0.01)
    axes.set_xlim(0, 1.6 * max(kernel.latency.p50 for kernel in shown))  # lines of disturbed kernels leave the picture
    axes.set_xlabel(f"{profile.unit}, median (line: p90)")
    kinds = dict.fromkeys(kernel.kind for kernel in shown)
    handles = [axes.barh([names[0]], [0], color=COLOURS.get(kind, "#6c757d"), label=kind) for kind in kinds]
    axes.legend(handles=handles, fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return _png(figure)


def _plot_roofline(points: Sequence[Point], roof: Roof) -> bytes:
    figure, axes = _axes(4.0)
    for kind in dict.fromkeys(point.kind for point in points):
        chosen = [point for point in points if point.kind == kind]
        axes.scatter(
            [point.intensity for point in chosen],
            [point.rate / 1e9 for point in chosen],
            s=14,
            color=COLOURS.get(kind, "#6c757d"),
            label=kind,
        )
    low = min(min(point.intensity for point in points), roof.ridge) / 2
    high = max(max(point.intensity for point in points), roof.ridge) * 2
    line = [low, roof.ridge, high]
    axes.plot(line, [roof.limit(x) / 1e9 for x in line], color="#52606d", linewidth=1, label="best of this run")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("MAC a byte")
    axes.set_ylabel("GMAC/s")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=7, frameon=False)
    return _png(figure)


def _sizes(profile: Profile) -> list[tuple[str, int]]:
    memory = profile.memory
    sizes = (
        ("weights", memory.weights),
        ("arena peak", memory.arena_peak),
        ("process growth", memory.rss_peak),
        ("bare process", memory.rss_bare),
        ("SRAM", memory.sram_peak),
        ("stack", memory.stack_peak),
        ("flash", memory.flash),
    )
    return [(name, size) for name, size in sizes if size is not None]


def _plot_memory(profile: Profile) -> bytes:
    sizes = _sizes(profile)
    figure, axes = _axes(0.35 * len(sizes) + 0.8)
    bars = axes.barh([name for name, _ in sizes][::-1], [size / 1e6 for _, size in sizes][::-1], color="#2a6f97")
    axes.bar_label(bars, fmt="%.2f", fontsize=7, padding=2)
    axes.set_xlabel("MB (10^6 B)")
    return _png(figure)


def _plot_sustained(profile: Profile) -> bytes:
    figure, axes = _axes(3.0)
    seconds = [one.begin_s + one.seconds for one in profile.sustained]
    axes.plot(seconds, [one.p50 for one in profile.sustained], marker="o", label="p50")
    axes.plot(seconds, [one.p90 for one in profile.sustained], marker="o", label="p90")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("seconds of the sustained run, up to the end of each slice")
    axes.set_ylabel(profile.unit)
    axes.legend(fontsize=8, frameon=False)
    heat = [
        (one.begin_s + one.seconds, one.temperature_c) for one in profile.sustained if one.temperature_c is not None
    ]
    if heat:
        other = axes.twinx()
        other.plot([x for x, _ in heat], [y for _, y in heat], color="#c44536", linestyle="--")
        other.set_ylabel("°C")
    return _png(figure)


def _axes(height_inches: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8.5, height_inches))
    return figure, figure.subplots()


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=120, bbox_inches="tight")
    return stream.getvalue()


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
