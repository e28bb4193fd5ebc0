"""Several pairs against each other, JPEG, WebP, raw pixels and no split: rows, curves, differences, latency over links."""

import hashlib
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from device_profiles.link import Link, parse_link
from edge_runtime.artefact import Artefact
from edge_runtime.codecs import codec_of
from edge_runtime.entropy import EntropyCodec
from export.codec_points import QUALITIES
from export.evaluate import (
    Pictures,
    Way,
    WayReport,
    evaluate_exit,
    evaluate_pair,
    evaluate_whole,
    raw_way,
    summarise,
)
from export.originals import OriginalPictures
from split.quality import CurveError, bd_rate

LINKS = ("250kbit/40ms", "1mbit/40ms", "10mbit/15ms", "100mbit/5ms")
_REPLY_BYTES = 128  # envelope, frame and logits of a few classes; too small to matter
_POINTS = 4  # of a curve, at least, for a rate difference


@dataclass(frozen=True)
class EvaluationOptions:
    """How to measure.

    Attributes:
        data: What the pictures are called.
        codecs: Whether JPEG and WebP are measured.
        links: Rate and round trip of each link.
        prefixes: Whether each number of layers of a stream with several is a way of its own.
        on_way: Told the name of each way before it starts, and how many pictures it has.
        on_picture: Told how many of them are done.
    """

    data: str
    codecs: bool = True
    links: tuple[str, ...] = LINKS
    prefixes: bool = True
    on_way: Callable[[str, int], None] = field(default=lambda _name, _count: None, repr=False)
    on_picture: Callable[[int], None] | None = field(default=None, repr=False)


class RateDifference(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bytes of one curve against another at equal accuracy, in percent; null with the reason where it has no value."""

    tested: str
    reference: str
    percent: float | None
    remark: str = ""


class LinkRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Milliseconds for one picture of each way over one link, by name; computed from bytes and CPU times, not sent."""

    link: str
    ms: dict[str, float]
    fastest: str


class Evaluation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that was measured."""

    data: str
    data_sha256: str
    pictures: int
    skipped: int
    skipped_names: tuple[str, ...] = ()
    machine: str
    ways: tuple[WayReport, ...]
    differences: tuple[RateDifference, ...]
    links: tuple[LinkRow, ...]


def evaluate_pairs(
    pairs: Mapping[str, tuple[Artefact, Artefact]],
    whole: Artefact | None,
    data: Pictures,
    options: EvaluationOptions,
) -> Evaluation:
    """Measure pairs, and, where the whole network is there, no split, raw pixels, JPEG and WebP.

    Args:
        pairs: Head and tail by name.
        whole: The unsplit network; without it losses are against the first pair.
        data: Test pictures: the originals (`export.originals.open_originals`), of which each artefact makes its own input
            as on a device, or a `PictureSet`.
        options: See `EvaluationOptions`.

    Raises:
        EdgeError: As `export.evaluate` says.
    """
    ways = _whole_ways(whole, data, options) if whole is not None else []
    for name, (head, tail) in pairs.items():
        options.on_way(name, len(data))
        every, leaving = evaluate_exit(head, tail, data, name=name, on_picture=options.on_picture)
        ways += [every, leaving] if leaving else [every]
        for layers in range(1, _layers(head) if options.prefixes else 1):
            label = f"{name}, {layers} layers"
            options.on_way(label, len(data))
            part = evaluate_pair(head, tail, data, name=label, layers=layers, on_picture=options.on_picture)
            ways.append(part)
    rows = summarise(ways, data.labels.numpy(), reference=ways[0].name)
    return Evaluation(
        data=options.data,
        data_sha256=_sha256(data),
        pictures=len(data),
        skipped=len(data.skipped),
        skipped_names=data.skipped,
        machine=f"{platform.machine()}, 1 thread",
        ways=rows,
        differences=rate_differences(rows),
        links=tuple(_link_row(rows, text) for text in options.links),
    )


def _sha256(data: Pictures) -> str:
    if isinstance(data, OriginalPictures):
        return data.sha256()
    return hashlib.sha256(data.images.numpy().tobytes() + data.labels.numpy().tobytes()).hexdigest()


def rate_differences(rows: Sequence[WayReport]) -> tuple[RateDifference, ...]:
    """The curve of all pairs against those of JPEG and WebP, where both have at least four points."""
    curves: dict[str, list[WayReport]] = {}
    for row in rows:
        curves.setdefault("pairs" if row.kind == "pair" else row.curve, []).append(row)
    found = []
    for reference in ("jpeg", "webp"):
        tested, other = curves.get("pairs", []), curves.get(reference, [])
        if not tested or not other:
            continue
        if min(len(tested), len(other)) < _POINTS:
            remark = f"Wanted {_POINTS} points of either curve, found {len(tested)} and {len(other)}."
            found.append(RateDifference(tested="pairs", reference=reference, percent=None, remark=remark))
            continue
        points = [([one.bytes_mean for one in part], [one.accuracy for one in part]) for part in (other, tested)]
        try:
            percent = bd_rate(points[0], points[1]).percent
            found.append(RateDifference(tested="pairs", reference=reference, percent=percent))
        except CurveError as error:
            found.append(RateDifference(tested="pairs", reference=reference, percent=None, remark=str(error)))
    return tuple(found)


def total_ms(row: WayReport, link: Link) -> float:
    """One picture from pixels to answer: CPU times, and the link for what is sent; the mean where not all send."""
    computing = row.device_ms + row.encode_ms + row.decode_ms + row.host_ms
    if not row.bytes_mean:
        return computing
    return computing + row.sent * (link.uplink_ms(row.bytes_mean / row.sent) + link.downlink_ms(_REPLY_BYTES))


def _whole_ways(whole: Artefact, data: Pictures, options: EvaluationOptions) -> list[Way]:
    options.on_way("no split", len(data))
    plain = evaluate_whole(whole, data, on_picture=options.on_picture)
    ways = [plain]
    if whole.manifest.preprocessing is not None:
        ways.append(raw_way(plain, whole.manifest.preprocessing))
    for codec, qualities in QUALITIES.items() if options.codecs else ():
        for quality in qualities:
            options.on_way(f"{codec} {quality}", len(data))
            ways.append(evaluate_whole(whole, data, codec=codec, quality=quality, on_picture=options.on_picture))
    return ways


def _layers(head: Artefact) -> int:
    _, codec = codec_of(head)
    return len(codec.tables.layers) if isinstance(codec, EntropyCodec) else 1


def _link_row(rows: Sequence[WayReport], text: str) -> LinkRow:
    link = parse_link(text)
    found = {row.name: round(total_ms(row, link), 3) for row in rows}
    return LinkRow(link=text, ms=found, fastest=min(found, key=lambda name: found[name]))
