"""Rows of BottleFit, protocol B: its bytes against the cheaper codec before the unsplit network, and its paired loss.

Both with intervals over pictures and seeds. What is chosen is chosen on validation pictures.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.split.grocery_codecs import CodecPoint
from benchmarks.split.study_curves import MIN_SEEDS, Interval, Point, bootstrap, interpolate, means, read_rates, rising
from benchmarks.split.study_plan import FRONTS
from benchmarks.split.study_rows import WHERE
from split.quality import CurveError

SHARE_BAR, LOSS_BAR, UPPER_BAR = 23, 1.0, 2.5
CODECS = ("webp", "jpeg")
_AS_GOOD = 0.005  # accuracies that are alike
_ENDINGS = {"bottlefit": "", "front_bottlefit": ".front", "deep_bottlefit": ".deep"}


@dataclass(frozen=True)
class Form:
    """BottleFit with some channels, bits and first layers.

    Attributes:
        name: In words.
        slug: In the ids of its rows.
        points: One for each seed.
    """

    name: str
    slug: str
    points: Sequence[Point]

    @property
    def validation(self) -> np.ndarray:
        """Bytes and accuracy on validation pictures, mean over the seeds."""
        return np.mean([one.validation for one in self.points], 0)

    def __str__(self) -> str:
        sizes, right = (np.mean([getattr(one, part) for one in self.points]) for part in ("sizes", "right"))
        return f"{self.name}, {sizes:.0f} B at {100 * right:.1f} %"


def read_forms(folder: Path) -> list[Form]:
    """All forms with points, each as it was trained and with a fine-tuned tail."""
    forms = []
    for curve, ending in _ENDINGS.items():
        kept = f" behind kept layers to {FRONTS[curve]}" if curve in FRONTS else ""
        for tuned in (False, True):
            for by_seed in read_rates(folder, "b", curve, tuned=tuned).values():
                for points in zip(*by_seed.values(), strict=True):
                    name = points[0].setting + kept + ", tail fine-tuned" * tuned
                    forms.append(Form(name, _slug(points[0].setting) + ending + ".tuned" * tuned, points))
    return forms


def _slug(setting: str) -> str:
    return re.sub(r"(\d+) channels of (\d+) bits", r"\1c\2b", setting).replace(", half the side", ".half")


def bottlefit_rows(forms: Sequence[Form], codecs: Sequence[CodecPoint], whole: np.ndarray) -> Iterator[dict[str, Any]]:
    """bottlefit, its far end, its loss and its seeds: of the chosen form; then both figures of every form."""
    found = {form.slug: (share_of(form, codecs), loss_of(form, whole)) for form in forms}
    nothing = Interval(None, None, None, 0, "not measured")
    best = choose(forms) if forms else None
    share, loss = found[best.slug] if best else (nothing, nothing)
    where = f"{WHERE['b']}: {best or 'no points'}, chosen on validation pictures among {len(forms)} forms"
    against = (
        "bytes of BottleFit's frames against the cheaper of WebP and JPEG at equal accuracy of the unsplit network"
    )
    peer = {"unit": "%", "direction": "<=", "bar": SHARE_BAR, "peer": "WebP and JPEG without tables"}
    for name, what, value in (("bottlefit", "", share.value), ("bottlefit.upper", "far end of the ", share.high)):
        yield {"id": name, "what": f"{what}{against}, {where}: {share.said('.1f')}", "value": value, **peer}
    lost = "accuracy of BottleFit below that of its teacher, the unsplit network, same pictures"
    for name, what, value, bar in (
        ("bottlefit.loss", lost, loss.value, LOSS_BAR),
        ("bottlefit.loss_upper", f"upper end of the 95 % interval of the {lost}", loss.high, UPPER_BAR),
    ):
        text = f"{what}, {where}: {loss.said('.2f', ' points')}"
        yield {"id": name, "what": text, "value": value, "unit": "points", "direction": "<=", "bar": bar}
    what = f"seeds behind bottlefit, {WHERE['b']}"
    yield {"id": "bottlefit.seeds", "what": what, "value": share.seeds, "unit": "seeds", "direction": ">=", "bar": MIN_SEEDS}  # fmt: skip
    for form in forms:
        share, loss = found[form.slug]
        what = f"{against}, {form}: {share.said('.1f')}; it loses {loss.said('.2f', ' points')}"
        yield {"id": f"bottlefit.{form.slug}", "what": what, "value": share.value, "unit": "%", "direction": "info"}


def choose(forms: Sequence[Form]) -> Form:
    """The fewest bytes within half a point of the best accuracy, both on validation pictures, means over a form's seeds."""
    good = max(form.validation[1] for form in forms) - _AS_GOOD
    return min((form for form in forms if form.validation[1] >= good), key=lambda form: form.validation[0])


def share_of(form: Form, codecs: Sequence[CodecPoint]) -> Interval:
    """Its bytes in percent of what the cheaper codec needs for its accuracy, means over the seeds."""

    def measure(drawn: Sequence[int], weight: np.ndarray) -> float:
        sizes, right = (one.mean() for one in means([form.points[one] for one in drawn], weight))
        needed = bytes_at(float(right), codecs, tuned=False, weight=weight)
        if needed is None:
            raise CurveError(f"Wanted a codec with an accuracy of {right:.3f} or less, found none.")
        return float(100 * sizes / needed)

    return _bootstrap(form, measure)


def loss_of(form: Form, whole: np.ndarray) -> Interval:
    """Points of accuracy below the unsplit network, mean over the seeds."""
    lost = [100.0 * (whole.astype(np.float64) - one.right) for one in form.points]
    return _bootstrap(form, lambda drawn, weight: float(np.mean([lost[one] @ weight for one in drawn]) / weight.sum()))


def _bootstrap(form: Form, measure: Callable[[Sequence[int], np.ndarray], float]) -> Interval:
    return bootstrap(range(len(form.points)), len(form.points[0].sizes), measure)


def bytes_at(
    accuracy: float, codecs: Sequence[CodecPoint], *, tuned: bool, weight: np.ndarray | None = None
) -> float | None:
    """Mean bytes of the cheaper codec at an accuracy, on the curve through its points; null below all of these.

    Where no codec reaches it, the fewest bytes of their best points: they need at least so many.

    Args:
        accuracy: In [0, 1].
        codecs: Their points.
        tuned: Before the fine-tuned networks, or before the plain one.
        weight: Of each picture in all means; equal ones by default.
    """
    reached, tops = [], []
    for codec in CODECS:
        curve = [codec_point(one, tuned=tuned) for one in codecs if one.codec == codec]
        if not curve:
            continue
        x, y = rising(*means(curve, np.ones(len(curve[0].sizes)) if weight is None else weight))
        if len(x) > 1 and x[0] <= accuracy <= x[-1]:
            reached.append(float(np.exp(interpolate(x, y, accuracy))))
        elif accuracy > x[-1]:
            tops.append(float(np.exp(y[-1])))
    return min(reached or tops, default=None)


def codec_point(one: CodecPoint, *, tuned: bool) -> Point:
    """As a point of a curve: before the fine-tuned network, or before the plain one."""
    return Point(f"{one.codec} {one.quality}", one.sizes, (one.tuned if tuned else one.plain).astype(np.float64))
