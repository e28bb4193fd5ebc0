"""Rate-accuracy curves of the study: the points that its jobs left, and what is computed of them, with bootstrap intervals."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from benchmarks.rows import RESULTS
from benchmarks.split.study_plan import COUNTED_TABLES, JOBS, SEEDS
from split.quality import MIN_OVERLAP, CurveError, bd_rate, monotone_slopes

POINTS = RESULTS / "split_points"
# Protocol b behind a teacher whose weights were not kept: these points are compared with each other alone
EARLIER = POINTS / "earlier"
ROUNDS = 1000
MIN_SEEDS = 3
_SHARES = (2.5, 97.5)
# Pictures that choose which of our rates are compared, one of so many; the others measure
CHOOSING = 5
MIN_RATES = 2
MIN_REFERENCE = 3
SHARED = 0.05  # of either curve: overlap of the rows that only inform, and of choices on validation pictures


@dataclass(frozen=True)
class Point:
    """One rate of one training: bytes of each test picture's frame with header, and whether its class is right.

    Attributes:
        setting: What sets it apart from other points of the same training.
        sizes: Of each test picture.
        right: The same pictures.
        validation: Mean bytes and accuracy on validation pictures.
    """

    setting: str
    sizes: np.ndarray
    right: np.ndarray
    validation: tuple[float, float] = (math.nan, math.nan)


Name = TypeVar("Name")
Curves = dict[int, list[Point]]  # by seed
Rates = dict[str, Curves]  # the same, each rate by its name: what one training left


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % interval; null where it cannot be computed."""

    value: float | None
    low: float | None
    high: float | None
    seeds: int
    reason: str = ""

    def __str__(self) -> str:
        return self.said()

    def said(self, form: str = "+.1f", unit: str = " %") -> str:
        """In words."""
        if self.value is None:
            return self.reason
        value, low, high = (format(one, form) for one in (self.value, self.low, self.high))
        return f"{value}{unit} ({low} to {high}, {self.seeds} seeds)"


def read_rates(folder: Path, protocol: str, curve: str, *, tuned: bool = False, counted: bool = False) -> Rates:
    """The points of every planned rate of a curve, with its own tails or fine-tuned ones; empty where no seed has it.

    Of the peer's integers those in its own strings, or in our counted tables.
    """
    rates: Rates = {}
    for job in JOBS.values():
        if (job.protocol, job.series, job.label) == (protocol, curve, ""):
            by_seed = rates.setdefault(job.name.removesuffix(f"-s{job.seed}"), {})
            path = folder / f"{job.tuned_name if tuned else job.name}.npz"
            if path.is_file():
                by_seed[job.seed] = [one for one in read_points(path) if (one.setting == COUNTED_TABLES) == counted]
    return rates


def read_curves(folder: Path, protocol: str, curve: str, *, tuned: bool = False) -> Curves:
    """The largest complete part of a curve: `complete`."""
    return complete(read_rates(folder, protocol, curve, tuned=tuned))


def complete(rates: Rates) -> Curves:
    """Seeds that have the same rates: three of these, where there are so many, then most seeds, then most rates."""
    choices = []
    for count in range(1, len(SEEDS) + 1):
        for seeds in combinations(SEEDS, count):
            names = [name for name, by_seed in rates.items() if set(seeds) <= set(by_seed)]
            choices.append((min(len(names), MIN_REFERENCE), count if names else 0, len(names), seeds, names))
    *_, seeds, names = max(choices, key=lambda one: one[:3])
    return {seed: [point for name in names for point in rates[name][seed]] for seed in seeds if names}


def extended(curves: Curves, more: Curves) -> Curves:
    """Both in one; the first alone where no seed has both."""
    return {seed: [*curves[seed], *more[seed]] for seed in curves if seed in more} or curves


def read_note(path: Path) -> dict[str, Any]:
    """What one job says of itself."""
    with np.load(path, allow_pickle=False) as file:
        return _note(file)


def _note(file: Mapping[str, np.ndarray]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(str(file["note"]))
    return found


def read_points(path: Path) -> list[Point]:
    """What one job left."""
    with np.load(path, allow_pickle=False) as file:
        note = _note(file)
        known = note.get("val", [(math.nan, math.nan)] * len(note["settings"]))
        points = []
        for number, (setting, (size, share)) in enumerate(zip(note["settings"], known, strict=True)):
            sizes = file[f"size{number}"].astype(np.float64)
            points.append(Point(setting, sizes, np.unpackbits(file[f"right{number}"])[: len(sizes)], (size, share)))
    return points


def bootstrap(seeds: Sequence[int], count: int, measure: Callable[[Sequence[int], np.ndarray], float]) -> Interval:
    """A figure of some seeds and weighted pictures; both are drawn again for its interval.

    Args:
        seeds: All of them.
        count: Pictures.
        measure: The figure of these seeds and a weight for each picture; `CurveError` where there is none.
    """
    if not seeds:
        return Interval(None, None, None, 0, "not measured")
    try:
        value = float(measure(seeds, np.ones(count)))
    except CurveError as error:
        return Interval(None, None, None, len(seeds), str(error))
    rng, found = np.random.default_rng(0), []
    for _ in range(ROUNDS):
        weight = np.bincount(rng.integers(0, count, count), minlength=count).astype(np.float64)
        drawn = rng.choice(seeds, len(seeds))
        try:
            found.append(measure(drawn.tolist(), weight))
        except CurveError:
            continue  # a draw without the figure says nothing
    if len(found) < ROUNDS // 2:
        return Interval(None, None, None, len(seeds), f"curves overlap in {len(found)} of {ROUNDS} draws only")
    low, high = np.percentile(found, _SHARES)
    return Interval(value, float(low), float(high), len(seeds))


def compare(reference: Curves, tested: Curves, *, min_overlap: float = MIN_OVERLAP) -> Interval:
    """Mean over the common seeds of the BD-rate; the seeds' curves overlap by `min_overlap` in the mean."""
    seeds = sorted(set(reference) & set(tested))

    def measure(drawn: Sequence[int], weight: np.ndarray) -> float:
        pairs = ((means(reference[seed], weight), means(tested[seed], weight)) for seed in drawn)
        rates = [bd_rate(*pair, min_overlap=SHARED) for pair in pairs]
        overlap = np.mean([one.overlap for one in rates])
        if overlap < min_overlap:
            raise CurveError(
                f"Wanted accuracies that overlap by {min_overlap:.0%} of either curve in the mean of the seeds, found {overlap:.0%}. "
                "Measure more rates."
            )
        return float(np.mean([one.percent for one in rates]))

    return bootstrap(seeds, len(reference[seeds[0]][0].sizes) if seeds else 0, measure)


def best_on_validation(candidates: Mapping[Name, Curves]) -> Name:
    """Which curve needs fewest bytes on validation pictures: the lowest BD-rate against the first one, seeds averaged.

    Of those with three seeds, or of those with most where none has three; what does not overlap with the first one is none.
    """
    least = min(MIN_SEEDS, max(len(curves) for curves in candidates.values()))
    seen = {
        name: np.mean([[point.validation for point in points] for points in curves.values()], 0).T
        for name, curves in candidates.items()
        if len(curves) >= least
    }  # name -> (2, rates)
    first, rates = next(iter(seen)), {}
    for name, (sizes, shares) in seen.items():
        try:
            rates[name] = bd_rate(tuple(seen[first]), (sizes, shares), min_overlap=SHARED).percent
        except CurveError:
            continue
    return min(rates, key=lambda name: rates[name], default=first)


def comparable(reference: Curves, tested: Curves) -> tuple[Curves, Curves, str]:
    """Those neighbouring rates of both whose accuracies overlap most in the mean of the seeds, and how many they are, in words.

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
            shared = float(np.mean([_overlap(one, run) for one, run in pairs]))
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


def progressive_excess(progressive: Curves, single: Curves) -> Interval:
    """Excess of bytes in percent over models of one rate at the same accuracy: of the layers with the largest, seeds averaged.

    Below that curve the model with the fewest bytes, which is more accurate there, stands for it: the excess is at least so large.
    """
    seeds = sorted(set(progressive) & set(single))

    def measure(drawn: Sequence[int], weight: np.ndarray) -> float:
        pairs = [(progressive[seed], single[seed]) for seed in drawn]
        return _worst_excess([((one, means(one, weight)), means(other, weight)) for one, other in pairs])

    return bootstrap(seeds, len(progressive[seeds[0]][0].sizes) if seeds else 0, measure)


def progressive_loss(progressive: Curves, single: Curves) -> Interval:
    """Points of accuracy below models of one rate at the same bytes: of the layers that lose most, seeds averaged.

    Where curves are flat, bytes at equal accuracy say little, and this says more.
    """
    seeds = sorted(set(progressive) & set(single))

    def measure(drawn: Sequence[int], weight: np.ndarray) -> float:
        found: dict[str, list[float]] = {}
        for seed in drawn:
            y, x = rising(*means(single[seed], weight))
            for point, size, right in zip(progressive[seed], *means(progressive[seed], weight), strict=True):
                at = min(float(np.log(size)), x[-1])
                if len(x) > 1 and at >= x[0]:
                    found.setdefault(point.setting, []).append(100 * (interpolate(x, y, at) - float(right)))
        if not found:
            raise CurveError("Wanted bytes that models of one rate reach, found none. Measure more rates.")
        return float(max(np.mean(some) for some in found.values()))

    return bootstrap(seeds, len(progressive[seeds[0]][0].sizes) if seeds else 0, measure)


def best_recipe(recipes: Mapping[Name, tuple[Curves, Curves]]) -> Name:
    """Of pairs of streams and models of one rate: whose excess over them is least on validation pictures."""

    def excess(pair: tuple[Curves, Curves]) -> float:
        streams, single = pair
        seeds = [seed for seed in streams if seed in single]
        return _worst_excess([((streams[seed], _validated(streams[seed])), _validated(single[seed])) for seed in seeds])

    return min(recipes, key=lambda name: excess(recipes[name]))


def _validated(points: Sequence[Point]) -> tuple[np.ndarray, np.ndarray]:
    sizes, right = np.array([point.validation for point in points]).T
    return sizes, right


Means = tuple[np.ndarray, np.ndarray]  # bytes and accuracies


def _worst_excess(seeds: Sequence[tuple[tuple[Sequence[Point], Means], Means]]) -> float:
    """Of streams, each with its means, over those of models of one rate; a pair for each seed."""
    found: dict[str, list[float]] = {}
    for (points, stream), single in seeds:
        x, y = rising(*single)
        for point, size, right in zip(points, *stream, strict=True):
            if len(x) > 1 and right <= x[-1]:
                at = interpolate(x, y, max(right, x[0]))
                found.setdefault(point.setting, []).append(100 * (size / np.exp(at) - 1))
    if not found:
        raise CurveError("Wanted an accuracy that models of one rate reach, found none. Measure more rates.")
    return float(max(np.mean(some) for some in found.values()))


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


def means(points: Sequence[Point], weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bytes and accuracy of each point; sums come first, since they are exact and equal accuracies stay equal."""
    sums = ([getattr(one, part) @ weight for one in points] for part in ("sizes", "right"))
    sizes, right = (np.array(one) / weight.sum() for one in sums)
    return sizes, right


def rising(sizes: np.ndarray, accuracies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Accuracies and logarithms of bytes of a curve; what needs more bytes and is not better is no point of it."""
    order = np.argsort(sizes, kind="stable")
    best = np.maximum.accumulate(accuracies[order])
    keep = np.concatenate([[True], best[1:] > best[:-1]])
    return accuracies[order][keep], np.log(sizes[order][keep])


def interpolate(x: np.ndarray, y: np.ndarray, at: float) -> float:
    """The curve that `bd_rate` integrates, at one place."""
    slopes = monotone_slopes(x, y)
    index = min(int(np.searchsorted(x, at, side="right")) - 1, len(x) - 2)
    h = x[index + 1] - x[index]
    t, d = (at - x[index]) / h, (y[index + 1] - y[index]) / h
    c2, c3 = 3 * d - 2 * slopes[index] - slopes[index + 1], slopes[index] + slopes[index + 1] - 2 * d
    return float(y[index] + h * t * (slopes[index] + t * (c2 + t * c3)))
