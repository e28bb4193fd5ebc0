"""Tails for several tasks behind one head: the head as an artefact of its own, and tails for it, each with one output or several.

All of them accept the same frames. Tails at one broker are known by the head's cut, so what is served there together is one
artefact with several outputs: one frame, one request, every answer.
"""

import tempfile
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from torch import nn

from device_profiles.errors import EdgeError
from edge_runtime.artefact import Artefact, write_artefact
from edge_runtime.codecs import TABLES_NAME
from edge_runtime.manifest import Manifest, Semantic, TensorSpec
from edge_runtime.session import open_session
from export.cut_check import CutEqualityError, open_onnx_runner
from export.head_graph import LATENT
from export.joined import count_equal
from export.pair_runner import picture_input
from export.quantize import halve_onnx
from export.source import ModelSource
from export.to_onnx import torch_to_onnx
from export.trained_manifest import Half, Parts, TrainedPairOptions, make_cut, pair_engine, tail_golden, tail_manifest
from export.trained_pair import Files, head_files, quantise_head
from split.inject import SplitNetwork
from split.training_data import PictureSet

CHECKED = 16  # pictures on which a tail is compared with the unsplit network
_SEMANTICS: dict[str, Semantic] = {"classes": "logits", "masks": "masks", "boxes": "boxes"}


class TaskTailError(EdgeError):
    """A tail that cannot be written as asked."""


def write_head(network: SplitNetwork, calibration: PictureSet, options: TrainedPairOptions) -> Artefact:
    """Quantise the head, count its tables, and write it without a tail, in the folder `head` of `options.out`.

    Args:
        network: Trained; moved to the CPU.
        calibration: Training pictures, see `export.trained_pair.write_trained_pair`.
        options: Names, folder, board.

    Raises:
        ConversionError: An operator of the encoder that cannot be exported.
        ArtefactError: The folder holds something else.
    """
    head = quantise_head(network, calibration, options)
    parts = Parts(head.data, b"", head.tables.data, head.pictures, head.latents)
    manifest, files = head_files(parts, make_cut(parts, "nchw"), options)
    return write_artefact(options.out / "head", manifest, files)


def head_integers(head: Artefact, images: torch.Tensor) -> torch.Tensor:
    """What a head makes of pictures: what its tails are trained on.

    Args:
        head: Of one latent.
        images: uint8, (n, 3, height, width), as photographs: resized and cut as the manifest says.

    Returns:
        int8, (n, channels, h, w).
    """
    session = open_session(head, threads=1)
    try:
        pictures = images.permute(0, 2, 3, 1).contiguous().numpy()
        return torch.from_numpy(np.concatenate([session.run([picture_input(head, one)])[0] for one in pictures]))
    finally:
        session.close()


def write_task_tail(
    head: Artefact, tail: nn.Module, outputs: Sequence[str], images: torch.Tensor, options: TrainedPairOptions
) -> Artefact:
    """Write a tail for a head that is there, after comparing head, codec and tail with the unsplit network, bit for bit.

    Args:
        head: From `write_head`, or the head of a trained pair.
        tail: int8 latents of the head, (1, channels, h, w), to one tensor or to a tuple of them; on the CPU.
        outputs: Their names; those of tasks ("classes", "masks", "boxes") say what a tensor is.
        images: Pictures to compare on, and for the golden vectors: as in `head_integers`, at most `CHECKED` are used.
        options: `out` is the tail's own folder; the precision is fp32 or fp16.

    Raises:
        TaskTailError: Another precision or engine, or other outputs than there are names.
        ConversionError: An operator that cannot be exported.
        CutEqualityError: Head, codec and tail give other bytes than the unsplit network.
        ArtefactError: The folder holds something else.
    """
    if options.tail_precision == "int8" or options.tail_engine != "onnxruntime":
        raise TaskTailError(
            f"Wanted a tail in fp32 or fp16 on onnxruntime, found {options.tail_precision} on {options.tail_engine}. "
            "Choose one of these."
        )
    images = images[:CHECKED]
    latents = [one[None].numpy() for one in head_integers(head, images)]
    _check_outputs(tail, torch.from_numpy(latents[0]), outputs)
    example = (torch.from_numpy(latents[0]),)
    source = ModelSource(module=tail.eval(), example=example, input_names=(LATENT,), output_names=tuple(outputs))
    data = torch_to_onnx(source)
    data = halve_onnx(data) if options.tail_precision == "fp16" else data
    manifest, files = _tail_files(head, data, outputs, latents, options)
    inputs = [picture_input(head, one) for one in images.permute(0, 2, 3, 1).contiguous().numpy()]
    with tempfile.TemporaryDirectory() as folder:
        equality = count_equal(head, write_artefact(Path(folder, "tail"), manifest, files), inputs)
    if equality.equal != equality.count:
        raise CutEqualityError(
            f"Wanted head, codec and tail equal to the unsplit network, found {equality.equal} of {equality.count} pictures equal "
            f"on {equality.engine}. Please report it with the network."
        )
    return write_artefact(options.out, manifest, files)


def _check_outputs(tail: nn.Module, latent: torch.Tensor, names: Sequence[str]) -> None:
    with torch.no_grad():
        found = tail.eval()(latent)
    count = len(found) if isinstance(found, tuple) else 1
    if count != len(names) or len(set(names)) != count:
        raise TaskTailError(f"Wanted {count} different names for the tail's outputs, found {list(names)}.")


def _tail_files(
    head: Artefact, data: bytes, outputs: Sequence[str], latents: Sequence[np.ndarray], options: TrainedPairOptions
) -> tuple[Manifest, Files]:
    cut, tables = head.manifest.cut, head.path(TABLES_NAME).read_bytes()
    if cut is None or cut.cut_id is None or cut.tables_sha256 != sha256(tables).hexdigest():
        raise TaskTailError(f"Wanted a head with entropy tables, found a {head.manifest.role} in {head.folder}.")
    engine = pair_engine("onnxruntime")
    half = Half(engine, open_onnx_runner(data, [LATENT], list(outputs), engine.optimisation, engine.threads))
    specs = tuple(
        TensorSpec(
            name=name,
            engine_name=name,
            dtype="float32",
            shape=one.shape,
            semantic=_SEMANTICS.get(name, "tensor"),
        )
        for name, one in zip(outputs, half.run([latents[0]]), strict=True)
    )
    golden = tail_golden(latents, options, half, specs[0])
    manifest = tail_manifest(cut, specs, golden, options, half)
    return manifest, {half.entry: data, TABLES_NAME: tables, **golden.files}
