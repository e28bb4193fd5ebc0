"""ONNX Runtime on the CPU."""

import functools
from collections.abc import Sequence

import numpy as np
import onnxruntime as ort

from edge_runtime.artefact import Artefact
from edge_runtime.manifest import TensorSpec
from edge_runtime.session import EngineError, check_inputs

ort.disable_telemetry_events()  # on by default in some builds: what a device runs is nobody else's to know
_LEVELS = {
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}


class OnnxRuntimeSession:
    """A `Session` on ONNX Runtime's CPU provider."""

    def __init__(self, artefact: Artefact, session: ort.InferenceSession) -> None:
        self.inputs: tuple[TensorSpec, ...] = artefact.manifest.inputs
        self.outputs: tuple[TensorSpec, ...] = artefact.manifest.outputs
        self._session = session
        self._input_names = [spec.engine_name for spec in self.inputs]
        self._output_names = [spec.engine_name for spec in self.outputs]

    def run(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Run once; see `Session.run`."""
        check_inputs(self.inputs, arrays)
        feeds = dict(zip(self._input_names, arrays, strict=True))
        try:
            results: list[np.ndarray] = self._session.run(self._output_names, feeds)
        except Exception as error:  # as in `open_backend`
            raise EngineError(f"Wanted onnxruntime {ort.__version__} to run the model, found: {error}") from error
        return results

    def close(self) -> None:
        """Free the session."""
        del self._session


def session_options(optimisation: str, threads: int) -> ort.SessionOptions:
    """The options under which results are known: one level, one thread count, sequential, no spinning."""
    options = ort.SessionOptions()
    options.graph_optimization_level = _LEVELS[optimisation]
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Spinning threads burn the power of a small device between two frames.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


@functools.cache
def share_arena() -> None:
    """One memory arena for all sessions of the process.

    It grows by what is asked for; a session's own grows by powers of two and costs 3 MB more with a 5 MB network.
    """
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    no_limit, same_as_requested, default = 0, 1, -1
    ort.create_and_register_allocator(memory, ort.OrtArenaCfg(no_limit, same_as_requested, default, default))


def open_backend(artefact: Artefact, threads: int) -> OnnxRuntimeSession:
    """Open the artefact's .onnx file.

    Raises:
        EngineError: ONNX Runtime refuses it, or its inputs are not those of the manifest.
    """
    options = session_options(artefact.manifest.engine.optimisation, threads)
    share_arena()
    options.add_session_config_entry("session.use_env_allocators", "1")
    try:
        session = ort.InferenceSession(str(artefact.entry), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises classes of its own extension module that it does not export
        raise EngineError(
            f"Wanted an ONNX model that onnxruntime {ort.__version__} opens, found: {error}, in {artefact.entry}."
        ) from error
    for specs, values in (
        (artefact.manifest.inputs, session.get_inputs()),
        (artefact.manifest.outputs, session.get_outputs()),
    ):
        wanted, found = [s.engine_name for s in specs], [v.name for v in values]
        if wanted != found:
            raise EngineError(
                f"Wanted tensors {wanted} as in the manifest, found {found} in {artefact.entry}. Export it again."
            )
    return OnnxRuntimeSession(artefact, session)
