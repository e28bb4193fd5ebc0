"""The demo's report: one HTML file with the pictures, the table and the plots inside."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from orchestrator.demo.photos import Photo, class_name, thumbnail_png
from orchestrator.demo.strategies import Row

STAGES = (("device", "#2a6f97"), ("host", "#e9a03b"), ("broker", "#8d99ae"), ("link", "#c44536"))


@dataclass(frozen=True)
class Report:
    """Everything that the page shows."""

    link: str
    machine: str
    versions: str
    verdict: str
    rows: Sequence[Row]
    pictures: Sequence[tuple[Photo, int, float]]  # with top-1 class and probability of the fp32 model
    rate_curve: Mapping[str, Sequence[tuple[float, float]]]  # strategy -> (Mbit/s, total ms)
    outage: Sequence[tuple[float, float, str]]  # seconds since the start, total ms, source of every answer
    outage_deadline_ms: float
    notes: Sequence[str]


def render(report: Report) -> str:
    """The page as HTML text."""
    environment = Environment(
        loader=PackageLoader("orchestrator.demo"),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pictures = [
        {
            "photo": photo,
            "label": class_name(top1),
            "right": top1 in photo.classes,
            "probability": probability,
            "data": _data_uri(thumbnail_png(photo)),
        }
        for photo, top1, probability in report.pictures
    ]
    return environment.get_template("report.html.j2").render(
        report=report,
        pictures=pictures,
        fastest=min(row.total_ms for row in report.rows),
        bars=_data_uri(_plot_bars(report)),
        rates=_data_uri(_plot_rates(report)),
        outage=_data_uri(_plot_outage(report)),
    )


def _plot_bars(report: Report) -> bytes:
    figure, axes = _axes(0.42 * len(report.rows) + 1.2)
    names = [row.name for row in report.rows][::-1]
    left = [0.0] * len(names)
    for stage, colour in STAGES:
        values = [float(getattr(row, f"{stage}_ms")) for row in report.rows][::-1]
        axes.barh(names, values, left=left, color=colour, label=stage)
        left = [a + b for a, b in zip(left, values, strict=True)]
    axes.set_xlabel("ms for one picture, median")
    axes.legend(ncols=len(STAGES), frameon=False, loc="lower right", bbox_to_anchor=(1, 1))
    return _png(figure)


def _plot_rates(report: Report) -> bytes:
    figure, axes = _axes(3.6)
    for name, points in report.rate_curve.items():
        axes.plot([rate for rate, _ in points], [total for _, total in points], label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("link rate, Mbit/s (delay as in the table)")
    axes.set_ylabel("ms for one picture")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return _png(figure)


def _plot_outage(report: Report) -> bytes:
    figure, axes = _axes(2.8)
    for source, colour in (("remote", "#2a6f97"), ("local", "#c44536"), ("error", "#000000")):
        points = [(when, total) for when, total, who in report.outage if who == source]
        if points:
            axes.scatter(
                [p[0] for p in points], [p[1] for p in points], s=12, color=colour, label=f"answered: {source}"
            )
    axes.axhline(report.outage_deadline_ms, color="#888888", linestyle="--", label="deadline")
    axes.set_xlabel("seconds")
    axes.set_ylabel("ms until the answer")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
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
