"""Rows of three tails over one stream from the committed points: BD-rates against WebP with fine-tuned tails, hashes, the chart.

`python -m benchmarks.split.scene_curves` makes the points, on a GPU in minutes; they lie in results/split_points.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.rows import RESULTS, RowError
from benchmarks.split.scene_curves import ScenePlan, points
from benchmarks.split.scene_points import ScenePoint, point_path, read_point
from split.quality import CurveError, bd_rate

POINTS = RESULTS / "split_points"
CHART = RESULTS / "charts" / "three_tails"
SEEDS = (0, 1, 2)
BAR = -30.0
TASKS = {"masks": "mean IoU", "boxes": "AP at an overlap of 0.5", "classes": "accuracy"}
# Scenes that choose which of slim's rates are compared, one of so many; the others measure
CHOOSING = 5
MIN_RATES = 3
MIN_POINTS = 3
ROUNDS = 500
_SHARES = (2.5, 97.5)

Curve = list[ScenePoint]


@dataclass(frozen=True)
class SceneRate:
    """A BD-rate in percent, its 95 % interval, and what it was computed from; null where curves cannot be compared."""

    value: float | None
    text: str


def rows(folder: Path = POINTS) -> Iterator[dict[str, Any]]:
    """three_tails and what it consists of, the points, the chart.

    Raises:
        RowError: No seed has enough points.
    """
    slim, webp = (read_curves(folder, kind) for kind in ("slim", "webp"))
    seeds = sorted(set(slim) & set(webp))
    if not seeds:
        raise RowError(
            f"Wanted {MIN_POINTS} points of both sides with one seed in {folder}, found none. Run: python -m benchmarks.split.scene_curves"
        )
    plan = ScenePlan()
    where = f"{plan.test} scenes of {plan.size} px composed from test photos of groceries, EfficientNet-Lite0, {len(seeds)} seeds"
    rates = {task: compare([webp[one] for one in seeds], [slim[one] for one in seeds], task) for task in TASKS}
    both = [rates[task].value for task in ("masks", "boxes")]
    worse = None if None in both else max(one for one in both if one is not None)
    peer = {
        "peer": "WebP, whole network fine-tuned for each task",
        "peer_version": f"Pillow {webp[seeds[0]][0].note['pillow']}",
    }
    yield {
        "id": "three_tails", "what": f"the worse BD-rate of masks and boxes over one head's bytes, the head in real numbers up to its integers, {where}", "value": worse, "unit": "%",
        "direction": "<=", "bar": BAR, **peer,
    }  # fmt: skip
    for task, rate in rates.items():
        text = f"BD-rate of {task} ({TASKS[task]}), {where}: {rate.text}"
        yield {"id": f"three_tails.{task}", "what": text, "value": rate.value, "unit": "%", "direction": "info", **peer}
    most = max(len(set(one.note["sent"].values())) for curve in slim.values() for one in curve)
    text = "different hashes of head, tables and all test frames among the three tails of a head, the most of all heads"
    yield {"id": "three_tails.same_head", "what": text, "value": most, "unit": "hashes", "direction": "==", "bar": 1}
    yield from _point_rows({"slim": slim, "webp": webp})
    draw_chart({"slim": [slim[one] for one in seeds], "webp": [webp[one] for one in seeds]}, CHART)


def read_curves(folder: Path, kind: str) -> dict[int, Curve]:
    """The points of one side by seed; all that are there, where they are enough for a curve."""
    names = [one for one in points(ScenePlan()) if one.startswith(kind)]
    found = {}
    for seed in SEEDS:
        paths = [path for name in names if (path := point_path(folder, name, seed)).is_file()]
        if len(paths) >= MIN_POINTS:
            found[seed] = [read_point(path) for path in paths]
    return found


def compare(reference: Sequence[Curve], tested: Sequence[Curve], task: str) -> SceneRate:
    """Mean over the seeds of the BD-rate of one task; scenes and seeds are drawn again for the interval.

    Args:
        reference: A curve for each seed.
        tested: The same seeds; neighbouring rates of them are chosen for overlap, on scenes that measure nothing.
        task: Whose score.
    """
    count = len(reference[0][0].sizes)
    chooses = np.arange(count) % CHOOSING == 0
    first, end = _overlapping(reference, tested, task, chooses.astype(float))
    pairs = [(one, other[first:end]) for one, other in zip(reference, tested, strict=True)]
    measured = np.flatnonzero(~chooses)
    kept = f"{end - first} of {len(tested[0])} rates in a row, chosen for overlap on every {CHOOSING}th scene, measured on the others"
    try:
        value = float(np.mean([_bd(one, other, task, (~chooses).astype(float)) for one, other in pairs]))
    except CurveError as error:
        return SceneRate(None, f"{kept}: {error}")
    rng, drawn = np.random.default_rng(0), []
    for _ in range(ROUNDS):
        weights = np.bincount(rng.choice(measured, len(measured)), minlength=count).astype(float)
        chosen = [pairs[one] for one in rng.integers(0, len(pairs), len(pairs))]
        try:
            drawn.append(np.mean([_bd(one, other, task, weights) for one, other in chosen]))
        except CurveError:
            continue  # a draw whose curves do not overlap says nothing
    if len(drawn) < ROUNDS // 2:
        return SceneRate(value, f"{kept}; curves overlap in {len(drawn)} of {ROUNDS} draws only")
    low, high = np.percentile(drawn, _SHARES)
    return SceneRate(value, f"{value:+.1f} % ({low:+.1f} to {high:+.1f}), {kept}")


def _overlapping(
    reference: Sequence[Curve], tested: Sequence[Curve], task: str, weights: np.ndarray
) -> tuple[int, int]:
    """Start and end of the neighbouring rates whose scores overlap the reference's most with every seed."""
    theirs, ours = (
        np.array([[one.score(task, weights) for one in curve] for curve in side]) for side in (reference, tested)
    )
    runs = []
    for first in range(ours.shape[1]):
        for end in range(first + MIN_RATES, ours.shape[1] + 1):
            shares = [_overlap(one, other[first:end]) for one, other in zip(theirs, ours, strict=True)]
            runs.append((min(shares), end - first, first))
    _, count, first = max(runs)
    return first, first + count


def _overlap(one: np.ndarray, other: np.ndarray) -> float:
    shared = min(one.max(), other.max()) - max(one.min(), other.min())
    return float(shared / max(np.ptp(one), np.ptp(other), 1e-12))


def _bd(reference: Curve, tested: Curve, task: str, weights: np.ndarray) -> float:
    curves = [
        ([one.size(weights) for one in side], [one.score(task, weights) for one in side])
        for side in (reference, tested)
    ]
    return bd_rate(*curves).percent


def _point_rows(sides: dict[str, dict[int, Curve]]) -> Iterator[dict[str, Any]]:
    """Mean over the seeds of each rate, as information."""
    for kind, curves in sides.items():
        for number, same in enumerate(zip(*curves.values(), strict=True), 1):
            size = np.mean([one.size() for one in same])
            high = np.mean([np.percentile(one.sizes, 95) for one in same])
            scores = {task: round(100 * float(np.mean([one.score(task) for one in same])), 2) for task in TASKS}
            others = f"AP of boxes {scores['boxes']} %, accuracy {scores['classes']} %"
            what = (
                f"{same[0].name}: mean IoU at {size:.0f} B a frame (p95 {high:.0f} B), with {others}; {len(same)} seeds"
            )
            yield {"id": f"three_tails.{kind}.{number}", "what": what, "value": scores["masks"], "unit": "%", "direction": "info"}  # fmt: skip


def draw_chart(sides: dict[str, list[Curve]], path: Path) -> None:
    """Score over bytes for each task, as PNG and SVG; thin lines are seeds."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    for axes, (task, measure) in zip(figure.subplots(1, len(TASKS)), TASKS.items(), strict=True):
        for (kind, curves), colour in zip(sides.items(), ("tab:blue", "tab:orange"), strict=True):
            sizes = np.array([[one.size() for one in curve] for curve in curves])
            scores = np.array([[one.score(task) for one in curve] for curve in curves])
            for x, y in zip(sizes, scores, strict=True):
                axes.plot(x, y, color=colour, linewidth=0.6, alpha=0.5)
            axes.plot(sizes.mean(0), scores.mean(0), "o-", color=colour, label=kind)
        axes.set(title=task, xlabel="bytes of a frame", ylabel=measure, xscale="log")
        axes.grid(alpha=0.3, which="both")
        axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    for ending in ("png", "svg"):
        metadata = {"Date": None} if ending == "svg" else None
        figure.savefig(path.with_suffix(f".{ending}"), dpi=120, metadata=metadata)
