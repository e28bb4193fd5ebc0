"""The break-even chart: latency of the best plan of each kind over link rates. PNG or SVG by the file's name."""

from collections.abc import Sequence
from pathlib import Path

from device_profiles.errors import EdgeError, MissingDependencyError
from device_profiles.link import Link
from split.plan import price
from split.plan_heads import Candidate
from split.plan_sweep import GRID_RATES

_KINDS = {"local": "whole model on the device", "split": "best split", "remote": "picture to the host"}


class ChartError(EdgeError):
    """A chart cannot be drawn."""


def draw(candidates: Sequence[Candidate], link: Link, path: Path, *, title: str) -> None:
    """Write the chart.

    Args:
        candidates: Those that keep the constraints.
        link: Round trip and costs; the rate is varied.
        path: Ends in .png or .svg.
        title: Above the chart.

    Raises:
        ChartError: Another ending.
        MissingDependencyError: matplotlib is not installed.
    """
    if path.suffix not in (".png", ".svg"):
        raise ChartError(f"Wanted a chart named .png or .svg, found {path.name!r}.")
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "Wanted matplotlib for --chart, found none: pip install 'headtail[report]'."
        ) from error
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for kind, label in _KINDS.items():
        own = [one for one in candidates if one.choice.kind == kind]
        if own:
            best = [min(price(one, link.at_rate(rate)).p50_ms for one in own) for rate in GRID_RATES]
            axes.loglog([rate * 8e-6 for rate in GRID_RATES], best, label=label)
    axes.axvline(link.up_bytes_per_s * 8e-6, color="grey", linestyle=":", label=f"this link, {link}")
    axes.set(xlabel="link rate up, Mbit/s", ylabel="latency p50, ms", title=title)
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
    figure.savefig(path)
