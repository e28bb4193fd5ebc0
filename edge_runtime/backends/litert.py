"""LiteRT (ai-edge-litert), or its predecessor tflite-runtime where that is what is installed."""

import importlib
import importlib.util
from collections.abc import Sequence
from importlib.metadata import version as distribution_version
from typing import Any

import numpy as np

from edge_runtime.artefact import Artefact
from edge_runtime.manifest import TensorSpec
from edge_runtime.session import EngineError, check_inputs


class LiteRtSession:
    """A `Session` on the LiteRT interpreter."""

    def __init__(self, artefact: Artefact, interpreter: Any) -> None:  # noqa: ANN401 - the library is untyped
        self.inputs: tuple[TensorSpec, ...] = artefact.manifest.inputs
        self.outputs: tuple[TensorSpec, ...] = artefact.manifest.outputs
        self._interpreter = interpreter
        self._input_ids = _indices(self.inputs, interpreter.get_input_details(), artefact)
        self._output_ids = _indices(self.outputs, interpreter.get_output_details(), artefact)

    def run(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Run once; see `Session.run`."""
        check_inputs(self.inputs, arrays)
        try:
            for index, array in zip(self._input_ids, arrays, strict=True):
                self._interpreter.set_tensor(index, array)
            self._interpreter.invoke()
        except (ValueError, RuntimeError) as error:
            raise EngineError(f"Wanted LiteRT to run the model, found: {error}") from error
        return [self._interpreter.get_tensor(index) for index in self._output_ids]

    def close(self) -> None:
        """Free the interpreter."""
        del self._interpreter


def interpreter_class(engine: str) -> tuple[Any, str]:
    """The interpreter class and its version; tflite-runtime is refused under numpy 2, where it fails later and worse.

    Raises:
        EngineError: tflite-runtime together with numpy 2.
        ModuleNotFoundError: Neither library is installed.
    """
    if engine != "tflite-runtime":
        try:
            module = importlib.import_module("ai_edge_litert.interpreter")
            return module.Interpreter, distribution_version("ai-edge-litert")
        except ModuleNotFoundError:
            if importlib.util.find_spec("tflite_runtime") is None:
                raise
    if int(np.__version__.split(".")[0]) >= 2:
        raise EngineError(
            f"Wanted numpy < 2 for tflite-runtime, found numpy {np.__version__}. "
            "Install ai-edge-litert (pip install 'headtail[litert]'), or numpy<2 in a virtual environment of its own."
        )
    module = importlib.import_module("tflite_runtime.interpreter")
    return module.Interpreter, distribution_version("tflite-runtime")


def open_backend(artefact: Artefact, threads: int) -> LiteRtSession:
    """Open the artefact's .tflite file.

    Raises:
        EngineError: The interpreter refuses it, or its tensors are not those of the manifest.
    """
    interpreter_type, version = interpreter_class(artefact.manifest.engine.name)
    options = kernel_options(interpreter_type, reference=artefact.manifest.engine.name == "tflite-micro")
    try:
        interpreter = interpreter_type(model_path=str(artefact.entry), num_threads=threads, **options)
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise EngineError(
            f"Wanted a model that LiteRT {version} opens, found: {error}, in {artefact.entry}."
        ) from error
    return LiteRtSession(artefact, interpreter)


def kernel_options(interpreter_type: Any, *, reference: bool) -> dict[str, Any]:  # noqa: ANN401 - an untyped class
    """Arguments of an interpreter: the fast kernels, or those of TensorFlow Lite Micro, which round differently."""
    if not reference:
        return {}
    kinds = importlib.import_module(interpreter_type.__module__).OpResolverType
    return {"experimental_op_resolver_type": kinds.BUILTIN_REF}


def _indices(specs: tuple[TensorSpec, ...], details: list[dict[str, Any]], artefact: Artefact) -> list[int]:
    by_name = {detail["name"]: int(detail["index"]) for detail in details}
    missing = [spec.engine_name for spec in specs if spec.engine_name not in by_name]
    if missing:
        raise EngineError(
            f"Wanted tensors {missing} as in the manifest, found {sorted(by_name)} in {artefact.entry}. Export it again."
        )
    return [by_name[spec.engine_name] for spec in specs]
