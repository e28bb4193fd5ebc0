"""One model as a tail server sees it: what it accepts, how it reads a frame, how it runs one request or several."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from device_profiles.errors import EdgeError
from edge_runtime.artefact import Artefact
from edge_runtime.codecs import check_heads, codecs_of
from edge_runtime.manifest import Manifest
from edge_runtime.preprocess import decode_image, prepare
from edge_runtime.session import open_session
from edge_runtime.wire import (
    CODEC_IMAGE,
    RAW_CODECS,
    Codec,
    FormatError,
    Frame,
    Limits,
    decode_tensors,
    limits_of,
)

MAX_IMAGE_BYTES = 32 << 20

Arrays = Sequence[np.ndarray]


class ServeError(EdgeError):
    """An artefact cannot be served."""


@dataclass(frozen=True)
class Served:
    """One model: the keys it answers to, what it accepts, how it reads and runs.

    `run_batch` takes the inputs of several requests and gives the outputs of each, at most `batch_limit` at a time.
    """

    name: str
    keys: tuple[str, ...]
    limits: Limits
    read: Callable[[Frame], list[np.ndarray]]
    run: Callable[[Arrays], list[np.ndarray]]
    run_batch: Callable[[Sequence[Arrays]], list[list[np.ndarray]]] | None = None
    batch_limit: int = 1

    @cached_property
    def cut_ids(self) -> dict[str, bytes]:
        """The keys as they stand in a frame."""
        return {key: bytes.fromhex(key) for key in self.keys}


def serve_artefact(artefact: Artefact, *, threads: int | None = None, batch: int = 1) -> Served:
    """Open a tail or a whole model.

    Args:
        artefact: Checked by `open_artefact`.
        threads: Of the engine; the manifest's number when null.
        batch: Run up to so many requests together, where the model proves to give the same answers so.

    Raises:
        ServeError: A head.
        EngineError: The engine refuses it.
    """
    manifest = artefact.manifest
    if manifest.role == "head":
        raise ServeError(f"Wanted a tail or whole model to serve, found the head {artefact.folder}.")
    session = open_session(artefact, threads=threads)
    lock = threading.Lock()  # a session takes one caller at a time

    def run(arrays: Arrays) -> list[np.ndarray]:
        with lock:
            return session.run(arrays)

    run_batch = None
    if batch > 1:
        from orchestrator.serving.batch_model import open_batched  # loads onnx

        run_batch = open_batched(artefact, session, limit=batch, threads=threads)
    keys = manifest.cut.accepts if manifest.cut is not None else (artefact.key,)
    limits = limits_of(manifest.inputs)
    if manifest.preprocessing is not None:
        limits = Limits(max(limits.payload_bytes, MAX_IMAGE_BYTES), limits.tensor_bytes)
    codecs = codecs_of(artefact)
    return Served(
        manifest.model.name,
        keys,
        limits,
        lambda frame: read_inputs(frame, manifest, codecs),
        run,
        run_batch,
        batch if run_batch is not None else 1,
    )


def read_inputs(frame: Frame, manifest: Manifest, codecs: Mapping[int, Codec] = RAW_CODECS) -> list[np.ndarray]:
    """The model's inputs: from tensors, or for a whole model from an encoded picture.

    Raises:
        FormatError: A picture for a model that takes none, or tensors of other shapes.
        WireError: As the codec says.
        ImageError: The picture cannot be decoded.
    """
    if frame.codec != CODEC_IMAGE:
        check_heads(frame, manifest.inputs)
        return decode_tensors(frame, codecs)
    if manifest.preprocessing is None or len(manifest.inputs) != 1 or len(frame.layers) != 1:
        raise FormatError(f"Wanted tensors for {manifest.model.name}, found an encoded picture.")
    image = decode_image(bytes(frame.layers[0]))
    return [prepare(image, manifest.inputs[0], manifest.preprocessing)]


def by_key(models: Sequence[Served]) -> Mapping[str, Served]:
    """The models by route key.

    Raises:
        ServeError: Two models with one key.
    """
    found: dict[str, Served] = {}
    for model in models:
        for key in model.keys:
            if key in found:
                raise ServeError(f"Wanted each route key once, found {key} for {found[key].name} and {model.name}.")
            found[key] = model
    return found
