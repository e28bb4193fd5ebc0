"""Draw memory over the schedule: whole layers against the chosen plan, as SVG and PNG."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from split.patch import EdgeKind, Plan
from split.patch_memory import MemoryCurve, layerwise_curve, plan_curve

LAYERWISE = "#b8bec7"
CHOSEN = "#2f6db5"
LIMIT = "#b3372f"
KIND_COLOURS = {
    EdgeKind.LAYER: "#8a93a0",
    EdgeKind.STREAM: "#2f6db5",
    EdgeKind.TILE: "#d98324",
    EdgeKind.PATCH: "#4b9a5f",
}


def draw_memory(plan: Plan, stem: Path, *, limits: Mapping[str, int] | None = None) -> tuple[Path, Path]:
    """Write ``stem``.svg and ``stem``.png.

    Args:
        plan: The chosen plan.
        stem: Path without suffix; its folder must exist.
        limits: Further horizontal lines, label to bytes (a board's SRAM, another runtime's arena).

    Returns:
        The SVG and the PNG; equal plans give equal SVG bytes.
    """
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    axes = figure.add_subplot()
    _draw_curves(axes, layerwise_curve(plan.graph), plan_curve(plan), plan)
    for label, size in (limits or {}).items():
        _draw_limit(axes, f"{label} {size / 1000:.1f} kB", size)
    axes.legend(loc="upper right", fontsize=8, frameon=False)
    svg, png = stem.with_suffix(".svg"), stem.with_suffix(".png")
    with matplotlib.rc_context({"svg.hashsalt": "headtail", "svg.fonttype": "none"}):
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": "headtail"})
    figure.savefig(png, format="png", dpi=120)
    return svg, png


_AT_RIGHT: dict[str, Any] = {
    "xycoords": ("axes fraction", "data"),
    "ha": "right",
    "va": "bottom",
    "fontsize": 8,
}


def _draw_curves(axes: Axes, layers: MemoryCurve, chosen: MemoryCurve, plan: Plan) -> None:
    label = f"whole layers, peak {layers.peak_bytes / 1000:.1f} kB"
    axes.fill_between(*_outline(layers), step="pre", color=LAYERWISE, linewidth=0, label=label)
    label = f"this plan, peak {chosen.peak_bytes / 1000:.1f} kB, {plan.mac_factor:.3f} x MACs"
    axes.fill_between(*_outline(chosen), step="pre", color=CHOSEN, alpha=0.85, linewidth=0, label=label)
    axes.axhline(plan.arena_bytes / 1000, color="black", linewidth=1, linestyle="--")
    axes.annotate(f"arena {plan.arena_bytes / 1000:.1f} kB", (1, plan.arena_bytes / 1000), **_AT_RIGHT)
    _draw_segments(axes, chosen, plan)
    axes.set_xlabel("multiply-accumulates done (million)")
    axes.set_ylabel("live activations and scratch (kB)")
    axes.set_title(f"{plan.graph.name}: memory over the schedule, input {plan.input_mode.value}", fontsize=10)
    axes.set_xlim(0, max(layers.macs[-1], chosen.macs[-1], 1) / 1e6)
    axes.set_ylim(0, None)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_limit(axes: Axes, text: str, size: int) -> None:
    """A line at the limit, or only its name in the legend if that would flatten the curves."""
    top = axes.get_ylim()[1]
    if size / 1000 <= 1.5 * top:
        axes.axhline(size / 1000, color=LIMIT, linewidth=1, linestyle=":", label=text)
        axes.set_ylim(0, max(top, 1.08 * size / 1000))
    else:
        axes.plot([], [], color=LIMIT, linewidth=1, linestyle=":", label=f"{text} (above)")


def _outline(curve: MemoryCurve) -> tuple[Any, Any]:
    """Corners of the curve in million MACs and kB."""
    start = np.concatenate([[0], curve.macs]) / 1e6
    return start, np.concatenate([curve.live_bytes[:1], curve.live_bytes]) / 1000


def _draw_segments(axes: Axes, chosen: MemoryCurve, plan: Plan) -> None:
    """A strip under the axis that shows the kind of every segment."""
    starts = [0 if first == 0 else int(chosen.macs[first - 1]) for first in chosen.borders]
    ends = [*starts[1:], int(chosen.macs[-1])]
    seen = set()
    for segment, start, end in zip(plan.segments, starts, ends, strict=True):
        label = None if segment.kind in seen else f"{segment.kind.value} segment"
        seen.add(segment.kind)
        colour = KIND_COLOURS[segment.kind]
        axes.axvspan(start / 1e6, end / 1e6, ymax=0.025, color=colour, linewidth=0.4, ec="white", label=label)
