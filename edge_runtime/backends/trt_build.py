"""Build a TensorRT engine on the device that will run it: strongly typed, precision from the ONNX file alone.

One code path serves TensorRT 10 and 11. In 10 a strongly typed network must be asked for; in 11 every network is one
and the flag is kept only for compatibility. Precision flags and calibrators, which 11 no longer has, are never used.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edge_runtime.backends.trt_cache import BuildOptions
from edge_runtime.session import EngineError

_LOG = logging.getLogger(__name__)
_MAJORS = (10, 11)
_LAST_MESSAGES = 5

Progress = Callable[[str], None]


class TensorRtVersionError(EngineError):
    """This TensorRT is not one that headtail builds engines with."""


class BuildError(EngineError):
    """TensorRT could not make an engine of a file; the message holds what its parser or builder said."""


@dataclass(frozen=True)
class Built:
    """An engine, and the timing cache as it is after the build."""

    engine: bytes
    timings: bytes


def check_version(library: Any) -> str:  # noqa: ANN401 - the tensorrt module, untyped
    """The library's full version.

    Raises:
        TensorRtVersionError: Neither 10.x nor 11.x.
    """
    version = str(library.__version__)
    major = version.split(".")[0]
    if not major.isdecimal() or int(major) not in _MAJORS:
        raise TensorRtVersionError(
            f"Wanted TensorRT {' or '.join(map(str, _MAJORS))}, found {version}. JetPack 6 or newer brings one; for "
            "older boards use the trtexec command line that the artefact holds, or export for onnxruntime."
        )
    return version


def make_logger(library: Any) -> Any:  # noqa: ANN401 - a tensorrt.ILogger
    """A logger that passes TensorRT's words to `logging` and remembers the last errors in `errors`."""

    class Logger(library.ILogger):
        def __init__(self) -> None:
            library.ILogger.__init__(self)  # the bindings want the base named, not super()
            self.errors: list[str] = []

        def log(self, severity: Any, msg: str) -> None:  # noqa: ANN401 - tensorrt.ILogger.Severity
            """Called by TensorRT from any thread."""
            if severity in (library.ILogger.INTERNAL_ERROR, library.ILogger.ERROR):
                self.errors = [*self.errors, msg][-_LAST_MESSAGES:]
                _LOG.error("TensorRT: %s", msg)
            elif severity == library.ILogger.WARNING:
                _LOG.warning("TensorRT: %s", msg)
            else:
                _LOG.debug("TensorRT: %s", msg)

    return Logger()


def build_engine(
    library: Any,  # noqa: ANN401 - the tensorrt module, untyped
    onnx: bytes,
    options: BuildOptions,
    *,
    timings: bytes = b"",
    progress: Progress | None = None,
) -> Built:
    """Parse an ONNX file and build its engine; takes seconds to minutes.

    Args:
        library: The `tensorrt` module, 10.x or 11.x.
        onnx: The file's bytes, with all weights inside.
        options: Memory and effort.
        timings: Timing cache of earlier builds on this device, or nothing.
        progress: Called with the name of each phase as it starts.

    Raises:
        TensorRtVersionError: Another TensorRT.
        BuildError: The parser or the builder refused the file.
    """
    version = check_version(library)
    logger = make_logger(library)
    builder = library.Builder(logger)
    network = builder.create_network(_network_flags(library, version))
    parser = library.OnnxParser(network, logger)
    if not parser.parse(onnx):
        reasons = [str(parser.get_error(index).desc()) for index in range(parser.num_errors)]
        raise BuildError(_refusal("parses", version, reasons or logger.errors))
    config = builder.create_builder_config()
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(library.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    config.builder_optimization_level = options.optimisation_level
    _attach_timings(config, timings)
    if progress is not None:
        config.progress_monitor = _make_monitor(library, progress)
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise BuildError(_refusal("builds", version, logger.errors))
    cache = config.get_timing_cache()
    return Built(bytes(serialized), bytes(cache.serialize()) if cache is not None else b"")


def _network_flags(library: Any, version: str) -> int:  # noqa: ANN401 - the tensorrt module
    """Strongly typed: asked for in 10, always so in 11 (where explicit batch is also the only mode)."""
    if version.startswith("10."):
        return 1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    return 0


def _attach_timings(config: Any, timings: bytes) -> None:  # noqa: ANN401 - tensorrt.IBuilderConfig
    """Use earlier timings; a cache of another device or version is refused by TensorRT and a new one is begun."""
    cache = config.create_timing_cache(timings)
    if cache is None or not config.set_timing_cache(cache, False):
        if timings:
            _LOG.warning("Timing cache of %d B does not fit this TensorRT or GPU; starting a new one", len(timings))
        config.set_timing_cache(config.create_timing_cache(b""), False)


def _make_monitor(library: Any, progress: Progress) -> Any:  # noqa: ANN401 - a tensorrt.IProgressMonitor
    class Monitor(library.IProgressMonitor):
        def __init__(self) -> None:
            library.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            """A phase begins; nested phases name their parent."""
            del num_steps
            if parent_phase is None:
                progress(phase_name)

        def phase_finish(self, phase_name: str) -> None:
            """A phase is over."""

        def step_complete(self, phase_name: str, step: int) -> bool:
            """True: go on building."""
            del phase_name, step
            return True

    return Monitor()


def _refusal(verb: str, version: str, reasons: list[str]) -> str:
    said = "; ".join(reasons[:3])[:600] or "no reason given"
    return (
        f"Wanted a network that TensorRT {version} {verb}, found: {said}. Export it again for this board, or choose "
        "--engine onnxruntime."
    )
