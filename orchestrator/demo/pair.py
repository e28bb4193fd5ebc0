"""A trained pair at work: broker and tail as processes, the head here, pictures over an emulated link."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from device_profiles.errors import EdgeError
from edge_runtime.artefact import Artefact, open_artefact
from edge_runtime.manifest import Manifest
from edge_runtime.offloader import Offloader, OffloadOptions
from edge_runtime.pipeline import read_labels
from edge_runtime.preprocess import decode_image, prepare
from orchestrator.demo.processes import Children, headtail
from orchestrator.link_proxy import LinkProxy, parse_link

ZOO = Path(__file__).parent / "zoo" / "grocery"
STREAM = ZOO.with_name("grocery_stream")  # two thirds of the network on the device, one stream for four rates
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_DEADLINE_MS = 20_000.0
_LARGE_DROP = 0.05  # from here on accuracy was not the aim


class PairDemoError(EdgeError):
    """No pair, no pictures, or a head that takes none."""


@dataclass(frozen=True, kw_only=True)
class PairDemo:
    """What to run. `pictures` is a folder, with one folder for each class where labels are known."""

    head: Path = ZOO / "head"
    tail: Path = ZOO / "tail"
    pictures: Path = ZOO / "pictures"
    link: str = "5mbit/20ms"
    most: int = 50
    layers: int = 0


class PairOutcome(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was seen. Bytes are of requests, 0 where the exit answered; times in ms, medians; `right` is null without labels."""

    pictures: int
    early: int  # answered by the head's exit
    bytes_mean: float
    bytes_largest: int
    total_ms: float
    head_ms: float
    encode_ms: float
    link_ms: float
    tail_ms: float
    right: int | None
    labelled: int
    remark: str


def run_pair(demo: PairDemo, folder: Path, say: Callable[[str], None]) -> PairOutcome:
    """Serve the tail, send every picture through the head, and count; no process is left behind.

    Args:
        demo: Pair, pictures and link.
        folder: For logs.
        say: Told what comes next.

    Raises:
        PairDemoError: The pair is not there, is none, or there are no pictures.
        ChildError: Broker or tail did not start.
    """
    head, tail = _open_pair(demo)
    files = sorted(one for one in demo.pictures.rglob("*") if one.suffix.lower() in SUFFIXES)[: demo.most]
    if not files:
        raise PairDemoError(
            f"Wanted pictures ({', '.join(SUFFIXES)}) in {demo.pictures}, found none. Give --pictures DIR."
        )
    link = parse_link(demo.link)
    with Children(folder / "logs") as children:
        say(f"Serving the tail of {head.manifest.model.name} and sending {len(files)} pictures through its head")
        line = children.start("pair-broker", headtail("broker", "--port", "0"), ready="mqtt://")
        url = next(word.rstrip(";") for word in line.split() if word.startswith("mqtt://"))
        children.start("pair-tail", headtail("tail", "serve", str(tail.folder), "--broker", url), ready="serving")
        target = urlsplit(url)
        with LinkProxy((target.hostname or "127.0.0.1", target.port or 1883), link) as proxy:
            return _send(head, tail, files, proxy.url, demo.layers)


def remark_of(manifest: Manifest) -> str:
    """What may be expected of the answers, from what the pair itself says."""
    quality = manifest.quality
    if quality is None or quality.this is None or quality.reference is None:
        return "The pair does not say how right it is; take its answers as a sign of life."
    known = (
        f"On {quality.count} pictures of {quality.data} the pair was right in {quality.this:.1%}, the whole network in "
        f"{quality.reference:.1%}."
    )
    if quality.reference - quality.this > _LARGE_DROP:
        return f"{known} Accuracy is not the aim of this pair: it was trained briefly, and shows that the path works."
    return known


def _open_pair(demo: PairDemo) -> tuple[Artefact, Artefact]:
    for path in (demo.head, demo.tail):
        if not path.exists():
            raise PairDemoError(
                f"Wanted a trained pair, found nothing at {path}. Train one with `headtail split --method`."
            )
    head, tail = open_artefact(demo.head), open_artefact(demo.tail)
    cut = tail.manifest.cut
    if head.manifest.role != "head" or cut is None or head.key not in cut.accepts:
        raise PairDemoError(f"Wanted a head and the tail that accepts it, found {demo.head} and {demo.tail}.")
    if head.manifest.preprocessing is None:
        raise PairDemoError(f"Wanted a head that takes pictures, found none in {demo.head}.")
    return head, tail


def _send(head: Artefact, tail: Artefact, files: list[Path], url: str, layers: int) -> PairOutcome:
    labels = read_labels(tail)
    preprocessing = head.manifest.preprocessing
    assert preprocessing is not None
    answers, right, labelled = [], 0, 0
    options = OffloadOptions(deadline_ms=_DEADLINE_MS, threads=1, layers=layers)
    offloader = Offloader(url, "demo-pair", head=head, options=options)
    try:
        offloader.wait_connected()
        for path in files:
            image = decode_image(path.read_bytes())
            answer = offloader.infer(prepare(image, head.manifest.inputs[0], preprocessing))
            answers.append(answer)
            wanted = _class_of(path.parent.name, labels)
            if wanted is not None:
                labelled += 1
                right += int(answer.outputs[0].reshape(-1).argmax()) == wanted
    finally:
        offloader.close()
    times = [answer.breakdown for answer in answers]
    sizes = [answer.bytes_sent for answer in answers]
    return PairOutcome(
        pictures=len(files),
        early=sum(answer.source == "exit" for answer in answers),
        bytes_mean=statistics.mean(sizes),
        bytes_largest=max(sizes),
        total_ms=statistics.median(one.total_ms for one in times),
        head_ms=statistics.median(one.head_ms for one in times),
        encode_ms=statistics.median(one.encode_ms for one in times),
        link_ms=statistics.median(one.link_ms for one in times),
        tail_ms=statistics.median(one.tail_ms for one in times),
        right=right if labelled else None,
        labelled=labelled,
        remark=remark_of(head.manifest),
    )


def _class_of(folder: str, labels: tuple[str, ...]) -> int | None:
    if folder in labels:
        return labels.index(folder)
    return int(folder) if folder.isdigit() else None
