"""ONNX Runtime's CUDA and TensorRT execution providers, as rivals of TensorRT itself."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edge_runtime.artefact import Artefact
from edge_runtime.manifest import TensorSpec
from edge_runtime.session import EngineError, check_inputs

_PROVIDERS = {"ort-tensorrt": "TensorrtExecutionProvider", "ort-cuda": "CUDAExecutionProvider"}


class ProviderSession:
    """A `Session` on one of ONNX Runtime's GPU providers; operators that it lacks fall back to CUDA, then the CPU."""

    def __init__(self, artefact: Artefact, session: Any) -> None:  # noqa: ANN401 - the library is untyped
        self.inputs: tuple[TensorSpec, ...] = artefact.manifest.inputs
        self.outputs: tuple[TensorSpec, ...] = artefact.manifest.outputs
        self._session = session

    def run(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Run once; see `Session.run`."""
        check_inputs(self.inputs, arrays)
        feeds = {spec.engine_name: array for spec, array in zip(self.inputs, arrays, strict=True)}
        try:
            results: list[np.ndarray] = self._session.run([spec.engine_name for spec in self.outputs], feeds)
        except Exception as error:  # onnxruntime raises classes of its own extension module that it does not export
            raise EngineError(f"Wanted the network to run, found: {str(error)[:300]}.") from error
        return results

    def close(self) -> None:
        """Free the session."""
        self._session = None


def gpu_providers() -> tuple[str, ...]:
    """Which rivals the installed ONNX Runtime has, the TensorRT provider first; none without onnxruntime-gpu."""
    if importlib.util.find_spec("onnxruntime") is None:
        return ()
    import onnxruntime

    available = set(onnxruntime.get_available_providers())
    return tuple(name for name, provider in _PROVIDERS.items() if provider in available)


def open_provider(artefact: Artefact, name: str, threads: int, cache: Path) -> ProviderSession:
    """Open the artefact's ONNX file with a provider.

    Raises:
        EngineError: The provider cannot load or refuses the file; a silent fall-back to the CPU counts as that.
    """
    import onnxruntime

    provider = _PROVIDERS[name]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(
            str(artefact.entry), options, providers=_chain(provider, artefact, cache)
        )
    except Exception as error:  # onnxruntime raises classes of its own extension module that it does not export
        raise EngineError(f"Wanted {provider} to open the network, found: {str(error)[:300]}.") from error
    if provider not in session.get_providers():
        raise EngineError(f"Wanted {provider}, found {session.get_providers()}: its libraries are missing.")
    return ProviderSession(artefact, session)


def _chain(provider: str, artefact: Artefact, cache: Path) -> list[Any]:
    """Providers in order of preference; the TensorRT one keeps its engines beside ours."""
    if provider != "TensorrtExecutionProvider":
        return [provider, "CPUExecutionProvider"]
    precision = artefact.manifest.precision
    kept = cache / "onnxruntime"
    kept.mkdir(parents=True, exist_ok=True, mode=0o700)
    settings = {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(kept),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(kept),
        # TensorRT 8 and 10 want these; they allow the types that the file already names, and calibrate nothing.
        "trt_int8_enable": "1" if precision == "int8" else "0",
        "trt_fp16_enable": "1" if precision == "fp16" else "0",
    }
    return [(provider, settings), "CUDAExecutionProvider", "CPUExecutionProvider"]
