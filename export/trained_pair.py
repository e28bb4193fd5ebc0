"""A trained bottleneck becomes two artefacts: an int8 head that ends in integers, and a tail that begins with them.

The head is quantised with calibration pictures; the entropy tables are then counted on the integers that the quantised
head really makes of them. Golden vectors of the tail start from integers; head, codec and tail are compared with the
unsplit quantised network, bit for bit, before anything is written.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch

from device_profiles.errors import EdgeError
from edge_runtime.artefact import Artefact, write_artefact
from edge_runtime.codecs import TABLES_NAME
from edge_runtime.entropy import TableSet
from edge_runtime.manifest import Cut, Manifest, Preprocessing, Quality, TensorSpec
from export.assemble import METHODS
from export.cut_check import CutEqualityError, Runner, open_onnx_runner
from export.cut_golden import GoldenRule
from export.exit_graph import EXIT, add_exit
from export.head_graph import IMAGE, LATENT, fold_head, head_to_onnx, trained_ranges
from export.joined import Equality, count_equal
from export.late_training import LateTraining, exit_late, refine_late
from export.pair_tail import make_tail
from export.trained_manifest import (
    HEAD_STEPS,
    Half,
    Parts,
    TrainedPairOptions,
    head_golden,
    head_manifest,
    make_cut,
    pair_engine,
    produced_on,
    tail_files,
)
from split.augment import Augmentation, centre
from split.bottleneck import LatentGrid
from split.inject import SplitNetwork
from split.latents import IntegerHead, IntegerTail, fit_grid, fit_tables, input_batches
from split.training_data import PictureSet

CALIBRATED = 256  # pictures that choose ranges and tables, at most
Files = dict[str, bytes | Path]
_CHECKED = 16  # calibration pictures on which the pair is compared with the unsplit network


class PairFormError(EdgeError):
    """A network that cannot be written as a pair: its input is no square picture."""


@dataclass(frozen=True)
class QuantisedHead:
    """An int8 head: its file, how it runs here, its grid and tables, and its integers for the calibration pictures."""

    data: bytes
    run: Runner
    grid: LatentGrid
    tables: TableSet
    pictures: list[np.ndarray]
    latents: list[np.ndarray]


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
    head = quantise_head(network, calibration, options)
    if late is not None:
        refine_late(network, head.run, head.grid, late)
    tail = make_tail(IntegerTail(network, head.grid), head.latents, options)
    leaving, head_bytes = None, head.data
    if late is not None:
        leaving = exit_late((head.run, tail.run_real), augmentation_of(options.preprocessing), late)
    if leaving is not None:
        head_bytes = add_exit(head_bytes, leaving.classifier)
    parts = Parts(head_bytes, tail.data, head.tables.data, head.pictures, head.latents, leaving)
    cut = make_cut(parts, "nchw")
    other = tail_files(parts, cut, options, tail.half, tail.logits)
    return write_checked(head_files(parts, cut, options), other, parts.pictures, options.out)


def quantise_head(network: SplitNetwork, calibration: PictureSet, options: TrainedPairOptions) -> QuantisedHead:
    """The head as int8 ONNX, and the tables counted on its integers.

    Args:
        network: Trained; moved to the CPU.
        calibration: As in `write_trained_pair`.
        options: Preprocessing.

    Raises:
        ConversionError: An operator of the encoder that cannot be exported.
    """
    augmentation = augmentation_of(options.preprocessing)
    network = network.cpu().eval()
    pictures = calibration_pictures(calibration, augmentation)
    grid = fit_grid(network, input_batches(calibration, augmentation))
    head = IntegerHead(network.bottleneck, grid)
    example, samples = torch.from_numpy(pictures[0]), [[one] for one in pictures]
    data = head_to_onnx(fold_head(head), example, samples, trained_ranges(head))
    run = open_onnx_runner(data, [IMAGE], [LATENT], "all", 1)
    latents = [run([one])[0] for one in pictures]
    return QuantisedHead(data, run, grid, fit_tables(latents, network.bottleneck.stream), pictures, latents)


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


def write_checked(
    head: tuple[Manifest, Files], tail: tuple[Manifest, Files], inputs: Sequence[np.ndarray], out: Path
) -> TrainedPair:
    """Write both halves elsewhere, compare them with the unsplit network, and put them in place.

    Args:
        head: Its manifest and files.
        tail: The same.
        inputs: Of the head; the first few are compared.
        out: Folders `head` and `tail` are made in it.

    Raises:
        CutEqualityError: Head, codec and tail give other bytes than the unsplit network.
        ArtefactError: The folders hold something else.
    """
    with tempfile.TemporaryDirectory() as folder:
        staged = [
            write_artefact(Path(folder, role), manifest, files)
            for role, (manifest, files) in (("head", head), ("tail", tail))
        ]
        equality = count_equal(staged[0], staged[1], inputs[:_CHECKED])
    if equality.equal != equality.count:
        raise CutEqualityError(
            f"Wanted head, codec and tail equal to the unsplit network, found {equality.equal} of {equality.count} pictures equal "
            f"on {equality.engine}. Please report it with the network."
        )
    return TrainedPair(write_artefact(out / "head", *head), write_artefact(out / "tail", *tail), equality)


def head_files(parts: Parts, cut: Cut, options: TrainedPairOptions) -> tuple[Manifest, Files]:
    """Manifest and files of an ONNX head."""
    names = [LATENT] if parts.leaving is None else [LATENT, EXIT]
    engine = pair_engine("onnxruntime")
    half = Half(engine, open_onnx_runner(parts.head, [IMAGE], names, engine.optimisation, engine.threads))
    image = TensorSpec(
        name=IMAGE,
        engine_name=IMAGE,
        dtype="float32",
        shape=parts.pictures[0].shape,
        layout="nchw",
        semantic="image",
    )
    golden = head_golden(parts, half, GoldenRule("absolute", HEAD_STEPS, produced_on(engine)))
    manifest = head_manifest(parts, image, cut, options, half, calibrated=METHODS["onnx"])
    manifest = msgspec.structs.replace(manifest, golden=golden.vectors)
    return manifest, {half.entry: parts.head, TABLES_NAME: parts.tables, **golden.files}


def calibration_pictures(data: PictureSet, augmentation: Augmentation) -> list[np.ndarray]:
    """At most `CALIBRATED` evenly spaced pictures as the network takes them, batch 1."""
    count = min(len(data), CALIBRATED)
    rows = torch.tensor([index * len(data) // count for index in range(count)])
    return [centre(data.images[row : row + 1], augmentation).numpy() for row in rows.tolist()]
