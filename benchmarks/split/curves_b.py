"""Protocol B: bottlenecks on the grocery pictures against WebP and table-less JPEG before the same network, plain and tuned.

Every row comes from points in results/split_points, all behind one teacher; the shipped pair is run on all test pictures. What
is chosen (the rate of BottleFit that loses least) is chosen on validation pictures.
"""

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.data import data_folder
from benchmarks.rows import RESULTS
from benchmarks.split.grocery_codecs import CLASSES, CodecPoint, points
from benchmarks.split.study_nets import head_macs
from benchmarks.split.study_plan import JOBS, SEEDS
from benchmarks.split.study_rows import (
    MIN_SEEDS,
    POINTS,
    SAID,
    SHARED,
    WHERE,
    Curves,
    Interval,
    Point,
    comparable,
    compare,
    interpolate,
    pictures,
    read_curves,
    read_points,
)
from edge_runtime.artefact import open_artefact
from export.evaluate import evaluate_exit, picture_size
from orchestrator.demo.pair import ZOO
from split.intervals import paired_difference
from split.training_data import DataOptions, open_pictures

CHART = RESULTS / "charts" / "curves_b"
SHARE_BAR, LOSS_BAR, UPPER_BAR, RATE_BAR = 23, 1.0, 2.5, -50
_AS_GOOD = 0.005  # accuracies that are alike
_CODECS = ("webp", "jpeg")
_TUNED = "with the whole network fine-tuned on compressed pictures"
Pair = tuple[np.ndarray, np.ndarray]  # bytes of each picture's frame, whether its class is right


def rows() -> Iterator[dict[str, Any]]:
    """bottlefit, ours_codec_bd, every point, and the chart of them all."""
    codecs = list(points())
    raw = next(one for one in codecs if one.codec == "raw")
    codecs = [one for one in codecs if one.codec != "raw"]
    jobs = [job for job in JOBS.values() if (job.protocol, job.method, job.label) == ("b", "bottlefit", "")]
    named = [pair for job in jobs for pair in ((job.name, job.series), (job.tuned_name, f"{job.series}_tuned"))]
    bottlefit = [
        one for name, series in named if (POINTS / f"{name}.npz").is_file() for one in _read(name, _KINDS[series])
    ]
    ours, leaving = _shipped()
    yield from bottlefit_rows(bottlefit, codecs, raw.plain)
    yield codec_row(read_curves(POINTS, "b", "front", tuned=True), codecs, SAID["front"] + ", tail fine-tuned alike")
    for series in ("front", "slim"):
        row = codec_row(read_curves(POINTS, "b", series), codecs, f"{SAID[series]}, as it was trained")
        yield row | {"id": f"ours_codec_bd.{series}", "direction": "info", "bar": None}
    yield from shipped_rows(ours, codecs)
    yield from _point_rows(codecs, raw, ours, leaving)
    yield from _small_row()
    curves = {name: read_curves(POINTS, "b", method).get(0, []) for name, method in _CHARTED.items()}
    curves[f"{_KEPT}, tail fine-tuned"] = read_curves(POINTS, "b", "front", tuned=True).get(0, [])
    pairs = {name: [(one.sizes, one.right) for one in some] for name, some in curves.items()}
    chart({**pairs, "slim, shipped": [ours]}, codecs, raw, CHART)


_KINDS = {
    "bottlefit": "",
    "front_bottlefit": " behind kept layers",
    "front_bottlefit_tuned": " behind kept layers, tail fine-tuned",
}
_SLUGS = {
    " channels of ": "c",
    " bits": "b",
    ", half the side": ".half",
    " behind kept layers": ".front",
    ", tail fine-tuned": ".tuned",
}
_KEPT = "slim, kept layers"
_CHARTED = {
    "slim": "slim",
    _KEPT: "front",
    "progressive": "progressive",
    "BottleFit": "bottlefit",
    "Entropic Student": "entropic",
    "sc2bench's Entropic Student": "peer_fp",
}


Rate = tuple[
    str, Pair, tuple[float, float]
]  # channels and bits, test sizes and answers, bytes and accuracy on validation pictures


def _read(name: str, kind: str) -> list[Rate]:
    path = POINTS / f"{name}.npz"
    with np.load(path, allow_pickle=False) as file:
        validation = json.loads(str(file["note"]))["val"]
    points = zip(read_points(path), validation, strict=True)
    return [(point.setting + kind, (point.sizes, point.right.astype(bool)), tuple(found)) for point, found in points]


def bottlefit_rows(found: Sequence[Rate], codecs: Sequence[CodecPoint], whole: np.ndarray) -> Iterator[dict[str, Any]]:
    """BottleFit against the cheaper codec before the plain network, and its paired loss.

    Of the rate with the fewest bytes within half a point of the best accuracy, both on validation pictures.

    With several seeds, the mean over them: of bytes, of each picture's answers.
    """
    share, said, loss = None, "not measured", None
    if found:
        of = {rate: [one for one in found if one[0] == rate] for rate, *_ in found}
        seen = {rate: np.mean([validation for *_, validation in some], 0) for rate, some in of.items()}
        good = max(right for _, right in seen.values()) - _AS_GOOD
        best = min((rate for rate in seen if seen[rate][1] >= good), key=lambda rate: seen[rate][0])
        sizes, right = (np.mean([pair[part] for _, pair, _ in of[best]], 0) for part in (0, 1))
        loss = paired_difference(100.0 * whole, 100.0 * right)
        cheapest = bytes_at(float(right.mean()), codecs, tuned=False)
        said = (
            f"{best}, {sizes.mean():.0f} B at {100 * right.mean():.1f} %, of {len(of)} rates the one chosen on validation pictures, "
            f"{len(of[best])} of {len(SEEDS)} seeds"
        )
        share = None if cheapest is None else 100 * float(sizes.mean()) / cheapest
        yield from _share_rows(of, codecs)
    yield {
        "id": "bottlefit", "what": f"bytes of BottleFit's frames against the cheaper of WebP and JPEG at equal accuracy of the unsplit network, {WHERE['b']}: {said}",
        "value": share, "unit": "%", "direction": "<=", "bar": SHARE_BAR, "peer": "WebP and JPEG without tables",
    }  # fmt: skip
    mean, high = (None, None) if loss is None else (loss.value, loss.high)
    for name, what, value, bar in (
        ("bottlefit.loss", "accuracy of BottleFit below that of its teacher, the unsplit network, same pictures", mean, LOSS_BAR),
        ("bottlefit.loss_upper", "upper end of that loss's 95 % interval", high, UPPER_BAR),
    ):  # fmt: skip
        yield {"id": name, "what": f"{what}, {WHERE['b']}", "value": value, "unit": "points", "direction": "<=", "bar": bar}  # fmt: skip


def _share_rows(of: Mapping[str, Sequence[Rate]], codecs: Sequence[CodecPoint]) -> Iterator[dict[str, Any]]:
    """Of every rate: its bytes over those of the cheaper codec at its accuracy."""
    for name, some in of.items():
        sizes, right = (np.mean([pair[part] for _, pair, _ in some], 0) for part in (0, 1))
        cheapest = bytes_at(float(right.mean()), codecs, tuned=False)
        value = None if cheapest is None else 100 * float(sizes.mean()) / cheapest
        what = f"the same of {name}: {sizes.mean():.0f} B at {100 * right.mean():.1f} %, {len(some)} seeds"
        slug = functools.reduce(lambda text, pair: text.replace(*pair), _SLUGS.items(), name)
        yield {"id": f"bottlefit.{slug}", "what": what, "value": value, "unit": "%", "direction": "info"}


def codec_row(ours: Curves, codecs: Sequence[CodecPoint], said: str) -> dict[str, Any]:
    """The BD-rate against the codec that is harder to beat, at the far end of its interval."""
    found = [_against(ours, [one for one in codecs if one.codec == codec]) for codec in _CODECS]
    known = [one for one in found if one.high is not None]
    worst = max(known, key=lambda one: one.high or 0.0, default=Interval(None, None, None, 0, "no curve overlaps"))
    texts = "; ".join(f"{codec} {one}" for codec, one in zip(_CODECS, found, strict=True))
    return {
        "id": "ours_codec_bd", "what": f"far end of BD-rate, {said}, with its int8 head against WebP and JPEG {_TUNED}, {WHERE['b']}: {texts}",
        "value": worst.high if worst.seeds >= MIN_SEEDS and len(known) == len(found) else None, "unit": "%", "direction": "<=", "bar": RATE_BAR, "peer": "WebP and JPEG without tables",
    }  # fmt: skip


def _against(ours: Curves, codecs: Sequence[CodecPoint]) -> Interval:
    """With the codec's one curve beside each seed's."""
    curve = [Point(f"{one.codec} {one.quality}", one.sizes, one.tuned.astype(np.float64)) for one in codecs]
    curve.sort(key=lambda one: -float(one.sizes.mean()))
    whole = dict.fromkeys(ours, curve)
    *few, _ = comparable(whole, ours)
    found = compare(*(pictures(one, choosing=False) for one in few))
    if found.value is not None:
        return found
    shared = compare(whole, ours, min_overlap=SHARED)
    return replace(found, reason=f"{found.reason} Over the accuracies that both reach: {shared}")


def shipped_rows(ours: Pair, codecs: Sequence[CodecPoint]) -> Iterator[dict[str, Any]]:
    """What the one rate of the shipped pair saves at its own accuracy, as information."""
    sizes, right = ours
    for tuned, name, said in ((False, "plain", "before the plain network"), (True, "tuned", _TUNED)):
        cheapest = bytes_at(float(right.mean()), codecs, tuned=tuned)
        value = None if cheapest is None else 100 * (float(sizes.mean()) / cheapest - 1)
        what = f"bytes of the shipped pair ({sizes.mean():.0f} B, {100 * right.mean():.1f} %) over the cheaper of WebP and JPEG {said} at equal accuracy, {WHERE['b']}"
        yield {"id": f"ours_codec.{name}", "what": what, "value": value, "unit": "%", "direction": "info"}


def _small_row() -> Iterator[dict[str, Any]]:
    path = POINTS / "b-small.npz"
    if path.is_file():
        with np.load(path, allow_pickle=False) as file:
            note = json.loads(str(file["note"]))
        what = f"a small network on the device alone, {note['macs'] / 1e6:.2f} M multiply-accumulates (slim's head: {head_macs() / 1e6:.2f} M), {note['parameters']} parameters, same teacher and pictures, {WHERE['b']}: accuracy"
        yield {"id": "local_small", "what": what, "value": round(100 * note["test"], 2), "unit": "%", "direction": "info"}  # fmt: skip


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
