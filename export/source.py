"""What is exported: a module of one's own, an .onnx or a .tflite file, with the hash that identifies it.

MODEL is `module:function`, `path.onnx` or `path.tflite`. The function takes no argument and returns one of

    (module, example)                     example: a tensor, or a tuple of tensors
    (module, example, Preprocessing)      where the input is a picture
    ModelSource(...)                      where names, labels or licences matter too

Modules are looked for in the current directory first, then on Python's path.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from device_profiles.errors import EdgeError
from edge_runtime.manifest import MAX_FILE_BYTES, Licence, Preprocessing

if TYPE_CHECKING:
    import torch

SourceKind = Literal["torch", "onnx", "tflite"]

_MODULE = re.compile(r"(?P<module>[A-Za-z_]\w*(\.[A-Za-z_]\w*)*):(?P<function>[A-Za-z_]\w*)\Z")
_TFLITE_MAGIC = b"TFL3"
_CHUNK_BYTES = 1 << 20


class SourceError(EdgeError):
    """MODEL is not something that can be exported: not found, not a model, or unsafe to read."""


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """A network of one's own, and what only its author knows of it.

    Attributes:
        module: The network; it is exported in evaluation mode.
        example: One input each, with the batch size (normally 1) and shape that the artefact will have.
        preprocessing: How a picture becomes the (only) input; null when the input is no picture.
        labels: One name for each class.
        task: "classification" makes a (batch, classes) output be called logits.
        licences: Of the weights; they are written into the artefact.
        input_names: Default: the parameter names of `forward`.
        output_names: Default: "logits" or "output", numbered when there are several.
    """

    module: "torch.nn.Module"
    example: "tuple[torch.Tensor, ...]"
    preprocessing: Preprocessing | None = None
    labels: tuple[str, ...] = ()
    task: str = "classification"
    licences: tuple[Licence, ...] = ()
    input_names: tuple[str, ...] = ()
    output_names: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model that was found; a module may not be loaded yet."""

    kind: SourceKind
    text: str  # as the user wrote it
    name: str
    sha256: str  # of the file; of weights and code for a module
    path: Path | None = None  # of a file
    model: ModelSource | None = None  # of a module that is loaded


def find_source(text: str | Path) -> Source:
    """Look at MODEL without parsing it; a file is hashed, a module is only split into its two names.

    Args:
        text: `module:function`, or the path of an .onnx or .tflite file.

    Returns:
        The source; `sha256` of a module is empty until it is loaded (`export.modules.load_module`) or recalled.

    Raises:
        SourceError: No such file, too large, of another kind, or not a MODEL at all.
    """
    name = str(text)
    path = Path(text)
    suffix = path.suffix.lower()
    if suffix in (".onnx", ".tflite"):
        return _file_source(path, "onnx" if suffix == ".onnx" else "tflite")
    match = _MODULE.match(name)
    if match:
        return Source(kind="torch", text=name, name=match["function"], sha256="")
    raise SourceError(
        f"Wanted module:function, a path ending in .onnx, or one ending in .tflite, found {name!r}. "
        "Write a function that returns (module, example input), see `headtail export --help`."
    )


def module_names(source: Source) -> tuple[str, str]:
    """The module and function names of a source of kind "torch"."""
    match = _MODULE.match(source.text)
    if match is None:
        raise SourceError(f"Wanted module:function, found {source.text!r}.")
    return match["module"], match["function"]


def read_source(source: Source) -> bytes:
    """The bytes of a file source; they are those that were hashed.

    Raises:
        SourceError: The file changed since.
    """
    if source.path is None:
        raise SourceError(f"Wanted an .onnx or .tflite file, found the module {source.text!r}.")
    data = source.path.read_bytes()
    if hashlib.sha256(data).hexdigest() != source.sha256:
        raise SourceError(f"Wanted {source.path} as it was a moment ago, found other bytes. Run the command again.")
    return data


def _file_source(path: Path, kind: Literal["onnx", "tflite"]) -> Source:
    if not path.is_file():
        raise SourceError(f"Wanted a model file, found nothing at {path}. Check the path.")
    size = path.stat().st_size
    if not 16 <= size <= MAX_FILE_BYTES:
        raise SourceError(f"Wanted a model file of 16 to {MAX_FILE_BYTES} B, found {size} B in {path}.")
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        head = stream.read(_CHUNK_BYTES)
        _check_head(path, kind, head)
        while head:
            digest.update(head)
            head = stream.read(_CHUNK_BYTES)
    return Source(kind=kind, text=str(path), name=path.stem, sha256=digest.hexdigest(), path=path)


def _check_head(path: Path, kind: SourceKind, head: bytes) -> None:
    """Tell files that are plainly something else before a parser sees them."""
    if kind == "tflite" and head[4:8] != _TFLITE_MAGIC:
        raise SourceError(
            f"Wanted a .tflite file (TFL3 at byte 4), found {head[4:8]!r} in {path}. Is it another format?"
        )
    # An ONNX file is a protobuf message; its first field is ir_version (1, varint).
    if kind == "onnx" and head[:1] != b"\x08":
        raise SourceError(
            f"Wanted an .onnx file (first byte 0x08, the IR version), found {head[:4]!r} in {path}. "
            "A git-lfs pointer or another format? Export it again."
        )
