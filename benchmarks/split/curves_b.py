"""Protocol B: bottlenecks on the grocery pictures against WebP and table-less JPEG before the same network, plain and tuned.

Every row comes from points in results/split_points; codec points that are missing are measured (`grocery_codecs`: a minute of
one core each, resumable), and the shipped pair is run on all test pictures. Nothing is chosen here.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.data import data_folder
from benchmarks.rows import RESULTS
from benchmarks.split.grocery_codecs import CLASSES, CodecPoint, points
from benchmarks.split.study_plan import RATES
from benchmarks.split.study_rows import POINTS, WHERE, interpolate, read_curves
from edge_runtime.artefact import open_artefact
from export.evaluate import evaluate_exit, picture_size
from orchestrator.demo.pair import ZOO
from split.intervals import Estimate, paired_difference
from split.training_data import DataOptions, open_pictures

CHART = RESULTS / "charts" / "curves_b"
SHARE_BAR, LOSS_BAR, UPPER_BAR, RATE_BAR = 23, 1.0, 2.5, -50
_CODECS = ("webp", "jpeg")
_TUNED = "with the classifier fine-tuned on compressed pictures"
Pair = tuple[np.ndarray, np.ndarray]  # bytes of each picture's frame, whether its class is right


def rows() -> Iterator[dict[str, Any]]:
    """bottlefit, ours_codec_bd, every point, and the chart of them all."""
    codecs = list(points())
    raw = next(one for one in codecs if one.codec == "raw")
    codecs = [one for one in codecs if one.codec != "raw"]
    bottlefit: list[Pair] = [
        (one.sizes, one.right.astype(bool)) for one in read_curves(POINTS, "b", "bottlefit").get(0, [])
    ]
    ours, leaving = _shipped()
    yield from bottlefit_rows(bottlefit, codecs, raw.plain)
    yield from ours_rows(ours, codecs)
    yield from _point_rows(codecs, raw, ours, leaving)
    chart({"BottleFit": bottlefit, "slim, shipped": [ours]}, codecs, raw, CHART)


def bottlefit_rows(found: Sequence[Pair], codecs: Sequence[CodecPoint], whole: np.ndarray) -> Iterator[dict[str, Any]]:
    """The rate that loses least: its bytes against the cheaper codec before the plain network, and its paired loss."""
    share, said, loss = None, "not measured", None
    if found:
        sizes, right = max(found, key=lambda one: one[1].mean())
        loss = paired_difference(100.0 * whole, 100.0 * right)
        cheapest = bytes_at(float(right.mean()), codecs, tuned=False)
        said = f"{sizes.mean():.0f} B at {100 * right.mean():.1f} %, of {len(RATES['b']['bottlefit'])} rates the one that loses least, trained behind another fine-tuning of the same network"
        share = None if cheapest is None else 100 * float(sizes.mean()) / cheapest
    yield {
        "id": "bottlefit", "what": f"bytes of BottleFit's frames against the cheaper of WebP and JPEG at equal accuracy of the unsplit network, {WHERE['b']}: {said}",
        "value": share, "unit": "%", "direction": "<=", "bar": SHARE_BAR, "peer": "WebP and JPEG without tables",
    }  # fmt: skip
    for name, what, value, bar in _losses(loss):
        yield {
            "id": name,
            "what": f"{what}, {WHERE['b']}",
            "value": value,
            "unit": "points",
            "direction": "<=",
            "bar": bar,
        }


def _losses(loss: Estimate | None) -> list[tuple[str, str, float | None, float]]:
    mean, high = (None, None) if loss is None else (loss.value, loss.high)
    return [
        (
            "bottlefit.loss",
            "accuracy of BottleFit below that of the unsplit network (another fine-tuning than its teacher), same pictures",
            mean,
            LOSS_BAR,
        ),
        ("bottlefit.loss_upper", "upper end of that loss's 95 % interval", high, UPPER_BAR),
    ]


def ours_rows(ours: Pair, codecs: Sequence[CodecPoint]) -> Iterator[dict[str, Any]]:
    """The BD-rate has no value with one rate; what that rate saves at its own accuracy is information."""
    yield {
        "id": "ours_codec_bd", "what": f"BD-rate of slim against the better of WebP and JPEG {_TUNED}, {WHERE['b']}: one rate is trained for this network, a curve needs more",
        "value": None, "unit": "%", "direction": "<=", "bar": RATE_BAR, "peer": "WebP and JPEG without tables",
    }  # fmt: skip
    sizes, right = ours
    for tuned, name, said in ((False, "plain", "before the plain network"), (True, "tuned", _TUNED)):
        cheapest = bytes_at(float(right.mean()), codecs, tuned=tuned)
        value = None if cheapest is None else 100 * (float(sizes.mean()) / cheapest - 1)
        what = f"bytes of the shipped pair ({sizes.mean():.0f} B, {100 * right.mean():.1f} %) over the cheaper of WebP and JPEG {said} at equal accuracy, {WHERE['b']}"
        yield {"id": f"ours_codec.{name}", "what": what, "value": value, "unit": "%", "direction": "info"}


def bytes_at(accuracy: float, codecs: Sequence[CodecPoint], *, tuned: bool) -> float | None:
    """Mean bytes of the cheaper codec at an accuracy, on the curve through its points; null where no curve reaches it."""
    found = []
    for codec in _CODECS:
        some = [one for one in codecs if one.codec == codec]
        curve = sorted((float(one.sizes.mean()), float((one.tuned if tuned else one.plain).mean())) for one in some)
        x, y = [], []
        for size, right in curve:  # a larger file that is not better is no point of the curve
            if not x or right > x[-1]:
                x.append(right)
                y.append(float(np.log(size)))
        if len(x) > 1 and x[0] <= accuracy <= x[-1]:
            found.append(float(np.exp(interpolate(np.array(x), np.array(y), accuracy))))
    return min(found, default=None)


def _shipped() -> tuple[Pair, Pair | None]:
    """The shipped pair on all test pictures: everything sent, and what its exit alone answers, which sends nothing."""
    head, tail = (open_artefact(ZOO / role) for role in ("head", "tail"))
    options = DataOptions(picture_size(head), label_key="coarse_label", classes=CLASSES)
    data = open_pictures(data_folder() / "data" / "grocery" / "test.npz", options)
    labels = data.labels.numpy()
    way, leaving = evaluate_exit(head, tail, data, name="shipped")
    pairs = [
        None if one is None else (one.sizes.astype(np.float64), one.logits.argmax(1) == labels)
        for one in (way, leaving)
    ]
    assert pairs[0] is not None
    return pairs[0], pairs[1]


def _point_rows(
    codecs: Sequence[CodecPoint], raw: CodecPoint, ours: Pair, leaving: Pair | None
) -> Iterator[dict[str, Any]]:
    for one in codecs:
        for name, right in (("plain", one.plain), ("tuned", one.tuned)):
            said = f", {_TUNED}" if name == "tuned" else ""
            yield _point(
                f"{one.codec}.q{one.quality}.{name}", f"{one.codec} at quality {one.quality}{said}", (one.sizes, right)
            )
    yield _point("raw", "raw pixels sent", (raw.sizes, raw.plain))
    yield _point("local", "everything on the device", (np.zeros(len(raw.plain)), raw.plain))
    yield _point("shipped", "the shipped pair", ours)
    if leaving is not None:
        yield _point("shipped.exit", "the shipped pair with its early exit", leaving)


def _point(name: str, what: str, pair: Pair) -> dict[str, Any]:
    sizes, right = pair
    text = f"{what}, {WHERE['b']}: accuracy at {sizes.mean():.0f} B a frame (p95 {np.percentile(sizes, 95):.0f} B)"
    return {"id": f"curve.b.{name}", "what": text, "value": round(100 * float(right.mean()), 2), "unit": "%", "direction": "info"}  # fmt: skip


def chart(pairs: dict[str, Sequence[Pair]], codecs: Sequence[CodecPoint], raw: CodecPoint, path: Path) -> None:
    """Accuracy over bytes as PNG and SVG."""
    figure = Figure(figsize=(7.5, 4.2))
    axes = figure.subplots()
    for codec in _CODECS:
        some = [one for one in codecs if one.codec == codec]
        for name, rights in (("plain", [one.plain for one in some]), ("tuned", [one.tuned for one in some])):
            style = "-" if name == "plain" else "--"
            sizes = [one.sizes.mean() for one in some]
            axes.plot(sizes, [100 * one.mean() for one in rights], style, marker="o", label=f"{codec}, {name}")
    for label, some_pairs in pairs.items():
        places = sorted((sizes.mean(), 100 * right.mean()) for sizes, right in some_pairs)
        axes.plot([one[0] for one in places], [one[1] for one in places], marker="s", label=label)
    axes.axhline(100 * raw.plain.mean(), color="#888888", linestyle=":", label="no split")
    axes.set_xscale("log")
    axes.set_xlabel("bytes of a frame, mean")
    axes.set_ylabel("accuracy, %")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    for kind in ("png", "svg"):
        figure.savefig(path.with_suffix(f".{kind}"), dpi=120, bbox_inches="tight")
