"""A trained bottleneck becomes two artefacts: an int8 head that ends in integers, and a tail that begins with them.

The head is quantised with calibration pictures; the entropy tables are then counted on the integers that the quantised
head really makes of them. Golden vectors of the tail start from integers; head, codec and tail are compared with the
unsplit quantised network, bit for bit, before anything is written.
"""

import platform
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import torch

from device_profiles.errors import EdgeError
from device_profiles.version import __version__
from edge_runtime.artefact import Artefact, write_artefact
from edge_runtime.codecs import TABLES_NAME
from edge_runtime.manifest import (
    SCHEMA_VERSION,
    Calibration,
    Cut,
    EarlyExit,
    Engine,
    Licence,
    Manifest,
    ModelInfo,
    Postprocessing,
    Preprocessing,
    Quality,
    TensorSpec,
    Tool,
    make_cut_id,
)
from export.assemble import LABELS_FILE, METHODS
from export.cache import tool_versions
from export.calibration import tensors_sha256
from export.cut_check import CutEqualityError, open_onnx_runner
from export.cut_golden import GoldenRule, make_golden
from export.exit_graph import EXIT, add_exit
from export.head_graph import IMAGE, LATENT, fold_head, head_to_onnx, trained_ranges
from export.joined import Equality, count_equal
from export.late_training import LateTraining, TrainedExit, exit_late, refine_late
from export.tail_graph import LOGITS, TailPrecision, tail_to_onnx
from split.augment import Augmentation, centre
from split.inject import SplitNetwork
from split.latents import IntegerHead, IntegerTail, fit_grid, fit_tables, input_batches
from split.training_data import PictureSet

MODEL_FILE = "model.onnx"
CALIBRATED = 256  # pictures that choose ranges and tables, at most
_GOLDEN = 3
_CHECKED = 16  # calibration pictures on which the pair is compared with the unsplit network
_HEAD_STEPS = 1.0  # another processor's int8 kernels may round a latent the other way
_FLOAT_RELATIVE = 1e-3  # of the largest logit: what another processor's kernels may differ by
_COARSE_RELATIVE = 5e-2  # the same with fp16 or int8


class PairFormError(EdgeError):
    """A network that cannot be written as a pair: its input is no square picture."""


@dataclass(frozen=True, kw_only=True)
class TrainedPairOptions:
    """How a trained network is written.

    Attributes:
        out: Folders `head` and `tail` are made in it.
        name: Of the model.
        source_sha256: Of the network that the bottleneck was put into, 64 hex digits.
        preprocessing: How pictures become the input: what training did to them.
        head_target: Board of the head.
        tail_target: Board of the tail.
        tail_precision: Of the tail's weights and, for int8, activations.
        labels: One name for each class.
        licences: Of weights and training pictures.
        data: What the calibration pictures are called.
        fallback: Id of a whole network that the device runs when the tail does not answer.
    """

    out: Path
    name: str
    source_sha256: str
    preprocessing: Preprocessing
    head_target: str = "this"
    tail_target: str = "this"
    tail_precision: TailPrecision = "fp32"
    labels: tuple[str, ...] = ()
    licences: tuple[Licence, ...] = ()
    data: str = "calibration pictures"
    fallback: str | None = None


@dataclass(frozen=True)
class TrainedPair:
    """What was written, and that it computes what the unsplit quantised network computes."""

    head: Artefact
    tail: Artefact
    equality: Equality


def write_trained_pair(
    network: SplitNetwork, calibration: PictureSet, options: TrainedPairOptions, late: LateTraining | None = None
) -> TrainedPair:
    """Quantise, count, compare and write head and tail.

    Args:
        network: Trained, on any device; only `late` changes it, and only its tail.
        calibration: Training pictures; at most `CALIBRATED` of them, evenly spaced, are used.
        options: Names, folder, boards.
        late: What is trained behind the quantised head: the tail's last layers, an early exit; null for nothing.

    Raises:
        ConversionError: An operator of encoder or tail that cannot be exported.
        CutEqualityError: Head, codec and tail give other bytes than the unsplit network.
        ArtefactError: The folders hold something else.
    """
    augmentation = augmentation_of(options.preprocessing)
    network = network.cpu().eval()
    pictures = calibration_pictures(calibration, augmentation)
    grid = fit_grid(network, input_batches(calibration, augmentation))
    head = IntegerHead(network.bottleneck, grid)
    example, samples = torch.from_numpy(pictures[0]), [[one] for one in pictures]
    head_bytes = head_to_onnx(fold_head(head), example, samples, trained_ranges(head))
    run_head = open_onnx_runner(head_bytes, [IMAGE], [LATENT], "all", 1)
    latents = [run_head([one])[0] for one in pictures]
    tables = fit_tables(latents, network.bottleneck.stream)
    if late is not None:
        refine_late(network, run_head, grid, late)
    tail_bytes = tail_to_onnx(IntegerTail(network, grid), latents, options.tail_precision)
    leaving = None
    if late is not None:
        run_tail = open_onnx_runner(tail_bytes, [LATENT], [LOGITS], "all", 1)
        leaving = exit_late((run_head, run_tail), augmentation, late)
    if leaving is not None:
        head_bytes = add_exit(head_bytes, leaving.classifier)
    return _write(Parts(head_bytes, tail_bytes, tables.data, pictures, latents, leaving), options)


def augmentation_of(preprocessing: Preprocessing) -> Augmentation:
    """Size and normalisation of a preprocessing, as training takes them; without chance.

    Raises:
        PairFormError: Not a square crop of three channels.
    """
    height, width = preprocessing.crop
    if height != width or len(preprocessing.mean) != 3 or len(preprocessing.std) != 3:
        raise PairFormError(
            f"Wanted a square crop of pictures with three channels, found {height} x {width} and {len(preprocessing.mean)} "
            "channels. Give the network such an input."
        )
    mean, std = (tuple(one / 255 for one in values) for values in (preprocessing.mean, preprocessing.std))
    return Augmentation(height, "none", 0, (mean[0], mean[1], mean[2]), (std[0], std[1], std[2]))


def state_quality(pair: TrainedPair, quality: Quality) -> TrainedPair:
    """Write into both manifests what the pair reached; files and cut id stay."""
    head, tail = (
        write_artefact(
            one.folder,
            msgspec.structs.replace(one.manifest, files=(), quality=quality),
            {name: one.path(name).read_bytes() for name in one.manifest.files_by_path},
        )
        for one in (pair.head, pair.tail)
    )
    return TrainedPair(head, tail, pair.equality)


@dataclass(frozen=True)
class Parts:
    """The bytes of a pair, and what was used to make it."""

    head: bytes
    tail: bytes
    tables: bytes
    pictures: Sequence[np.ndarray]
    latents: Sequence[np.ndarray]
    leaving: TrainedExit | None = None


def _write(parts: Parts, options: TrainedPairOptions) -> TrainedPair:
    """Write elsewhere, compare, and put both in place."""
    cut = make_cut(parts, "nchw")
    head, tail = _head_manifest(parts, cut, options), tail_files(parts, cut, options)
    with tempfile.TemporaryDirectory() as folder:
        staged = [
            write_artefact(Path(folder, role), manifest, files)
            for role, (manifest, files) in (("head", head), ("tail", tail))
        ]
        equality = count_equal(staged[0], staged[1], parts.pictures[:_CHECKED])
    if equality.equal != equality.count:
        raise CutEqualityError(
            f"Wanted head, codec and tail equal to the unsplit network, found {equality.equal} of {equality.count} pictures equal "
            f"on {equality.engine}. Please report it with the network."
        )
    return TrainedPair(
        write_artefact(options.out / "head", *head), write_artefact(options.out / "tail", *tail), equality
    )


def make_cut(parts: Parts, layout: Literal["nchw", "nhwc"]) -> Cut:
    """Where head and tail of a trained pair meet: int8 latents, entropy coded."""
    latent = TensorSpec(
        name=LATENT,
        engine_name=LATENT,
        dtype="int8",
        shape=parts.latents[0].shape,
        layout=layout,
        semantic="latent",
    )
    digest = sha256(parts.tables).hexdigest()
    cut_id = make_cut_id(
        head_sha256=sha256(parts.head).hexdigest(), tensors=(latent,), codec="rans", tables_sha256=digest
    )
    return Cut(cut_id=cut_id, tensors=(latent,), codec="rans", tables_sha256=digest)


def _head_manifest(parts: Parts, cut: Cut, options: TrainedPairOptions) -> tuple[Manifest, dict[str, bytes | Path]]:
    outputs = (*cut.tensors, *_exit_specs(parts))
    run = open_onnx_runner(parts.head, [IMAGE], [one.engine_name for one in outputs], "all", 1)
    results = [([one], run([one])) for one in parts.pictures[:_GOLDEN]]
    golden = make_golden(results, GoldenRule("absolute", _HEAD_STEPS, _produced_on()))
    image = TensorSpec(
        name=IMAGE,
        engine_name=IMAGE,
        dtype="float32",
        shape=parts.pictures[0].shape,
        layout="nchw",
        semantic="image",
    )
    manifest = msgspec.structs.replace(
        base_manifest(options),
        role="head",
        target=options.head_target,
        precision="int8",
        inputs=(image,),
        outputs=outputs,
        preprocessing=options.preprocessing,
        calibration=calibration_of(parts, options, METHODS["onnx"]),
        golden=golden.vectors,
        fallback=options.fallback,
        cut=cut,
        early_exit=_early_exit(parts),
    )
    return manifest, {MODEL_FILE: parts.head, TABLES_NAME: parts.tables, **golden.files}


def _exit_specs(parts: Parts) -> tuple[TensorSpec, ...]:
    if parts.leaving is None:
        return ()
    shape = (1, parts.leaving.classifier.last.out_features)
    return (TensorSpec(name=EXIT, engine_name=EXIT, dtype="float32", shape=shape, semantic="logits"),)


def _early_exit(parts: Parts) -> EarlyExit | msgspec.UnsetType:
    if parts.leaving is None:
        return msgspec.UNSET
    policy = parts.leaving.policy
    return EarlyExit(output=EXIT, temperature=policy.temperature, threshold=policy.threshold)


def tail_files(parts: Parts, cut: Cut, options: TrainedPairOptions) -> tuple[Manifest, dict[str, bytes | Path]]:
    """The tail's manifest and files."""
    run = open_onnx_runner(parts.tail, [LATENT], [LOGITS], "all", 1)
    results = [([latent], run([latent])) for latent in parts.latents[:_GOLDEN]]
    largest = max(float(np.abs(outputs[0]).max()) for _, outputs in results)
    relative = _FLOAT_RELATIVE if options.tail_precision == "fp32" else _COARSE_RELATIVE
    golden = make_golden(results, GoldenRule("absolute", relative * largest, _produced_on()))
    logits = results[0][1][0]
    manifest = msgspec.structs.replace(
        base_manifest(options),
        role="tail",
        target=options.tail_target,
        precision=options.tail_precision,
        inputs=cut.tensors,
        outputs=(TensorSpec(name=LOGITS, engine_name=LOGITS, dtype="float32", shape=logits.shape, semantic="logits"),),
        postprocessing=Postprocessing(kind="softmax-top-k", labels=LABELS_FILE if options.labels else None),
        golden=golden.vectors,
        cut=msgspec.structs.replace(cut, cut_id=None, accepts=(str(cut.cut_id),)),
    )
    labels = {LABELS_FILE: ("\n".join(options.labels) + "\n").encode()} if options.labels else {}
    return manifest, {MODEL_FILE: parts.tail, TABLES_NAME: parts.tables, **golden.files, **labels}


def calibration_of(parts: Parts, options: TrainedPairOptions, method: str) -> Calibration:
    """What the manifest says of the calibration pictures."""
    digest = tensors_sha256([[one] for one in parts.pictures])
    return Calibration(method=method, source=options.data, count=len(parts.pictures), sha256=digest)


def base_manifest(options: TrainedPairOptions) -> Manifest:
    """What head and tail share."""
    built = version("onnxruntime")
    return Manifest(
        schema=SCHEMA_VERSION,
        tool=Tool(name="headtail", version=__version__, packages=tool_versions()),
        model=ModelInfo(name=options.name, source_sha256=options.source_sha256),
        role="head",
        target="",
        precision="int8",
        engine=Engine(name="onnxruntime", built=built, tested=(built,)),
        entry=MODEL_FILE,
        inputs=(),
        outputs=(),
        files=(),
        licences=options.licences,
    )


def calibration_pictures(data: PictureSet, augmentation: Augmentation) -> list[np.ndarray]:
    """At most `CALIBRATED` evenly spaced pictures as the network takes them, batch 1."""
    count = min(len(data), CALIBRATED)
    rows = torch.tensor([index * len(data) // count for index in range(count)])
    return [centre(data.images[row : row + 1], augmentation).numpy() for row in rows.tolist()]


def _produced_on() -> str:
    return f"onnxruntime {version('onnxruntime')} {platform.machine()}"
