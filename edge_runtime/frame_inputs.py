"""What an artefact takes of a frame, as its own manifest describes it; and where two artefacts take the same."""

import numpy as np

from edge_runtime.artefact import Artefact
from edge_runtime.manifest import Manifest
from edge_runtime.preprocess import prepare
from edge_runtime.session import InputError
from edge_runtime.sources import Frame


class FrameInputs:
    """The inputs of one frame, each made when it is asked for and once for all artefacts that take the same.

    A decoded picture is not kept: with a second artefact of another input it is decoded again, which is rare.

    Args:
        frame: A picture, or for artefacts without preprocessing the input tensor itself.
    """

    def __init__(self, frame: Frame) -> None:
        self._frame = frame
        self._made: list[tuple[Manifest, list[np.ndarray]]] = []

    def of(self, artefact: Artefact) -> list[np.ndarray]:
        """One array of the dtype and shape of the artefact's first input.

        Raises:
            ImageError: The picture cannot be decoded or prepared.
            InputError: A picture, and nothing says how it becomes the input.
        """
        manifest = artefact.manifest
        for other, arrays in self._made:
            if prepares_alike(manifest, other):
                return arrays
        array = self._frame.array()
        spec = manifest.inputs[0]
        if manifest.preprocessing is None and is_picture(self._frame) and array.shape != spec.shape:
            raise InputError(
                f"Wanted {spec.dtype} {spec.shape} for {spec.name}, found a picture {array.shape}, and {manifest.model.name} does not "
                "say how a picture becomes that. Export it with --crop, or give it arrays: --source module:function."
            )
        if manifest.preprocessing is not None:
            array = prepare(array, manifest.inputs[0], manifest.preprocessing)
        made = [array]
        self._made.append((manifest, made))
        return made


def is_picture(frame: Frame) -> bool:
    """Whether it is a picture, as folders and cameras give them."""
    data = frame.data
    return isinstance(data, bytes) or (data.dtype == np.uint8 and data.ndim == 3 and data.shape[2] == 3)


def prepares_alike(one: Manifest, other: Manifest) -> bool:
    """Whether both make the same input of every picture, bit for bit."""
    if one.preprocessing != other.preprocessing:
        return False
    return one.preprocessing is None or _stored(one)[:1] == _stored(other)[:1]


def means_alike(one: Manifest, other: Manifest) -> bool:
    """Whether an input of one is an input of the other: dtype, shape, layout, quantisation, and scale of the pixels.

    What part of a picture is cut out, and how it is resized, may differ: another part of it is an input, too.
    """
    first, second = one.preprocessing, other.preprocessing
    if _stored(one) != _stored(other):
        return False
    if first is None or second is None:
        return True
    return np.allclose(first.mean, second.mean) and np.allclose(first.std, second.std)


def describe_input(manifest: Manifest) -> str:
    """Its first input for a message, as "int8 (1, 3, 224, 224), scale 0.02, mean (127.5, 127.5, 127.5)"."""
    spec = manifest.inputs[0]
    parts = [f"{spec.dtype} {spec.shape}"]
    if spec.quantisation is not None:
        parts.append(f"scale {spec.quantisation.scale:g}, zero {spec.quantisation.zero_point}")
    if manifest.preprocessing is not None:
        mean, std = (tuple(round(x, 3) for x in v) for v in (manifest.preprocessing.mean, manifest.preprocessing.std))
        parts.append(f"mean {mean}, std {std}")
    return ", ".join(parts)


def _stored(manifest: Manifest) -> list[tuple[object, ...]]:
    return [(spec.dtype, spec.shape, spec.layout, spec.quantisation) for spec in manifest.inputs]
