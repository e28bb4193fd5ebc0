"""Compare the engine that is installed with those that an artefact was built and tested with.

Another major version is refused: its kernels, defaults and file formats are not those whose results are known. A minor
version is told, and judged by the golden vectors.
"""

import re
import sys

from device_profiles.errors import EdgeError
from edge_runtime.manifest import Engine

# engine -> (distribution, module); a microcontroller's engine is the artefact's own
_LIBRARIES = {
    "onnxruntime": ("onnxruntime", "onnxruntime"),
    "litert": ("ai-edge-litert", "ai_edge_litert"),
    "tflite-runtime": ("tflite-runtime", "tflite_runtime"),
    "tensorrt": ("tensorrt", "tensorrt"),
}
_NUMBER = re.compile(r"(\d+)(?:\.(\d+))?(?:\.|\Z|[^\d.])")


class EngineVersionError(EdgeError):
    """The engine here is of another major version than those that the artefact was built and tested with."""


def installed_version(engine: str) -> str | None:
    """Version of an engine's library here; null when it is not installed or has none."""
    if engine not in _LIBRARIES:
        return None
    distribution, module = _LIBRARIES[engine]
    version = getattr(sys.modules.get(module), "__version__", None)
    if isinstance(version, str):
        return version
    from importlib.metadata import PackageNotFoundError  # 1 MB and 15 ms
    from importlib.metadata import version as distribution_version

    try:
        return distribution_version(distribution)
    except PackageNotFoundError:
        return None


def check_version(engine: Engine, installed: str | None) -> str | None:
    """A remark when the minor version is none of those that are known; null when it is, or when nothing can be compared.

    Raises:
        EngineVersionError: No major version in common.
    """
    found = _number(installed or "")
    known = {number: text for text in (engine.built, *engine.tested) if (number := _number(text)) is not None}
    if found is None or not known:  # an engine that the exporter could not run says so in words
        return None
    versions = ", ".join(sorted(set(known.values())))
    if found[0] not in {major for major, _ in known}:
        raise EngineVersionError(
            f"Wanted {engine.name} {versions} as the artefact was built and tested with, found {installed}. "
            f"Install that major version ({found[0]} is another one), or export the artefact again with {installed}."
        )
    if found not in known:
        return f"{engine.name} {installed} is here, built and tested with {versions}: the golden vectors decide"
    return None


def _number(text: str) -> tuple[int, int] | None:
    """Major and minor of a version; null for words."""
    match = _NUMBER.match(text)
    return None if match is None else (int(match[1]), int(match[2] or 0))
