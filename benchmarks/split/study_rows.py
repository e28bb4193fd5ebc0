"""Rows of the rate-accuracy study from the points that its jobs left: BD-rates with bootstrap intervals over pictures and seeds."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rows import RESULTS
from benchmarks.split.study_plan import (
    ABLATIONS,
    ABLATIONS_B,
    ABLATIONS_FRONT,
    JOBS,
    OURS,
    RATES,
    SEEDS,
    ablation_jobs,
    coder_jobs,
)
from split.quality import MIN_OVERLAP, CurveError, bd_rate, monotone_slopes

POINTS = RESULTS / "split_points"
ROUNDS = 1000
MIN_SEEDS = 3
_SHARES = (2.5, 97.5)
# Pictures that choose which of our rates are compared, one of so many; the others measure
CHOOSING = 5
MIN_RATES = 2
MIN_REFERENCE = 3
SHARED = 0.05  # of either curve: overlap of the rows that only inform
WHERE = {"a": "CIFAR-10 copies, ResNet-18", "b": "grocery 160 px, EfficientNet-Lite0"}


PEER = {"peer": "sc2bench FPBasedResNetBottleneck", "peer_version": "0.1.1"}
SAID = {"slim": "slim", "front": "slim behind the network's own first layers (to _blocks.4)"}


@dataclass(frozen=True)
class Point:
    """One rate of one training: bytes of each test picture's frame with header, and whether its class is right."""

    setting: str
    sizes: np.ndarray
    right: np.ndarray


Curves = dict[int, list[Point]]  # by seed


@dataclass(frozen=True)
class Interval:
    """A BD-rate in percent with its 95 % interval; null without curves that can be compared."""

    value: float | None
    low: float | None
    high: float | None
    seeds: int
    reason: str = ""

    def __str__(self) -> str:
        if self.value is None:
            return self.reason
        return f"{self.value:+.1f} % ({self.low:+.1f} to {self.high:+.1f}, {self.seeds} seeds)"


def rows() -> Iterator[dict[str, Any]]:
    """es_bd, ours_bd, progressive, and the points themselves."""
    curves = {(p, m): read_curves(POINTS, p, m) for p, methods in RATES.items() for m in methods}
    peer = PEER
    es = compare(curves["a", "peer_fp"], curves["a", "entropic"])
    away = None if es.value is None or es.seeds < MIN_SEEDS else max(es.low, -es.high, 0.0)
    yield {
        "id": "es_bd", "what": f"distance of the interval of BD-rate from 0, Entropic Student against sc2bench's, {WHERE['a']}: {es}",
        "value": away, "unit": "%", "direction": "<=", "bar": 0, **peer,
    }  # fmt: skip
    for protocol, name in OURS.items():
        yield from _ours_rows(
            protocol, curves[protocol, "peer_fp"], curves[protocol, name], curves.get((protocol, f"{name}_low"), {})
        )
    shared = compare(curves["b", "peer_fp"], curves["b", "slim"], min_overlap=SHARED)
    what = f"far end of the same for slim with new first layers, over those accuracies alone that both curves reach, all rates, all pictures: {shared}"
    yield {"id": "ours_bd.b.new_layers", "what": what, "value": shared.high, "unit": "%", "direction": "info", **peer}
    for protocol, name in (("a", "progressive"), ("b", "progressive.b")):
        worst, seen = progressive_excess(curves[protocol, "progressive"], curves[protocol, "slim"])
        what = f"bytes of one progressive stream over models of one rate at equal accuracy, worst of {seen} rates and seeds, {WHERE[protocol]}"
        yield {"id": name, "what": what, "value": worst, "unit": "%", "direction": "<=", "bar": 10}
    worst, seen = progressive_excess(curves["b", "front_progressive"], curves["b", "front"])
    what = f"the same, both behind the network's own first layers, worst of {seen} rates and seeds, {WHERE['b']}"
    yield {"id": "progressive.b.front", "what": what, "value": worst, "unit": "%", "direction": "info"}
    yield from coder_rows(POINTS)
    yield from ablation_rows(POINTS)
    yield from point_rows(curves)


def _ours_rows(protocol: str, reference: Curves, tested: Curves, low: Curves) -> Iterator[dict[str, Any]]:
    """Our best variant against the peer; with the rates that reach down to its accuracies, in those seeds that have them."""
    said, peer = SAID[OURS[protocol]], PEER
    wide = {seed: [*tested[seed], *low[seed]] for seed in set(tested) & set(low)} or tested
    every = compare(reference, wide)
    *few, kept = comparable(reference, wide)
    ours = compare(*(pictures(one, choosing=False) for one in few))
    where = (
        f"{WHERE[protocol]}, {kept}, in a row, chosen for overlap on every {CHOOSING}th picture, measured on the others"
    )
    what = f"far end of BD-rate, {said} with its int8 head against sc2bench's Entropic Student, {where}: {ours}; over all rates: {every}"
    yield {
        "id": f"ours_bd.{protocol}", "what": what, "value": ours.high, "unit": "%", "direction": "<=", "bar": -30, **peer,
    }  # fmt: skip
    what = f"seeds behind ours_bd.{protocol}, whose rates are compared, {WHERE[protocol]}"
    yield {"id": f"ours_bd.{protocol}.seeds", "what": what, "value": ours.seeds, "unit": "seeds", "direction": ">=", "bar": MIN_SEEDS}  # fmt: skip
    if ours.seeds < MIN_SEEDS or ours.value is None:
        shared = compare(reference, tested, min_overlap=SHARED)
        what = f"far end of the same over those accuracies alone that both curves reach, the rates that all seeds have, all pictures: {shared}"
        yield {"id": f"ours_bd.{protocol}.shared", "what": what, "value": shared.high, "unit": "%", "direction": "info", **peer}  # fmt: skip


def read_curves(
    folder: Path, protocol: str, method: str, *, rates: Sequence[float] = (), tuned: bool = False
) -> Curves:
    """The points of a curve by seed; of some rates, or of all; with its own tails, or fine-tuned ones.

    A seed that lacks one has no curve.
    """
    curves: Curves = {}
    lacking: set[int] = set()
    for job in JOBS.values():
        path = folder / f"{job.name}.npz"
        own = (job.protocol, job.series, job.label) == (protocol, method, "")
        path = path.with_name(f"{job.tuned_name}.npz") if tuned else path
        wanted = own and (not rates or job.options.get("beta") in rates)
        if wanted and path.is_file():
            curves.setdefault(job.seed, []).extend(read_points(path))
        elif wanted:
            lacking.add(job.seed)
    return {seed: points for seed, points in curves.items() if seed not in lacking}


def coder_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """How much of `es_bd` is the coder: both sides once more behind one teacher, the peer's integers coded by both coders."""
    peer, same, ours = ({seed: [] for seed in SEEDS} for _ in range(3))
    for job in coder_jobs():
        path = folder / f"{job.name}.npz"
        if not path.is_file():
            continue
        for point in read_points(path):
            side = ours if job.method == "entropic" else same if point.setting else peer
            side[job.seed].append(point)
    whole = len(RATES["a"]["peer_fp"])
    peer, same, ours = (
        {seed: points for seed, points in side.items() if len(points) == whole} for side in (peer, same, ours)
    )
    if not set(peer) & set(ours):
        return
    where = f"{WHERE['a']}, behind one teacher"
    for name, pair, what in (
        ("coder_only", (peer, same), "the peer's trained integers in our counted tables against its own coder"),
        ("same_coder", (same, ours), "our Entropic Student against sc2bench's, both in counted tables"),
        ("again", (peer, ours), "our Entropic Student against sc2bench's, each with its own coder, trained again"),
    ):
        found = compare(*pair)
        yield {"id": f"es_bd.{name}", "what": f"BD-rate, {what}, {where}: {found}", "value": found.value, "unit": "%", "direction": "info"}  # fmt: skip


def ablation_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """Slim with one option changed at a time: accuracy, with its bytes."""
    groups = {"": ABLATIONS, "b.": ABLATIONS_B, "front.": ABLATIONS_FRONT}
    changes = [(prefix, one) for prefix, group in groups.items() for one in group.items()]
    for (prefix, (name, (_, changes_of))), job in zip(changes, ablation_jobs(), strict=True):
        path = folder / f"{job.name}.npz"
        if path.is_file():
            (point,) = read_points(path)
            changed = ", ".join(f"{key} {value}" for key, value in changes_of.items()) or "int8 True"
            cut = f", cut at {job.layer}" if job.layer else ""
            what = f"{job.method}, beta {job.options['beta']:g}, {changed}{cut}, {WHERE[job.protocol]}, 1 seed: accuracy at {point.sizes.mean():.1f} B a frame"
            yield {"id": f"ablation.{prefix}{name}", "what": what, "value": round(100 * float(point.right.mean()), 2), "unit": "%", "direction": "info"}  # fmt: skip


def read_points(path: Path) -> list[Point]:
    """What one job left."""
    with np.load(path, allow_pickle=False) as file:
        settings = json.loads(str(file["note"]))["settings"]
        sizes = [file[f"size{number}"].astype(np.float64) for number in range(len(settings))]
        rights = [np.unpackbits(file[f"right{number}"])[: len(sizes[0])] for number in range(len(settings))]
    return [Point(*one) for one in zip(settings, sizes, rights, strict=True)]


def compare(reference: Curves, tested: Curves, *, min_overlap: float = MIN_OVERLAP) -> Interval:
    """Mean over the common seeds of the BD-rate; pictures and seeds are drawn again for the interval."""
    seeds = sorted(set(reference) & set(tested))
    if not seeds:
        return Interval(None, None, None, 0, "not measured")
    rng = np.random.default_rng(0)
    count = len(reference[seeds[0]][0].sizes)
    try:
        value = float(np.mean([_bd(reference[seed], tested[seed], np.ones(count), min_overlap) for seed in seeds]))
    except CurveError as error:
        return Interval(None, None, None, len(seeds), str(error))
    found = []
    for _ in range(ROUNDS):
        weight = np.bincount(rng.integers(0, count, count), minlength=count).astype(np.float64)
        drawn = rng.choice(seeds, len(seeds))
        try:
            found.append(np.mean([_bd(reference[seed], tested[seed], weight, min_overlap) for seed in drawn]))
        except CurveError:
            continue  # a draw whose curves do not overlap says nothing
    if len(found) < ROUNDS // 2:
        return Interval(None, None, None, len(seeds), f"curves overlap in {len(found)} of {ROUNDS} draws only")
    low, high = np.percentile(found, _SHARES)
    return Interval(value, float(low), float(high), len(seeds))


def comparable(reference: Curves, tested: Curves) -> tuple[Curves, Curves, str]:
    """Those neighbouring rates of both whose accuracies overlap most with every seed, and how many they are, in words.

    Curves that reach far beyond each other have no BD-rate. Only pictures that no row is measured on choose. The reference
    gives up its rates last: where several choices overlap enough, the one with most of them counts.
    """
    seeds = sorted(set(reference) & set(tested))
    if not seeds:
        return {}, {}, ""
    theirs, ours = (_accuracies(pictures(one, choosing=True), seeds) for one in (reference, tested))
    runs = []
    for start, stop in _runs(theirs.shape[1], MIN_REFERENCE):
        for first, end in _runs(ours.shape[1], MIN_RATES):
            pairs = zip(theirs[:, start:stop], ours[:, first:end], strict=True)
            shared = min(_overlap(one, run) for one, run in pairs)
            runs.append((shared >= MIN_OVERLAP, stop - start, shared, end - first, start, first))
    _, width, _, count, start, first = max(runs)
    kept = f"{width} of {theirs.shape[1]} rates of the reference and {count} of {ours.shape[1]} of ours"
    return (
        {seed: reference[seed][start : start + width] for seed in seeds},
        {seed: tested[seed][first : first + count] for seed in seeds},
        kept,
    )


def _runs(count: int, least: int) -> list[tuple[int, int]]:
    """Ends of all neighbouring rates, at least so many; all of them where there are fewer."""
    found = [(first, end) for first in range(count) for end in range(first + least, count + 1)]
    return found or [(0, count)]


def progressive_excess(progressive: Curves, single: Curves) -> tuple[float | None, int]:
    """Largest excess of bytes in percent over the single-rate curve at the same accuracy, and how many points were comparable.

    Below that curve the model with the fewest bytes, which is more accurate there, stands for it: the excess is at least so large.
    """
    found = []
    for seed in set(progressive) & set(single):
        points = sorted((float(one.right.mean()), float(np.log(one.sizes.mean()))) for one in single[seed])
        x, y = (np.array(column) for column in zip(*points, strict=True))
        keep = np.concatenate([[True], np.diff(x) > 0])
        x, y = x[keep], y[keep]
        for one in progressive[seed]:
            wanted = float(one.right.mean())
            if len(x) > 1 and wanted <= x[-1]:
                found.append(100 * (float(one.sizes.mean()) / np.exp(interpolate(x, y, max(wanted, x[0]))) - 1))
    return (float(max(found)) if found else None), len(found)


def point_rows(curves: Mapping[tuple[str, str], Curves]) -> Iterator[dict[str, Any]]:
    """Mean over the seeds of each rate: bytes with their 95th percentile, and accuracy, as information."""
    for (protocol, method), by_seed in curves.items():
        if not by_seed:
            continue
        most = max(len(points) for points in by_seed.values())
        for number in range(most):
            points = [one[number] for one in by_seed.values() if len(one) > number]
            sizes, right = (np.mean([getattr(one, key).mean() for one in points]) for key in ("sizes", "right"))
            high = np.mean([np.percentile(one.sizes, 95) for one in points])
            setting = points[0].setting or f"rate {number + 1}"
            what = f"{method}, {setting}, {WHERE[protocol]}: accuracy at {sizes:.0f} B a frame (p95 {high:.0f} B), {len(points)} of {len(SEEDS)} seeds"
            yield {
                "id": f"curve.{protocol}.{method}.{number + 1}", "what": what, "value": round(100 * float(right), 2), "unit": "%",
                "direction": "info",
            }  # fmt: skip


def pictures(curves: Curves, *, choosing: bool) -> Curves:
    """The part of the pictures that chooses rates, or the part that measures."""

    def part(values: np.ndarray) -> np.ndarray:
        return values[(np.arange(len(values)) % CHOOSING == 0) == choosing]

    return {
        seed: [Point(one.setting, part(one.sizes), part(one.right)) for one in points]
        for seed, points in curves.items()
    }


def _accuracies(curves: Curves, seeds: Sequence[int]) -> np.ndarray:
    """Of shape (seeds, rates)."""
    return np.array([[one.right.mean() for one in curves[seed]] for seed in seeds])


def _overlap(one: np.ndarray, other: np.ndarray) -> float:
    shared = min(one.max(), other.max()) - max(one.min(), other.min())
    return float(shared / max(np.ptp(one), np.ptp(other)))


def _bd(reference: Sequence[Point], tested: Sequence[Point], weight: np.ndarray, min_overlap: float) -> float:
    pairs = []
    for points in (reference, tested):
        total = weight.sum()
        pairs.append(([one.sizes @ weight / total for one in points], [one.right @ weight / total for one in points]))
    return bd_rate(*pairs, min_overlap=min_overlap).percent


def interpolate(x: np.ndarray, y: np.ndarray, at: float) -> float:
    """The curve that `bd_rate` integrates, at one place."""
    slopes = monotone_slopes(x, y)
    index = min(int(np.searchsorted(x, at, side="right")) - 1, len(x) - 2)
    h = x[index + 1] - x[index]
    t, d = (at - x[index]) / h, (y[index + 1] - y[index]) / h
    c2, c3 = 3 * d - 2 * slopes[index] - slopes[index + 1], slopes[index] + slopes[index + 1] - 2 * d
    return float(y[index] + h * t * (slopes[index] + t * (c2 + t * c3)))
