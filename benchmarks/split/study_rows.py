"""Rows of the rate-accuracy study from the points that its jobs left: BD-rates with bootstrap intervals over pictures and seeds."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from benchmarks.split.study_chart import chart_a
from benchmarks.split.study_curves import (
    CHOOSING,
    EARLIER,
    MIN_SEEDS,
    POINTS,
    SHARED,
    Curves,
    Interval,
    best_recipe,
    comparable,
    compare,
    complete,
    extended,
    pictures,
    progressive_excess,
    progressive_loss,
    read_points,
    read_rates,
)
from benchmarks.split.study_plan import (
    ABLATIONS,
    ABLATIONS_B,
    ABLATIONS_FRONT,
    ABLATIONS_KLT,
    DEEPER,
    FRONT_PROGRESSIVE,
    FRONTS,
    JOBS,
    JOINT_EPOCHS,
    KLT,
    KLT_TRAINED,
    OURS,
    PROTOCOLS,
    RATES,
    SEEDS,
    STREAMS,
    Protocol,
    TeacherNote,
    ablation_jobs,
)
from split.klt import KltOptions

WHERE = {
    "a": "CIFAR-10 copies, ResNet-18",
    "b": "grocery 160 px, EfficientNet-Lite0",
    "m": "grocery 160 px, MobileNetV2",
    "m224": "grocery 224 px, MobileNetV2",
    "b224": "grocery 224 px, EfficientNet-Lite0",
}
PEERS = {
    name: {"peer": f"sc2bench {kind}BasedResNetBottleneck", "peer_version": "0.1.1"}
    for name, kind in (("peer_fp", "FP"), ("peer_mshp", "MSHP"))
}
# streams for few bytes
_FEW = ("few", "fewest", "few_steep", "fewest_steep", "few_whole", "fewest_whole", "fewest_pair", "fewest_long")
_PARTLY = "over those accuracies alone that both curves reach, all rates, all pictures"


def said(curve: str) -> str:
    """A curve of ours in words."""
    if curve in KLT:
        layer = PROTOCOLS["b"].coarse_layer if curve == "klt" else DEEPER["b"]
        return f"klt, computed and not trained, behind the network's own first layers (to {layer})"
    if curve in KLT_TRAINED:
        recipe = KLT_TRAINED[curve]
        norm = "that follow the pictures" if recipe.get("fixed_norm") is False else "that keep their statistics"
        return f"klt behind the network's own first layers (to {DEEPER['b']}), trained for {sum(recipe['epochs'])} epochs with normalisations {norm}"
    norm = " with normalisations that keep their statistics" if curve == "deep_fixed" else ""
    return f"slim behind the network's own first layers (to {FRONTS[curve]}){norm}" if curve in FRONTS else curve


def rows() -> Iterator[dict[str, Any]]:
    """es_bd, ours_bd, progressive, the points themselves, and protocol a's chart."""
    curves = {(p, m): complete(read_rates(POINTS, p, m)) for p, methods in RATES.items() for m in methods}
    es = compare(curves["a", "peer_fp"], curves["a", "entropic"])
    away = None if es.value is None or es.seeds < MIN_SEEDS else max(es.low, -es.high, 0.0)
    yield {
        "id": "es_bd", "what": f"distance of the interval of BD-rate from 0, Entropic Student against sc2bench's, {WHERE['a']}: {es}",
        "value": away, "unit": "%", "direction": "<=", "bar": 0, **PEERS["peer_fp"],
    }  # fmt: skip
    for protocol, name in OURS.items():
        wide = extended(curves[protocol, name], curves.get((protocol, f"{name}_low"), {}))
        yield from _ours_rows(protocol, curves[protocol, "peer_fp"], wide, curves[protocol, name])
    yield from _informing_rows({name: one for (protocol, name), one in curves.items() if protocol == "b"})
    yield from prefix_rows(curves)
    yield from coder_rows(curves["a", "peer_fp"], curves["a", "entropic"])
    yield from ablation_rows(POINTS)
    yield from point_rows(POINTS)
    yield from teacher_rows(POINTS)
    yield from earlier(_earlier_rows())
    note = read_teacher(POINTS, PROTOCOLS["a"])
    chart_a(curves, note.test if note else None)


def _earlier_rows() -> Iterator[dict[str, Any]]:
    curves = {name: complete(read_rates(EARLIER, "b", name)) for name in RATES["b"]}
    yield from _informing_rows(curves)
    for name, stream, single in (("kept_layers", "front_progressive", "front"), ("new_layers", "progressive", "slim")):
        yield _excess_row(
            f"progressive.b.{name}", said(single), progressive_excess(curves[stream], curves[single]), "b"
        )
    yield from ablation_rows(EARLIER)
    yield from point_rows(EARLIER)


def earlier(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Rows of `EARLIER`: as information, with ids of their own."""
    for row in rows:
        kept = {key: value for key, value in row.items() if key != "bar"}
        yield {
            **kept,
            "id": f"earlier.{row['id']}",
            "what": f"behind the earlier teacher: {row['what']}",
            "direction": "info",
        }


def _ours_rows(protocol: str, reference: Curves, wide: Curves, tested: Curves) -> Iterator[dict[str, Any]]:
    """Our best variant against the peer; `wide` with the rates that reach down to its accuracies, in those seeds that have them."""
    peer = PEERS["peer_fp"]
    every = compare(reference, wide)
    *few, kept = comparable(reference, wide)
    ours = compare(*(pictures(one, choosing=False) for one in few))
    where = (
        f"{WHERE[protocol]}, {kept}, in a row, chosen for overlap on every {CHOOSING}th picture, measured on the others"
    )
    what = f"far end of BD-rate, {said(OURS[protocol])} with its int8 head against sc2bench's Entropic Student, {where}: {ours}; over all rates: {every}"
    yield {
        "id": f"ours_bd.{protocol}", "what": what, "value": ours.high, "unit": "%", "direction": "<=", "bar": -30, **peer,
    }  # fmt: skip
    what = f"seeds behind ours_bd.{protocol}, whose rates are compared, {WHERE[protocol]}"
    yield {"id": f"ours_bd.{protocol}.seeds", "what": what, "value": ours.seeds, "unit": "seeds", "direction": ">=", "bar": MIN_SEEDS}  # fmt: skip
    if ours.seeds < MIN_SEEDS or ours.value is None:
        shared = compare(reference, tested, min_overlap=SHARED)
        what = f"far end of the same over those accuracies alone that both curves reach, the rates that all seeds have, all pictures: {shared}"
        yield {"id": f"ours_bd.{protocol}.shared", "what": what, "value": shared.high, "unit": "%", "direction": "info", **peer}  # fmt: skip


def _informing_rows(curves: dict[str, Curves]) -> Iterator[dict[str, Any]]:
    """Of protocol b: what else is compared with the peer's curves, where there are points of both."""
    front = extended(curves["front"], curves["front_low"])
    for name, peer, tested, what in (
        ("es_bd.b", "peer_fp", curves["entropic"], "our Entropic Student against sc2bench's, each with its own coder"),
        ("ours_bd.b.new_layers", "peer_fp", curves["slim"], "slim with new first layers against sc2bench's Entropic Student"),
        ("ours_bd.b.mshp", "peer_mshp", front, f"{said('front')} against sc2bench's bottleneck with a mean-scale hyperprior"),
        ("ours_bd.b.klt", "peer_fp", curves["klt"], f"{said('klt')} against sc2bench's Entropic Student"),
        ("klt.b", "front", curves["klt"], f"{said('klt')} against {said('front')}, as it was trained, both with int8 heads"),
        ("klt.trained", "deep", curves["deep_klt_trained"], f"{said('deep_klt_trained')} against {said('deep')}, as it was trained for {sum(JOINT_EPOCHS['b'])}, both with int8 heads"),
        ("klt.training", "deep_klt", curves["deep_klt_trained"], f"{said('deep_klt_trained')} against the same without training"),
        ("klt.fixed_norm", "deep_klt_moving", curves["deep_klt_trained"], f"{said('deep_klt_trained')} against the same with normalisations that follow the pictures"),
        ("klt.long", "deep_klt_trained", curves["deep_klt_long"], f"{said('deep_klt_long')} against the same trained for {sum(KLT_TRAINED['deep_klt_trained']['epochs'])}"),
        ("klt.long.slim", "deep_fixed", curves["deep_klt_long"], f"{said('deep_klt_long')} against {said('deep_fixed')}, trained as long"),
        ("slim.fixed_norm", "deep", curves["deep_fixed"], f"{said('deep_fixed')} against the same with normalisations that follow the pictures"),
        ("es_mshp.b", "peer_mshp", curves["entropic"], "our Entropic Student against sc2bench's bottleneck with a mean-scale hyperprior, each with its own coder"),
        ("klt.b.deep", "deep", curves["deep_klt"], f"{said('deep_klt')} against {said('deep')}, as it was trained, both with int8 heads"),
    ):  # fmt: skip
        found = compare(curves[peer], tested, min_overlap=SHARED)
        if found.seeds:
            what = f"BD-rate, {what}, {WHERE['b']}, {_PARTLY}: {found}"
            yield {
                "id": name,
                "what": what,
                "value": found.value,
                "unit": "%",
                "direction": "info",
                **PEERS.get(peer, {}),
            }


def prefix_rows(curves: Mapping[tuple[str, str], Curves]) -> Iterator[dict[str, Any]]:
    """One stream for several rates: of protocol a the recipe that validation pictures choose, then each; then protocol b's."""
    single = curves["a", "slim"]
    streams = {name: curves["a", name] for name in STREAMS if set(curves["a", name]) & set(single)}
    if streams:
        best = best_recipe({name: (some, single) for name, some in streams.items()})
        yield from _excess_rows("progressive", f"slim; {_recipe(best)}, chosen on validation pictures of {len(streams)} recipes", progressive_excess(streams[best], single), "a")  # fmt: skip
        for name, some in streams.items():
            row = name.replace("_", ".")
            yield _excess_row(row, f"slim; {_recipe(name)}", progressive_excess(some, single), "a")
    found = progressive_excess(curves["a", "progressive"], single)
    yield _excess_row("progressive.as_long", "slim; with as many epochs as one of them", found, "a")
    yield from _stream_rows({name: curve for (protocol, name), curve in curves.items() if protocol == "b"})


def _stream_rows(curves: Mapping[str, Curves]) -> Iterator[dict[str, Any]]:
    """Streams of protocol b: for many bytes and for few the one that validation pictures choose; each, and its loss at equal bytes."""
    long = f"{sum(FRONT_PROGRESSIVE['epochs'])} epochs against {sum(JOINT_EPOCHS['b'])} of each of them"
    pairs = {
        "front": ("front_progressive", "front", f"{said('front')}; {long}"),
        "deep_klt": ("deep_klt_stream", "deep_klt_trained", _klt_pair("deep_klt_stream", "deep_klt_trained")),
        **{one: (f"deep_klt_stream_{one}", "deep_klt_trained", _klt_pair(f"deep_klt_stream_{one}", "deep_klt_trained")) for one in _FEW},
        "moving": ("deep_klt_stream_moving", "deep_klt_moving", _klt_pair("deep_klt_stream_moving", "deep_klt_moving")),
        "deep_klt.slim": ("deep_klt_stream", "deep", f"{said('deep')}, against klt's stream; {sum(KLT_TRAINED['deep_klt_stream']['epochs'])} epochs against {sum(JOINT_EPOCHS['b'])} of each of them"),
    }  # fmt: skip
    known = {name: (curves.get(stream, {}), curves.get(single, {})) for name, (stream, single, _) in pairs.items()}
    found = {name: pair for name, pair in known.items() if set(pair[0]) & set(pair[1])}
    for row, names in (("progressive.b", ("front", "deep_klt")), ("progressive.b.few_bytes", _FEW)):
        families = {name: found[name] for name in names if name in found}
        best = best_recipe(families) if families else names[0]
        what = f"{pairs[best][2]}; of {len(families)} streams for {'few' if names is _FEW else 'many'} bytes the one chosen on validation pictures"
        yield from _excess_rows(row, what, progressive_excess(*known[best]), "b")
    for name in found:
        what = pairs[name][2]
        yield _excess_row(f"progressive.b.{name}", what, progressive_excess(*found[name]), "b")
        loss = progressive_loss(*found[name])
        what = f"points of accuracy of one stream below models of one rate ({what}) at equal bytes, at the worst number of layers, {WHERE['b']}: {loss.said('+.2f', ' points')}"
        yield {"id": f"progressive.b.{name}.loss", "what": what, "value": loss.value, "unit": "points", "direction": "info"}  # fmt: skip


def _klt_pair(stream: str, single: str) -> str:
    recipe = KLT_TRAINED[stream]
    beta, *_ = RATES["b"][stream]
    price, whole = (recipe.get(key, getattr(KltOptions, key)) for key in ("price_step", "whole"))
    return f"{said(single)}; {recipe['rates']} rates, beta {beta:g} at all layers, {price:g} times as much for each less, whole {whole:g}, {_klt_epochs(stream, single)}"


def _klt_epochs(*curves: str) -> str:
    stream, single = (sum(KLT_TRAINED[name]["epochs"]) for name in curves)
    return f"{stream} epochs against {single} of each of them"


def _recipe(name: str) -> str:
    recipe = STREAMS[name]
    own = ", ".join(f"{key} {value}" for key, value in recipe.items() if key != "epochs")
    return f"{sum(recipe['epochs'])} epochs against {sum(JOINT_EPOCHS['a'])} of each of them, {own}"


def _excess_row(name: str, single: str, found: Interval, protocol: str) -> dict[str, Any]:
    what = f"bytes of one progressive stream over models of one rate ({single}) at equal accuracy, at the worst number of layers, {WHERE[protocol]}: {found}"
    return {"id": name, "what": what, "value": found.value, "unit": "%", "direction": "info"}


def _excess_rows(name: str, single: str, found: Interval, protocol: str) -> Iterator[dict[str, Any]]:
    """Mean, far end and seeds, with their bars."""
    row = _excess_row(name, single, found, protocol) | {"direction": "<=", "bar": 10}
    yield row
    yield row | {"id": f"{name}.upper", "what": f"far end of the {row['what']}", "value": found.high}
    what = f"seeds behind {name}, {WHERE[protocol]}"
    yield {"id": f"{name}.seeds", "what": what, "value": found.seeds, "unit": "seeds", "direction": ">=", "bar": MIN_SEEDS}  # fmt: skip


def coder_rows(peer: Curves, ours: Curves) -> Iterator[dict[str, Any]]:
    """How much of `es_bd` is the coder: the peer's integers coded by both coders."""
    same = complete(read_rates(POINTS, "a", "peer_fp", counted=True))
    for name, pair, what in (
        ("coder_only", (peer, same), "the peer's trained integers in our counted tables against its own coder"),
        ("same_coder", (same, ours), "our Entropic Student against sc2bench's, both in counted tables"),
    ):
        found = compare(*pair)
        yield {"id": f"es_bd.{name}", "what": f"BD-rate, {what}, {WHERE['a']}: {found}", "value": found.value, "unit": "%", "direction": "info"}  # fmt: skip


def ablation_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """Slim with one option changed at a time: accuracy, with its bytes."""
    klt = {name: ("", changed) for name, changed in ABLATIONS_KLT.items()}
    groups = {"": ABLATIONS, "b.": ABLATIONS_B, "front.": ABLATIONS_FRONT, "klt.": klt}
    changes = [(prefix, one) for prefix, group in groups.items() for one in group.items()]
    for (prefix, (name, (_, changes_of))), job in zip(changes, ablation_jobs(), strict=True):
        path = folder / f"{job.name}.npz"
        if path.is_file():
            (point,) = read_points(path)
            changed = ", ".join(f"{key} {value}" for key, value in changes_of.items()) or "int8 True"
            cut = f", cut at {job.layer}" if job.layer else ""
            what = f"{job.method}, beta {job.options['beta']:g}, {changed}{cut}, {WHERE[job.protocol]}, 1 seed: accuracy at {point.sizes.mean():.1f} B a frame"
            yield {"id": f"ablation.{prefix}{name}", "what": what, "value": round(100 * float(point.right.mean()), 2), "unit": "%", "direction": "info"}  # fmt: skip


def teacher_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """Test accuracy of the whole networks that `study.prepare` fine-tuned."""
    for protocol in PROTOCOLS.values():
        note = read_teacher(folder, protocol)
        if protocol.row and note is not None:
            enlarged = ", enlarged from a short side of 160" if protocol.size > 160 else ""
            what = f"accuracy of the whole fine-tuned network, test pictures of {protocol.size} px{enlarged}, 1 seed, the last of {note.epochs} epochs (validation {100 * note.val:.2f} %)"
            yield {"id": f"teacher.{protocol.row}", "what": what, "value": round(100 * note.test, 2), "unit": "%", "direction": "info"}  # fmt: skip


def read_teacher(folder: Path, protocol: Protocol) -> TeacherNote | None:
    """What a teacher's training left, if there is any."""
    path = folder / f"{protocol.name}-teacher.json"
    return msgspec.json.decode(path.read_bytes(), type=TeacherNote) if path.is_file() else None


def point_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """Mean over the seeds of each rate: bytes with their 95th percentile, and accuracy, as information."""
    for protocol, methods in RATES.items():
        for method in methods:
            yield from _curve_rows(folder, protocol, method)
            if any(job.tunes for job in JOBS.values() if job.series == method):
                yield from _curve_rows(folder, protocol, method, tuned=True)


def _curve_rows(folder: Path, protocol: str, method: str, *, tuned: bool = False) -> Iterator[dict[str, Any]]:
    """Numbered as planned, so that rates without points keep their places."""
    for place, by_seed in enumerate(read_rates(folder, protocol, method, tuned=tuned).values()):
        for index, points in enumerate(zip(*by_seed.values(), strict=True)):
            number = place * len(next(iter(by_seed.values()))) + index + 1
            sizes, right = (np.mean([getattr(one, key).mean() for one in points]) for key in ("sizes", "right"))
            high = np.mean([np.percentile(one.sizes, 95) for one in points])
            setting = points[0].setting or f"rate {number}"
            tail, ending = (", tail fine-tuned", ".tuned") if tuned else ("", "")
            what = f"{method}, {setting}{tail}, {WHERE[protocol]}: accuracy at {sizes:.0f} B a frame (p95 {high:.0f} B), {len(points)} of {len(SEEDS)} seeds"
            yield {
                "id": f"curve.{protocol}.{method}.{number}{ending}", "what": what, "value": round(100 * float(right), 2), "unit": "%",
                "direction": "info",
            }  # fmt: skip
