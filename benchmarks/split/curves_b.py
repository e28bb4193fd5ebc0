"""Protocol B: our variants on the grocery pictures against WebP and table-less JPEG before the same network, plain and tuned.

Every row comes from points in results/split_points, all behind one teacher, or all behind an earlier one, which is that of the
shipped pair; that is run on all test pictures. Which variant counts is chosen on validation pictures.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps

from benchmarks.data import data_folder
from benchmarks.split.bottlefit_rows import CODECS, bottlefit_rows, bytes_at, codec_point, read_forms
from benchmarks.split.grocery_codecs import CLASSES, CodecPoint, points
from benchmarks.split.study_chart import CHARTS, accuracy_axes, finish
from benchmarks.split.study_curves import (
    EARLIER,
    MIN_REFERENCE,
    MIN_SEEDS,
    POINTS,
    SHARED,
    Curves,
    Interval,
    best_on_validation,
    comparable,
    compare,
    pictures,
    read_curves,
    read_note,
)
from benchmarks.split.study_job import build
from benchmarks.split.study_nets import head_macs, macs
from benchmarks.split.study_plan import JOBS, KLT, KLT_TRAINED, PROTOCOLS
from benchmarks.split.study_rows import WHERE, earlier, said
from edge_runtime.artefact import open_artefact
from export.evaluate import evaluate_exit, picture_size
from orchestrator.demo.pair import ZOO
from split.training_data import DataOptions, open_pictures

CHART = CHARTS / "curves_b"
RATE_BAR = -50
_PROTOCOL = PROTOCOLS["b"]
_TUNED = "with the whole network fine-tuned on compressed pictures"
# Label in the chart -> curve, with fine-tuned tails or not
_CHARTED = {
    "slim, kept layers": ("front", False),
    "slim, deep, tail fine-tuned": ("deep", True),
    "progressive, kept layers": ("front_progressive", False),
    "BottleFit, deep, tail fine-tuned": ("deep_bottlefit", True),
    "klt, deep, not trained": ("deep_klt", False),
    "klt, deep, trained": ("deep_klt_trained", False),
    "klt, deep, one stream": ("deep_klt_stream", False),
    "sc2bench's Entropic Student": ("peer_fp", False),
}
Pair = tuple[np.ndarray, np.ndarray]  # bytes of each picture's frame, whether its class is right


class Variant(NamedTuple):
    """One of our curves that may stand against the codecs."""

    curve: str
    tuned: bool

    def __str__(self) -> str:
        computed = self.curve in KLT
        fitted = computed or self.curve in KLT_TRAINED
        tail = "tail fine-tuned alike" if self.tuned else "the network's own tail" if computed else "as it was trained"
        head, whole = head_work(self.curve), _whole_work()
        work = f"{'at most ' * fitted}{head / 1e6:.0f} M multiply-accumulates in the head ({100 * head / whole:.0f} % of the whole network's {whole / 1e6:.0f} M)"
        return f"{said(self.curve)}, {tail}, {work}"


# The first is what the others are compared with when one is chosen
VARIANTS = [
    Variant(curve, tuned)
    for curve, tuned in (
        ("front", True),
        ("front", False),
        ("deep", True),
        ("deep", False),
        ("slim", False),
        *((one, False) for one in KLT),
        ("deep_klt_trained", False),
        ("deep_klt_stream", False),
    )
]


def rows() -> Iterator[dict[str, Any]]:
    """bottlefit, ours_codec_bd, every point, and the chart of them all."""
    raw, *codecs = points(POINTS)
    ours, leaving = _shipped()
    yield from bottlefit_rows(read_forms(POINTS), codecs, raw.plain)
    yield from codec_rows(_variants(POINTS), codecs)
    yield from _point_rows(codecs, raw)
    yield _point("shipped", "the shipped pair", ours)
    if leaving is not None:
        yield _point("shipped.exit", "the shipped pair with its early exit", leaving)
    before, *others = points(EARLIER)
    yield from shipped_rows(ours, others)
    yield from earlier(_earlier_rows(others, before))
    seen = {name: read_curves(POINTS, "b", curve, tuned=tuned) for name, (curve, tuned) in _CHARTED.items()}
    pairs = {name: [(one.sizes, one.right) for one in curves[min(curves)]] for name, curves in seen.items() if curves}
    chart({**pairs, "slim, shipped (earlier teacher)": [ours]}, codecs, raw, CHART)


def _variants(folder: Path) -> dict[Variant, Curves]:
    """Those with points of at least so many rates as can be compared."""
    found = {one: read_curves(folder, "b", one.curve, tuned=one.tuned) for one in VARIANTS}
    return {one: curves for one, curves in found.items() if any(len(some) >= MIN_REFERENCE for some in curves.values())}


def _earlier_rows(codecs: Sequence[CodecPoint], raw: CodecPoint) -> Iterator[dict[str, Any]]:
    yield from bottlefit_rows(read_forms(EARLIER), codecs, raw.plain)
    yield from codec_rows(_variants(EARLIER), codecs)
    yield from _point_rows(codecs, raw)
    yield from _small_row()


def codec_rows(found: Mapping[Variant, Curves], codecs: Sequence[CodecPoint]) -> Iterator[dict[str, Any]]:
    """The BD-rate of the variant that is best on validation pictures, then that of each, against both codecs.

    What reaches too few of the codecs' accuracies does not compete; its row is over those that both reach.
    """
    against = {one: _against(curves, codecs) for one, curves in found.items()}
    known = {one: found[one] for one, intervals in against.items() if _harder(intervals)}
    best = best_on_validation(known or found)
    peer = {"unit": "%", "peer": "WebP and JPEG without tables"}
    where = f"with its int8 head against WebP and JPEG {_TUNED}, {WHERE['b']}"
    what = f"far end of BD-rate, {best}, of {len(known)} comparable variants the one chosen on validation pictures, {where}: {_both(against[best])}"
    harder = _harder(against[best])
    value = None if harder is None or harder.seeds < MIN_SEEDS else harder.high
    yield {"id": "ours_codec_bd", "what": what, "value": value, "direction": "<=", "bar": RATE_BAR, **peer}
    for one, intervals in against.items():
        name = f"ours_codec_bd.{one.curve}{'.tuned' * one.tuned}{'' if one in known else '.shared'}"
        partly = "" if one in known else ", over the accuracies alone that both reach"
        intervals = intervals if one in known else _against(found[one], codecs, shared=True)
        harder = _harder(intervals)
        what = f"BD-rate against the codec that is harder to beat{partly}, {one}, {where}: {_both(intervals)}"
        yield {"id": name, "what": what, "value": None if harder is None else harder.value, "direction": "info", **peer}


def _harder(intervals: Mapping[str, Interval]) -> Interval | None:
    """The one with the worse far end; none where a codec cannot be compared."""
    known = [(one.high, one) for one in intervals.values() if one.high is not None]
    return max(known, key=lambda pair: pair[0])[1] if len(known) == len(intervals) else None


def _both(intervals: Mapping[str, Interval]) -> str:
    return "; ".join(f"{codec} {one}" for codec, one in intervals.items())


@functools.cache
def head_work(curve: str) -> int:
    """Multiply-accumulates of a curve's head for one picture, protocol B."""
    job = next(one for one in JOBS.values() if (one.protocol, one.series, one.label) == ("b", curve, ""))
    student, *_ = build(job, _PROTOCOL.network().eval())
    return macs(student.bottleneck.encoder, _PROTOCOL.size)


@functools.cache
def _whole_work() -> int:
    return macs(_PROTOCOL.network(), _PROTOCOL.size)


def _against(ours: Curves, codecs: Sequence[CodecPoint], *, shared: bool = False) -> dict[str, Interval]:
    """With a codec's one curve beside each seed's: neighbouring rates that overlap enough, or what all rates share."""
    found = {}
    for codec in CODECS:
        curve = [codec_point(one, tuned=True) for one in codecs if one.codec == codec]
        curve.sort(key=lambda one: -float(one.sizes.mean()))
        whole = dict.fromkeys(ours, curve)
        if shared:
            found[codec] = compare(whole, ours, min_overlap=SHARED)
        else:
            *few, _ = comparable(whole, ours)
            found[codec] = compare(*(pictures(one, choosing=False) for one in few))
    return found


def shipped_rows(ours: Pair, codecs: Sequence[CodecPoint]) -> Iterator[dict[str, Any]]:
    """What the one rate of the shipped pair saves at its own accuracy, as information."""
    sizes, right = ours
    for tuned, name, before in ((False, "plain", "before the plain network"), (True, "tuned", _TUNED)):
        cheapest = bytes_at(float(right.mean()), codecs, tuned=tuned)
        value = None if cheapest is None else 100 * (float(sizes.mean()) / cheapest - 1)
        what = f"bytes of the shipped pair ({sizes.mean():.0f} B, {100 * right.mean():.1f} %) over the cheaper of WebP and JPEG {before}, both of its own (earlier) teacher, at equal accuracy, {WHERE['b']}"
        yield {"id": f"ours_codec.{name}", "what": what, "value": value, "unit": "%", "direction": "info"}


def _small_row() -> Iterator[dict[str, Any]]:
    path = EARLIER / "b-small.npz"
    if path.is_file():
        note = read_note(path)
        what = f"a small network on the device alone, {note['macs'] / 1e6:.2f} M multiply-accumulates (slim's head: {head_macs() / 1e6:.2f} M), {note['parameters']} parameters, same teacher and pictures, {WHERE['b']}: accuracy"
        yield {"id": "local_small", "what": what, "value": round(100 * note["test"], 2), "unit": "%", "direction": "info"}  # fmt: skip


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


def _point_rows(codecs: Sequence[CodecPoint], raw: CodecPoint) -> Iterator[dict[str, Any]]:
    for one in codecs:
        for name, right in (("plain", one.plain), ("tuned", one.tuned)):
            said = f", {_TUNED}" if name == "tuned" else ""
            yield _point(
                f"{one.codec}.q{one.quality}.{name}", f"{one.codec} at quality {one.quality}{said}", (one.sizes, right)
            )
    yield _point("raw", "raw pixels sent", (raw.sizes, raw.plain))
    yield _point("local", "everything on the device", (np.zeros(len(raw.plain)), raw.plain))


def _point(name: str, what: str, pair: Pair) -> dict[str, Any]:
    sizes, right = pair
    text = f"{what}, {WHERE['b']}: accuracy at {sizes.mean():.0f} B a frame (p95 {np.percentile(sizes, 95):.0f} B)"
    return {"id": f"curve.b.{name}", "what": text, "value": round(100 * float(right.mean()), 2), "unit": "%", "direction": "info"}  # fmt: skip


def chart(pairs: dict[str, Sequence[Pair]], codecs: Sequence[CodecPoint], raw: CodecPoint, path: Path) -> None:
    """Accuracy over bytes as PNG and SVG."""
    figure, axes = accuracy_axes()
    axes.set_prop_cycle(color=colormaps["tab20"].colors)  # the codecs' two curves are of one hue
    for codec in CODECS:
        some = [one for one in codecs if one.codec == codec]
        for name, rights in (("plain", [one.plain for one in some]), ("tuned", [one.tuned for one in some])):
            style = "-" if name == "plain" else "--"
            sizes = [one.sizes.mean() for one in some]
            axes.plot(sizes, [100 * one.mean() for one in rights], style, marker="o", label=f"{codec}, {name}")
    for label, some_pairs in pairs.items():
        places = sorted((sizes.mean(), 100 * right.mean()) for sizes, right in some_pairs)
        axes.plot([one[0] for one in places], [one[1] for one in places], marker="s", label=label)
    finish(figure, axes, float(raw.plain.mean()), path)
