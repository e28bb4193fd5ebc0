"""The int8 head of Lite0 on x86-64 and on emulated aarch64: equal bytes, or not."""

import platform
from pathlib import Path

import numpy as np

from benchmarks.data import imagenet_samples
from benchmarks.emulated import DEVICE, emulated_versions, run_emulated
from benchmarks.lite0 import pair, whole
from benchmarks.rows import RowError
from benchmarks.run_head import run_head
from edge_runtime.artefact import open_artefact
from edge_runtime.preprocess import decode_image, prepare

IMAGES = 100


def rows() -> list[dict[str, object]]:
    """Row arm64_equal."""
    if platform.machine() != "x86_64":
        raise RowError(f"Wanted an x86-64 machine to compare with, found {platform.machine()}.")
    head, _ = pair(whole())
    inputs = pictures(head)
    here = run_head(head, [inputs])
    there = run_emulated(head, [inputs])
    equal = sum(
        all(ours[index].tobytes() == other[index].tobytes() for ours, other in zip(here, there, strict=True))
        for index in range(len(inputs))
    )
    latent = " ".join(str(array.shape[1:]) for array in here)
    return [
        {
            "id": "arm64_equal",
            "what": f"images of {len(inputs)} on which the int8 head of Lite0 gives the same {latent} bytes on x86-64 and aarch64",
            "value": equal,
            "unit": "images",
            "direction": "==",
            "bar": IMAGES,
            "peer": "the same head on x86-64",
            "peer_version": emulated_versions(),
            "emulated": DEVICE,
        }
    ]


def pictures(head: Path) -> np.ndarray:
    """The first evaluated pictures as inputs of the head, stacked: (100, 1, 3, 224, 224).

    Raises:
        RowError: The head does not take pictures.
    """
    manifest = open_artefact(head).manifest
    if manifest.preprocessing is None or len(manifest.inputs) != 1:
        raise RowError(f"Wanted a head that takes one picture, found {len(manifest.inputs)} inputs in {head.name}.")
    samples = imagenet_samples()
    chosen = samples.evaluation()[:IMAGES]
    return np.stack(
        [prepare(decode_image(samples.pictures[index]), manifest.inputs[0], manifest.preprocessing) for index in chosen]
    )
