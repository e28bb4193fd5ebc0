"""What `headtail eval` and `headtail split --method` leave behind: report.json, report.html, curves and break-even chart."""

from pathlib import Path

import msgspec
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from device_profiles.link import parse_link
from export.evaluate import WayReport
from export.evaluation import Evaluation, total_ms

_RATES = [10 ** (exponent / 10) for exponent in range(-20, 21)]  # Mbit/s
_RTT_MS = 20
_CHARTED = 6  # codec ways on the break-even chart would hide the rest


def write_report(found: Evaluation, folder: Path, *, title: str, remark: str = "") -> Path:
    """Write report.json, report.html, curve.png/.svg and break-even.png/.svg; returns the page's path.

    Args:
        found: What was measured.
        folder: Is made where it is not there.
        title: Of the page.
        remark: What a reader should know first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=2))
    for name, figure in (("curve", _curve(found)), ("break-even", _break_even(found))):
        for kind in ("png", "svg"):
            figure.savefig(folder / f"{name}.{kind}", dpi=120, bbox_inches="tight")
    environment = Environment(
        loader=PackageLoader("export"), undefined=StrictUndefined, autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    page = folder / "report.html"
    text = environment.get_template("evaluation.html.j2").render(
        found=found, title=title, remark=remark, sentences=sentences(found)
    )
    page.write_text(text, encoding="utf-8")
    return page


def sentences(found: Evaluation) -> list[str]:
    """The findings in plain words."""
    lines = []
    whole = next((one for one in found.ways if one.kind == "whole"), None)
    for row in (one for one in found.ways if one.kind == "pair"):
        line = (
            f"{row.name}: {row.bytes_mean:.0f} bytes a picture (95 % of pictures at most {row.bytes_p95:.0f}), "
            f"{100 * row.accuracy:.1f} % right"
        )
        if whole is not None:
            low, high = (100 * one for one in row.loss_interval)
            line += f"; {100 * row.loss:.1f} points less than the whole network (95 % interval {low:.1f} to {high:.1f})"
            line += _against_codecs(found, row)
        lines.append(line + ".")
    lines += [
        f"{row.name}: {100 * (1 - row.sent):.1f} % of the pictures are answered on the device and send nothing; "
        f"{row.bytes_mean:.0f} bytes a picture over all, {100 * row.accuracy:.1f} % right."
        for row in found.ways
        if row.kind == "exit"
    ]
    for one in found.differences:
        if one.percent is not None:
            more = "fewer" if one.percent < 0 else "more"
            lines.append(
                f"At equal accuracy the pairs need {abs(one.percent):.0f} % {more} bytes than {one.reference}."
            )
    return lines


def _against_codecs(found: Evaluation, row: WayReport) -> str:
    equal = [one for one in found.ways if one.kind in ("jpeg", "webp") and one.accuracy >= row.accuracy]
    if not equal:
        return ""
    best = min(equal, key=lambda one: one.bytes_mean)
    share = 100 * row.bytes_mean / best.bytes_mean
    return f"; the cheapest picture with at least this accuracy is {best.name} with {best.bytes_mean:.0f} bytes, so {share:.0f} % of it"


def _curve(found: Evaluation) -> Figure:
    figure, axes = _axes()
    curves: dict[str, list[WayReport]] = {}
    for row in found.ways:
        if row.bytes_mean:
            curves.setdefault(row.curve, []).append(row)
    for name, rows in curves.items():
        rows = sorted(rows, key=lambda row: row.bytes_mean)
        axes.plot([row.bytes_mean for row in rows], [100 * row.accuracy for row in rows], marker="o", label=name)
    for row in found.ways:
        if row.kind == "whole":
            axes.axhline(100 * row.accuracy, color="#888888", linestyle="--", label="no split")
    axes.set_xscale("log")
    axes.set_xlabel("bytes of a frame, mean")
    axes.set_ylabel("accuracy, %")
    _finish(axes)
    return figure


def _break_even(found: Evaluation) -> Figure:
    figure, axes = _axes()
    for row in _charted(found):
        times = [total_ms(row, parse_link(f"{rate:.6f}mbit/{_RTT_MS}ms")) for rate in _RATES]
        axes.plot(_RATES, times, label=row.name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(f"link rate, Mbit/s (round trip {_RTT_MS} ms)")
    axes.set_ylabel("ms for one picture, computed")
    _finish(axes)
    return figure


def _charted(found: Evaluation) -> list[WayReport]:
    """All pairs, no split, raw pixels, and of each codec the cheapest way that is about as right as the best pair."""
    wanted = max((one.accuracy for one in found.ways if one.kind == "pair"), default=0.0) - 0.01
    rows = [one for one in found.ways if one.kind in ("whole", "raw")]
    rows += [one for one in found.ways if one.kind in ("pair", "exit")][:_CHARTED]
    for kind in ("jpeg", "webp"):
        equal = [one for one in found.ways if one.kind == kind and one.accuracy >= wanted]
        if equal:
            rows.append(min(equal, key=lambda one: one.bytes_mean))
    return rows


def _axes() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.5, 4.2))
    return figure, figure.subplots()


def _finish(axes: Axes) -> None:
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8, frameon=False)
