"""Accuracy against bytes: every way to classify the same pictures, measured on the artefacts and frames themselves.

A way is a pair (or the first layers of a progressive one, or one with its early exit), the whole network behind JPEG or WebP, or the whole network on
the pictures as they are. Each way gives one row of logits and one number of bytes for each picture; everything else
(`summarise`) is arithmetic on these.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from device_profiles.errors import EdgeError
from edge_runtime.artefact import Artefact
from edge_runtime.early_exit import ExitAnswer
from edge_runtime.manifest import Preprocessing
from edge_runtime.preprocess import centre_crop, prepare
from edge_runtime.session import open_session
from export.codec_points import FRAME_BYTES, CodecName, code_picture
from export.head_cost import HeadCost, head_cost
from export.originals import OriginalPictures
from export.pair_runner import PairError, PairRunner
from export.verify import dequantize
from split.intervals import bootstrap_mean, paired_difference
from split.quality import accuracy, calibration_error
from split.training_data import PictureSet

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]
Kind = Literal["pair", "exit", "jpeg", "webp", "raw", "whole"]
Pictures = PictureSet | OriginalPictures
OnPicture = Callable[[int], None]  # told how many pictures of a way are done


class EvaluationError(EdgeError):
    """Nothing can be measured: classes that the network does not have, or other ways than pictures and labels allow."""


@dataclass(frozen=True)
class Times:
    """CPU time of the steps of one picture on this machine, medians, in ms."""

    device: float = 0.0  # head, or the codec's encoder, or the whole network
    encode: float = 0.0
    decode: float = 0.0
    host: float = 0.0


@dataclass(frozen=True)
class Way:
    """One way, on all pictures.

    Attributes:
        name: What users call it.
        kind: See the module.
        curve: Ways with the same name are points of one rate-accuracy curve.
        setting: Quality of a codec, layers of a stream; 0 where there is nothing to set.
        logits: (pictures, classes).
        sizes: Bytes of the frame of each picture, header included; 0 where nothing is sent.
        times: CPU times.
        cost: Of the head; null for others.
        sent: Share of the pictures that send something.
    """

    name: str
    kind: Kind
    curve: str
    setting: int
    logits: F32
    sizes: I64
    times: Times
    cost: HeadCost | None = None
    sent: float = 1.0


class WayReport(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One row: shares in [0, 1], bytes, ms of CPU time. Intervals are bootstrap intervals over pictures, 95 %.

    `loss` is the accuracy of the reference minus this one's, on the same pictures; `sent` the share of the pictures that send
    something: with an early exit not all do, and bytes and ms of a picture are means over those that do not, too.
    """

    name: str
    kind: Kind
    curve: str
    setting: int
    accuracy: float
    accuracy_interval: tuple[float, float]
    ece: float
    loss: float
    loss_interval: tuple[float, float]
    bytes_mean: float
    bytes_p50: float
    bytes_p95: float
    device_ms: float
    encode_ms: float
    decode_ms: float
    host_ms: float
    cost: HeadCost | None = None
    sent: float = 1.0


def evaluate_pair(
    head: Artefact, tail: Artefact, data: Pictures, *, name: str, layers: int = 0, on_picture: OnPicture | None = None
) -> Way:
    """Head, frame and tail on every picture: the first way of `evaluate_exit`, arguments as there."""
    return evaluate_exit(head, tail, data, name=name, layers=layers, on_picture=on_picture)[0]


def evaluate_exit(
    head: Artefact, tail: Artefact, data: Pictures, *, name: str, layers: int = 0, on_picture: OnPicture | None = None
) -> tuple[Way, Way | None]:
    """Head, frame and tail on every picture; and the same where what the head's early exit is sure of sends nothing.

    Args:
        head: Any engine that runs here.
        tail: One that accepts it.
        data: Pictures with the tail's class ids. Each artefact resizes and crops them as its manifest says, which is what
            a device does where they are the originals (`export.originals`).
        name: Of the way.
        layers: Of a progressive stream at most so many, the first ones, are sent; 0 for all.
        on_picture: Told about progress.

    Returns:
        All pictures sent, and the way with the exit, null for a head without one.

    Raises:
        PairError: Not a pair, or a head that takes no pictures.
        OriginalsError, ImageError: A picture is too small for the head's crop.
    """
    preprocessing = _preprocessing(head)
    cropped = msgspec.structs.replace(preprocessing, resize_short=None)
    runner = PairRunner(head, tail, layers=layers)
    try:
        logits, sizes, prepared = [], [], []
        leaving: list[ExitAnswer] = []
        for number, picture in enumerate(_crops_of(data, preprocessing)):
            begun = time.process_time()
            tensor = prepare(picture, head.manifest.inputs[0], cropped)
            prepared.append(1000 * (time.process_time() - begun))
            latents, answer = runner.latents_and_exit(tensor)
            leaving += [answer] if answer else []
            frame = runner.frame(latents)
            logits.append(runner.logits(frame)[0])
            sizes.append(len(frame))
            if on_picture:
                on_picture(number + 1)
        steps = (runner.head_ms, runner.encode_ms, runner.decode_ms, runner.tail_ms)
        head_ms, *rest = (float(np.median(one)) for one in steps)
        times = Times(head_ms + float(np.median(prepared)), *rest)
    finally:
        runner.close()
    curve = f"{name}, layers" if layers else "pairs"
    way = Way(name, "pair", curve, layers, np.stack(logits), np.array(sizes), times, head_cost(head))
    return way, _with_exit(way, head, leaving) if leaving else None


def _with_exit(way: Way, head: Artefact, answers: Sequence[ExitAnswer]) -> Way:
    """What the exit is sure of, from the exit; the rest as it was. Times are means: what leaves needs no host."""
    policy = head.manifest.early_exit
    assert policy
    leaves = np.array([one.leaves for one in answers])
    early = np.concatenate([one.logits for one in answers]) / np.float32(policy.temperature)
    sent = float(1 - leaves.mean())
    times = Times(way.times.device, sent * way.times.encode, sent * way.times.decode, sent * way.times.host)
    return replace(
        way,
        name=f"{way.name}, early exit",
        kind="exit",
        curve="early exit",
        logits=np.where(leaves[:, None], early, way.logits),
        sizes=np.where(leaves, 0, way.sizes),
        times=times,
        sent=sent,
    )


def evaluate_whole(
    whole: Artefact,
    data: Pictures,
    *,
    codec: CodecName | None = None,
    quality: int = 0,
    on_picture: OnPicture | None = None,
) -> Way:
    """The unsplit network on every picture: as it is, or after a codec of what its preprocessing crops.

    Args:
        whole: Any engine that runs here.
        data: As in `evaluate_pair`.
        codec: Null for the pictures as they are, which send nothing.
        quality: Of the codec.
        on_picture: Told about progress.

    Raises:
        PairError: It takes no pictures.
        OriginalsError, ImageError: A picture is too small for its crop.
    """
    preprocessing = _preprocessing(whole)
    cropped = msgspec.structs.replace(preprocessing, resize_short=None)
    session = open_session(whole, threads=1)
    logits, sizes, encode, run = [], [], [], []
    for number, picture in enumerate(_crops_of(data, preprocessing)):
        begun = time.process_time()
        size = 0
        if codec is not None:
            coded = code_picture(picture, codec, quality)
            size = coded.size + FRAME_BYTES
        coded_at = time.process_time()
        if codec is not None:
            picture = coded.pixels()
        (output, *_) = session.run([prepare(picture, whole.manifest.inputs[0], cropped)])
        run.append(1000 * (time.process_time() - coded_at))
        encode.append(1000 * (coded_at - begun))
        logits.append(dequantize(output, whole.manifest.outputs[0])[0])
        sizes.append(size)
        if on_picture:
            on_picture(number + 1)
    session.close()
    took = float(np.median(run))
    if codec is None:
        return Way(
            "no split, on the device", "whole", "whole", 0, np.stack(logits), np.array(sizes), Times(device=took)
        )
    times = Times(encode=float(np.median(encode)), host=took)
    return Way(f"{codec} {quality}", codec, codec, quality, np.stack(logits), np.array(sizes), times)


def raw_way(whole: Way, preprocessing: Preprocessing) -> Way:
    """Send the pixels as they are: the whole network's answers, and three bytes for each pixel."""
    height, width = preprocessing.crop
    sizes = np.full(len(whole.sizes), 3 * height * width + FRAME_BYTES)
    return Way("raw pixels", "raw", "raw", 0, whole.logits, sizes, Times(host=whole.times.device))


def summarise(ways: Sequence[Way], labels: npt.ArrayLike, *, reference: str) -> tuple[WayReport, ...]:
    """One row for each way.

    Args:
        ways: On the same pictures.
        labels: Class ids, (pictures,).
        reference: Name of the way whose accuracy the losses are measured against.

    Raises:
        EvaluationError: No such way, other numbers of pictures, or class ids that the networks do not have.
    """
    ids = np.asarray(labels, np.int64)
    _check(ways, ids, reference)
    right = {way.name: (way.logits.argmax(1) == ids).astype(np.float64) for way in ways}
    return tuple(_row(way, ids, right[reference], right[way.name]) for way in ways)


def pictures_of(data: PictureSet) -> Iterator[U8]:
    """The pictures as uint8 (height, width, 3), in order."""
    for image in data.images:
        yield np.ascontiguousarray(image.numpy().transpose(1, 2, 0))


def picture_size(artefact: Artefact) -> int:
    """At which size a `PictureSet` is opened for an artefact, whose own preprocessing then only crops.

    A picture that is larger is resized and cut to a square before: `export.originals` leaves it as it is.

    Raises:
        PairError: It takes no pictures.
    """
    preprocessing = _preprocessing(artefact)
    return preprocessing.resize_short or max(preprocessing.crop)


def _crops_of(data: Pictures, preprocessing: Preprocessing) -> Iterable[U8]:
    if isinstance(data, OriginalPictures):
        return data.crops(preprocessing)
    return (centre_crop(picture, preprocessing) for picture in pictures_of(data))


def _row(way: Way, labels: I64, wanted: npt.NDArray[np.float64], right: npt.NDArray[np.float64]) -> WayReport:
    mean, loss = bootstrap_mean(right), paired_difference(wanted, right)
    return WayReport(
        name=way.name,
        kind=way.kind,
        curve=way.curve,
        setting=way.setting,
        accuracy=accuracy(way.logits, labels),
        accuracy_interval=(mean.low, mean.high),
        ece=calibration_error(way.logits, labels),
        loss=loss.value,
        loss_interval=(loss.low, loss.high),
        bytes_mean=float(way.sizes.mean()),
        bytes_p50=float(np.percentile(way.sizes, 50)),
        bytes_p95=float(np.percentile(way.sizes, 95)),
        device_ms=way.times.device,
        encode_ms=way.times.encode,
        decode_ms=way.times.decode,
        host_ms=way.times.host,
        cost=way.cost,
        sent=way.sent,
    )


def _check(ways: Sequence[Way], labels: I64, reference: str) -> None:
    names = [way.name for way in ways]
    if reference not in names or len(set(names)) != len(names):
        raise EvaluationError(f"Wanted ways of different names, {reference!r} among them, found {names}.")
    for way in ways:
        if len(way.logits) != len(labels) or len(way.sizes) != len(labels):
            raise EvaluationError(f"Wanted {len(labels)} answers of {way.name!r}, found {len(way.logits)}.")
        if labels.min() < 0 or labels.max() >= way.logits.shape[1]:
            raise EvaluationError(
                f"Wanted class ids of 0 to {way.logits.shape[1] - 1}, found {labels.min()} to {labels.max()}. Give the "
                f"pictures that belong to {way.name!r}."
            )


def _preprocessing(artefact: Artefact) -> Preprocessing:
    if artefact.manifest.preprocessing is None:
        raise PairError(f"Wanted an artefact that takes pictures, found none in {artefact.folder}. Export it again.")
    return artefact.manifest.preprocessing
