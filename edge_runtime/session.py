"""One way to run a model, whichever engine is below it."""

import importlib
import importlib.util
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from device_profiles.errors import EdgeError, MissingDependencyError
from edge_runtime.artefact import Artefact
from edge_runtime.engine_version import check_version, installed_version
from edge_runtime.manifest import TensorSpec


class EngineError(EdgeError):
    """An engine cannot open or run a model."""


class InputError(EngineError):
    """The arrays given do not match the model's inputs."""


class Session(Protocol):
    """An opened model. Not for use from two threads at once."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs, in the order `run` takes them."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The outputs, in the order `run` returns them."""

    def run(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Run once.

        Args:
            arrays: One C-contiguous array for each input, of its dtype and shape.

        Raises:
            InputError: A dtype or shape differs.
            EngineError: The engine failed.
        """

    def close(self) -> None:
        """Free the engine's memory."""


# engine name -> (module, library, extra)
_BACKENDS = {
    "onnxruntime": ("edge_runtime.backends.onnxrt", "onnxruntime", "ort"),
    "litert": ("edge_runtime.backends.litert", "ai_edge_litert", "litert"),
    "tflite-runtime": ("edge_runtime.backends.litert", "tflite_runtime", "tflite-runtime"),
    "tflite-micro": ("edge_runtime.backends.tflm", "ai_edge_litert", "litert"),
    "tensorrt": ("edge_runtime.backends.trt", "tensorrt", "tensorrt"),
}


def open_session(artefact: Artefact, *, threads: int | None = None) -> Session:
    """Open an artefact with the engine that its manifest names.

    A microcontroller's int8 .tflite opens with LiteRT's reference kernels here: those of TensorFlow Lite Micro.

    Args:
        artefact: Checked by `open_artefact`.
        threads: Of the engine; the manifest's number when null.

    Raises:
        MissingDependencyError: The engine's library is not installed.
        EngineError: The engine refuses the file, or needs a device.
    """
    engine = artefact.manifest.engine
    if engine.name not in _BACKENDS:
        raise EngineError(
            f"Wanted an engine that runs here, found {engine.name!r} in {artefact.folder}: that runs on the device alone."
        )
    module, library, extra = _BACKENDS[engine.name]
    count = engine.threads if threads is None else threads
    try:
        backend = importlib.import_module(module)
        check_version(engine, installed_version(engine.name))
        session: Session = backend.open_backend(artefact, count)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] not in (library, "ai_edge_litert", "tflite_runtime"):
            raise
        raise MissingDependencyError(
            f"Wanted the engine {engine.name}, found no module {error.name!r}. Install it: pip install 'headtail[{extra}]'."
        ) from error
    return session


def available_engines() -> tuple[str, ...]:
    """Names of the engines whose library is installed here; none of them is imported."""
    return tuple(
        name
        for name, (_, library, _) in _BACKENDS.items()
        if name != "tflite-micro" and importlib.util.find_spec(library) is not None
    )


def check_inputs(specs: tuple[TensorSpec, ...], arrays: Sequence[np.ndarray]) -> None:
    """Compare arrays with the specs before an engine sees them.

    Raises:
        InputError: Naming the first input that differs.
    """
    if len(arrays) != len(specs):
        raise InputError(f"Wanted {len(specs)} inputs ({', '.join(s.name for s in specs)}), found {len(arrays)}.")
    for spec, array in zip(specs, arrays, strict=True):
        if array.dtype != spec.dtype or array.shape != spec.shape:  # dtype.name is slow in a cold cache
            raise InputError(f"Wanted {spec.dtype} {spec.shape} for {spec.name}, found {array.dtype} {array.shape}.")
