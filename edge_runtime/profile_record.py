"""ONNX Runtime sessions for the measurement of single kernels: a plain one, and one with the engine's profiler on."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort

from edge_runtime.artefact import Artefact
from edge_runtime.backends.onnxrt import session_options, share_arena
from edge_runtime.session import EngineError

Run = Callable[[], object]
Feeds = dict[str, np.ndarray]


def open_plain(artefact: Artefact, threads: int, feeds: Feeds) -> Run:
    """What runs the model once.

    Raises:
        EngineError: ONNX Runtime refuses the model.
    """
    session = _open(artefact, session_options(artefact.manifest.engine.optimisation, threads))
    return lambda: session.run(None, feeds)


class Recording:
    """A session with the engine's profiler on; leaves its trace and the graph that it really runs."""

    def __init__(self, artefact: Artefact, threads: int, feeds: Feeds, *, folder: Path, optimised: Path) -> None:
        options = session_options(artefact.manifest.engine.optimisation, threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(folder / "ort")
        options.optimized_model_filepath = str(optimised)
        self._artefact, self._options, self._feeds = artefact, options, feeds
        self._session: ort.InferenceSession | None = None

    def begin(self) -> Run:
        """Open it; what runs the model once.

        Raises:
            EngineError: ONNX Runtime refuses, or cannot write its trace.
        """
        session = self._session = _open(self._artefact, self._options)
        feeds = self._feeds
        return lambda: session.run(None, feeds)

    def end(self, trace: Path) -> str:
        """Write the trace; the execution provider that ran."""
        if self._session is None:
            raise EngineError("Wanted a recording that was begun, found none.")
        Path(self._session.end_profiling()).replace(trace)
        return str(self._session.get_providers()[0])


def _open(artefact: Artefact, options: ort.SessionOptions) -> ort.InferenceSession:
    share_arena()
    options.add_session_config_entry("session.use_env_allocators", "1")
    try:
        return ort.InferenceSession(str(artefact.entry), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises classes of its own extension module that it does not export
        raise EngineError(
            f"Wanted onnxruntime to open {artefact.entry} for profiling, found: {error}. Is the disk full?"
        ) from error
