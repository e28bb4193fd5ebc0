"""Charts of the rate-accuracy study: accuracy over bytes of a frame."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from benchmarks.rows import RESULTS
from benchmarks.split.study_curves import Curves

CHARTS = RESULTS / "charts"
# Protocol a: label -> curve, and how it is drawn; BottleFit's points are of several channels and bits
_DRAWN = {
    "slim": ("slim", "s-"),
    "progressive, one stream": ("progressive_slow", "D-"),
    "BottleFit, 1, 2, 4 channels": ("bottlefit", "^"),
    "Entropic Student": ("entropic", "o-"),
    "sc2bench's Entropic Student": ("peer_fp", "o--"),
    "sc2bench's hyperprior": ("peer_mshp", "v--"),
}


def chart_a(curves: Mapping[tuple[str, str], Curves], whole: float | None, path: Path = CHARTS / "curves_a") -> None:
    """Protocol a, means over the seeds.

    Args:
        curves: By protocol and name.
        whole: Accuracy of the whole network in [0, 1]; null where it is not known.
        path: Without its ending.
    """
    figure, axes = accuracy_axes()
    for label, (name, style) in _DRAWN.items():
        seeds = curves["a", name].values()
        if seeds:
            points = np.mean([[(one.sizes.mean(), 100 * one.right.mean()) for one in some] for some in seeds], 0)
            axes.plot(*points[points[:, 0].argsort()].T, style, label=label)
    finish(figure, axes, whole, path)


def accuracy_axes() -> tuple[Figure, Axes]:
    """Bytes to the right, as logarithms, accuracy upwards."""
    figure = Figure(figsize=(7.5, 4.2))
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(LogFormatter())
    axes.xaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.5)))
    axes.set_xlabel("bytes of a frame, mean")
    axes.set_ylabel("accuracy, %")
    axes.grid(alpha=0.3, which="both")
    return figure, axes


def finish(figure: Figure, axes: Axes, whole: float | None, path: Path) -> None:
    """The unsplit network's accuracy, the legend, and the files: PNG and SVG, the same bytes each time."""
    if whole is not None:
        axes.axhline(100 * whole, color="#888888", linestyle=":", label="no split")
    axes.legend(fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    for kind in ("png", "svg"):
        metadata = {"Date": None} if kind == "svg" else None
        with rc_context({"svg.hashsalt": path.name}):
            figure.savefig(path.with_suffix(f".{kind}"), dpi=120, bbox_inches="tight", metadata=metadata)
