"""TensorRT on a Jetson or GPU host: the engine is built here on first use, and raced against ONNX Runtime's providers.

No engine has been built by headtail's own tests: TensorRT cannot be installed where they run. They replay a stand-in
whose signatures come from the documentation of 10.x and 11.x; GPU memory (`trt_cuda`) has run on a real GPU.
"""

import importlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from edge_runtime.artefact import Artefact, file_sha256
from edge_runtime.backends.trt_build import build_engine, check_version, make_logger
from edge_runtime.backends.trt_cache import BuildOptions, EngineCache, EngineKey, RaceResult, default_cache
from edge_runtime.backends.trt_cuda import Cuda, open_cuda
from edge_runtime.backends.trt_providers import gpu_providers, open_provider
from edge_runtime.backends.trt_race import run_race
from edge_runtime.manifest import TensorSpec
from edge_runtime.session import EngineError, Session, check_inputs

_LOG = logging.getLogger(__name__)

State = Literal["building", "racing", "ready"]
OnState = Callable[[State, str], None]


@dataclass(frozen=True)
class TensorRtOptions:
    """How an artefact is opened. `race` off takes TensorRT unseen."""

    build: BuildOptions = field(default_factory=BuildOptions)
    cache: EngineCache | None = None  # the user's cache folder when null
    race: bool = True
    on_state: OnState | None = None  # told "building" (it can take minutes), "racing", "ready", and a detail


class TensorRtSession:
    """A `Session` on one engine, with its inputs and outputs in GPU memory."""

    def __init__(self, library: Any, engine: bytes, artefact: Artefact, cuda: Cuda) -> None:  # noqa: ANN401 - untyped
        self.inputs: tuple[TensorSpec, ...] = artefact.manifest.inputs
        self.outputs: tuple[TensorSpec, ...] = artefact.manifest.outputs
        self._cuda = cuda
        self._logger = make_logger(library)
        self._runtime = library.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(engine)
        if self._engine is None:
            raise EngineError(f"Wanted an engine that TensorRT loads, found: {self._said()}. Delete it from the cache.")
        _check_tensors(library, self._engine, self.inputs, self.outputs)
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise EngineError(f"Wanted memory for the network, found: {self._said()}. Choose a smaller model.")
        self._addresses = {spec.engine_name: cuda.allocate(spec.nbytes) for spec in (*self.inputs, *self.outputs)}
        for name, address in self._addresses.items():
            if not self._context.set_tensor_address(name, address):
                raise EngineError(f"Wanted TensorRT to take memory for {name}, found: {self._said()}.")

    def run(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Run once; see `Session.run`."""
        check_inputs(self.inputs, arrays)
        self._cuda.make_current()  # the caller may be another thread than the one that opened the session
        for spec, array in zip(self.inputs, arrays, strict=True):
            self._cuda.upload(self._addresses[spec.engine_name], array)
        if not self._context.execute_async_v3(self._cuda.stream):
            raise EngineError(f"Wanted the network to run, found: {self._said()}.")
        results = [np.empty(spec.shape, spec.dtype) for spec in self.outputs]
        for spec, array in zip(self.outputs, results, strict=True):
            self._cuda.download(array, self._addresses[spec.engine_name])
        self._cuda.synchronise()
        return results

    def close(self) -> None:
        """Free the engine first, then the GPU memory."""
        self._context = self._engine = self._runtime = None
        self._cuda.close()

    def _said(self) -> str:
        return "; ".join(self._logger.errors) or "no reason given"


def open_backend(artefact: Artefact, threads: int, options: TensorRtOptions | None = None) -> Session:
    """Open the artefact's ONNX file with the faster of TensorRT and ONNX Runtime's GPU providers.

    The first opening builds the engine and runs the race; later ones find both in the cache.

    Raises:
        ModuleNotFoundError: TensorRT is not installed.
        TensorRtVersionError: Neither 10.x nor 11.x.
        CudaError: No NVIDIA driver.
        EngineError: No engine runs this network.
    """
    options = options or TensorRtOptions()
    library = importlib.import_module("tensorrt")
    version = check_version(library)
    cache = options.cache or default_cache()
    cuda = open_cuda()
    key = EngineKey(
        onnx_sha256=file_sha256(artefact.entry),
        tensorrt=version,
        gpu=cuda.gpu.name,
        compute_capability=cuda.gpu.compute_capability,
        options=options.build,
    )
    cuda.close()
    contenders: dict[str, Callable[[], Session]] = {
        "tensorrt": lambda: _open_engine(library, artefact, key, cache, options)
    }
    if options.race:
        for provider in gpu_providers():
            contenders[provider] = _opener(artefact, provider, threads, cache)
    winner = _winner(artefact, contenders, key, cache, options)
    session = contenders[winner]()
    _tell(options, "ready", winner)
    return session


def _winner(
    artefact: Artefact,
    contenders: dict[str, Callable[[], Session]],
    key: EngineKey,
    cache: EngineCache,
    options: TensorRtOptions,
) -> str:
    names = tuple(contenders)
    if len(names) == 1:
        return names[0]
    known = cache.load_race(key, names)
    if known is None:
        _tell(options, "racing", ", ".join(names))
        known = run_race(contenders, [_plausible(spec) for spec in artefact.manifest.inputs])
        cache.store_race(key, names, known)
        _report(known)
    return known.winner


def _open_engine(
    library: Any,  # noqa: ANN401 - the tensorrt module
    artefact: Artefact,
    key: EngineKey,
    cache: EngineCache,
    options: TensorRtOptions,
) -> Session:
    """The engine from the cache, or built now."""
    cuda = open_cuda()
    try:
        engine = cache.load_engine(key)
        if engine is None:
            _tell(options, "building", artefact.manifest.model.name)
            built = build_engine(
                library,
                artefact.entry.read_bytes(),
                options.build,
                timings=cache.load_timings(key),
                progress=lambda phase: _tell(options, "building", phase),
            )
            engine = built.engine
            cache.store_engine(key, engine)
            if built.timings:
                cache.store_timings(key, built.timings)
        return TensorRtSession(library, engine, artefact, cuda)
    except BaseException:
        cuda.close()
        raise


def _opener(artefact: Artefact, provider: str, threads: int, cache: EngineCache) -> Callable[[], Session]:
    return lambda: open_provider(artefact, provider, threads, cache.folder)


def _plausible(spec: TensorSpec) -> np.ndarray:
    """An input for timing: kernels take as long for zeros, but denormals and NaN are avoided by small integers."""
    return (np.arange(int(np.prod(spec.shape))) % 7).reshape(spec.shape).astype(spec.dtype)


def _check_tensors(
    library: Any,  # noqa: ANN401 - the tensorrt module
    engine: Any,  # noqa: ANN401 - tensorrt.ICudaEngine
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
) -> None:
    """Compare the engine's tensors with the manifest, so that no copy goes past the end of one."""
    wanted = {(spec.engine_name, True): spec for spec in inputs} | {(s.engine_name, False): s for s in outputs}
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    found = {(name, engine.get_tensor_mode(name) == library.TensorIOMode.INPUT) for name in names}
    if found != set(wanted):
        raise EngineError(
            f"Wanted tensors {sorted(name for name, _ in wanted)} as in the manifest, found {sorted(names)}. Export it again."
        )
    for (name, _), spec in wanted.items():
        dtype = np.dtype(library.nptype(engine.get_tensor_dtype(name))).name
        shape = tuple(int(size) for size in engine.get_tensor_shape(name))
        if (dtype, shape) != (spec.dtype, spec.shape):
            raise EngineError(
                f"Wanted {spec.dtype} {spec.shape} for {name} as in the manifest, found {dtype} {shape} in the engine. Export it again."
            )


def _tell(options: TensorRtOptions, state: State, detail: str) -> None:
    _LOG.info("TensorRT: %s %s", state, detail)
    if options.on_state is not None:
        options.on_state(state, detail)


def _report(result: RaceResult) -> None:
    for name, median in result.median_ms.items():
        _LOG.info("race: %s %.3f ms%s", name, median, " (chosen)" if name == result.winner else "")
    for name, reason in result.failed.items():
        _LOG.warning("race: %s did not run: %s", name, reason)
