"""What an artefact says of itself: the manifest's structs, its canonical bytes and the identifiers made from them."""

import hashlib
import re
from typing import Any, Literal, Protocol

import msgspec

from device_profiles.errors import EdgeError

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"
MAX_MANIFEST_BYTES = 1 << 20
MAX_FILES = 256
MAX_FILE_BYTES = 1 << 30
MAX_PICTURE_SIDE, MAX_THREADS = 1 << 14, 1024
MAX_TENSORS = 8  # the wire frame counts tensors in this range too

Role = Literal["whole", "head", "tail"]
EngineName = Literal["onnxruntime", "litert", "tflite-runtime", "tensorrt", "generated-c", "tflite-micro"]
Semantic = Literal["image", "logits", "boxes", "masks", "latent", "tensor"]
Precision = Literal["fp32", "fp16", "int8"]
DTYPES = ("float32", "float16", "uint8", "int8", "int16", "int32", "int64", "bool")
DtypeName = Literal["float32", "float16", "uint8", "int8", "int16", "int32", "int64", "bool"]

_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_CUT_ID = re.compile(r"[0-9a-f]{16}\Z")
_SAFE_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99}\Z")


class ManifestError(EdgeError):
    """A manifest is not valid: a field is unknown, missing, of the wrong type or out of range."""


class _Data(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of everything that crosses a file here."""


class Quantisation(_Data, frozen=True, kw_only=True):
    """Affine quantisation: real = (stored - zero_point) * scale, per tensor."""

    scale: float  # real value of one integer step, > 0
    zero_point: int


class TensorSpec(_Data, frozen=True, kw_only=True):
    """One input or output of the model. `shape` holds sizes >= 1, batch first."""

    name: str  # what users call it
    engine_name: str  # what the engine's file calls it
    dtype: DtypeName
    shape: tuple[int, ...]
    layout: str | None = None  # "nchw", "nhwc" or null where the word has no meaning
    semantic: Semantic = "tensor"
    quantisation: Quantisation | None = None

    @property
    def nbytes(self) -> int:
        """Size of one value of this tensor, in bytes."""
        count = 1
        for size in self.shape:
            count *= size
        return count * {"float32": 4, "int32": 4, "int64": 8, "float16": 2, "int16": 2}.get(self.dtype, 1)


class Preprocessing(_Data, frozen=True, kw_only=True):
    """How a picture (uint8, RGB, height x width x 3) becomes the input tensor: x = (pixel - mean) / std per channel."""

    resize_short: int | None = None  # resize so that the short side has this many pixels, then crop
    crop: tuple[int, int]  # height, width of the centre crop
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Postprocessing(_Data, frozen=True, kw_only=True):
    """What the outputs mean."""

    kind: Literal["none", "softmax-top-k"] = "none"
    labels: str | None = None  # file of the artefact: one label a line


class Tool(_Data, frozen=True, kw_only=True):
    """Who wrote the artefact; `packages` maps distribution name to version."""

    name: str
    version: str
    packages: dict[str, str] = {}


class ModelInfo(_Data, frozen=True, kw_only=True):
    """Where the network came from."""

    name: str
    source_sha256: str  # of the source file, or of the traced weights for a module
    task: str = "classification"


class Engine(_Data, frozen=True, kw_only=True):
    """Which engine runs the file, and the options under which its results are known."""

    name: EngineName
    built: str  # version that the exporter ran
    tested: tuple[str, ...] = ()
    optimisation: Literal["all", "extended", "basic", "none"] = "all"
    threads: int = 1


class FileEntry(_Data, frozen=True, kw_only=True):
    """One file of the artefact; `path` is relative, with forward slashes."""

    path: str
    sha256: str
    size: int  # bytes


class Listing(Protocol):
    """A manifest: it lists every file with size and sha256."""

    @property
    def files_by_path(self) -> dict[str, FileEntry]:
        """The listed files, by relative path."""


class Calibration(_Data, frozen=True, kw_only=True):
    """Which data chose the quantisation parameters."""

    method: str
    source: str
    count: int
    sha256: str  # of the decoded calibration tensors, in order


class Quality(_Data, frozen=True, kw_only=True):
    """What the exporter measured against its reference; null is unknown."""

    metric: str
    reference: float | None
    this: float | None
    drop: float | None
    agreement: float | None  # share of equal top-1 answers, 0..1
    sqnr_db: float | None
    data: str
    data_sha256: str
    count: int
    worst_layers: tuple[tuple[str, float], ...] = ()  # name, SQNR in dB


class Golden(_Data, frozen=True, kw_only=True):
    """Inputs and the outputs that they must give; both are .npy-free raw files listed under `files`."""

    inputs: tuple[str, ...]
    expected: tuple[str, ...]
    compare: Literal["exact", "absolute", "argmax"]
    tolerance: float = 0.0
    produced_on: str  # engine, version, machine architecture


class BenchRow(_Data, frozen=True, kw_only=True):
    """A figure that the exporter measured on the machine at hand."""

    what: str
    value: float
    unit: str
    device: str


class Licence(_Data, frozen=True, kw_only=True):
    """Licence and attribution of weights or pictures inside."""

    subject: str
    spdx: str
    attribution: str


class Cut(_Data, frozen=True, kw_only=True):
    """How a head and its tails know each other. `tables_sha256` is of the entropy tables, null for raw."""

    cut_id: str | None = None  # of a head: 16 hex digits
    accepts: tuple[str, ...] = ()  # of a tail: the heads that it can serve
    tensors: tuple[TensorSpec, ...]
    codec: Literal["raw", "rans"] = "raw"
    tables_sha256: str | None = None


class EarlyExit(_Data, frozen=True, kw_only=True):
    """An output of a head that answers by itself where softmax(logits / temperature) reaches the threshold."""

    output: str  # name of the output with the logits; it is not sent
    temperature: float  # > 0
    threshold: float  # in [0, 1]; above 1 nothing leaves, and the exit only answers where the tail does not


class Manifest(_Data, frozen=True, kw_only=True):
    """Everything that is known of an artefact. Refused as a whole when any part is unknown or out of range."""

    schema: int
    tool: Tool
    model: ModelInfo
    role: Role
    target: str  # board id
    precision: Precision
    engine: Engine
    entry: str  # the file that the engine opens
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    files: tuple[FileEntry, ...]
    preprocessing: Preprocessing | None = None
    postprocessing: Postprocessing = Postprocessing()
    calibration: Calibration | None = None
    quality: Quality | None = None
    golden: tuple[Golden, ...] = ()
    fallback: str | None = None  # artefact id of the whole model that answers when the tail cannot
    bench: tuple[BenchRow, ...] = ()
    licences: tuple[Licence, ...] = ()
    cut: Cut | None = None
    early_exit: EarlyExit | msgspec.UnsetType = msgspec.UNSET  # absent without one: older manifests keep their bytes

    @property
    def files_by_path(self) -> dict[str, FileEntry]:
        """The listed files, by relative path."""
        return {entry.path: entry for entry in self.files}


def canonical_bytes(value: Any) -> bytes:  # noqa: ANN401 - any msgspec-encodable value
    """Encode as JSON with sorted keys, UTF-8, no spaces: the bytes that identifiers are made from."""
    return msgspec.json.encode(value, order="sorted")


def artefact_id(manifest: Manifest) -> str:
    """sha256 of the canonical manifest, 64 hex digits; it is not stored inside."""
    return hashlib.sha256(canonical_bytes(manifest)).hexdigest()


def route_key(manifest: Manifest) -> str:
    """The 16 hex digits under which requests for this artefact travel.

    A head gives its cut id, anything else the first 8 bytes of its artefact id.
    """
    if manifest.cut is not None and manifest.cut.cut_id is not None:
        return manifest.cut.cut_id
    return artefact_id(manifest)[:16]


def make_cut_id(*, head_sha256: str, tensors: tuple[TensorSpec, ...], codec: str, tables_sha256: str | None) -> str:
    """First 8 bytes, as hex, of sha256 over the head file's hash, the latents, the codec and the table set.

    Scales enter as `float.hex` text, so that no float formatting takes part in the identifier.
    """
    latents = [
        [t.dtype, list(t.shape), [t.quantisation.scale.hex(), t.quantisation.zero_point] if t.quantisation else None]
        for t in tensors
    ]
    parts = canonical_bytes([head_sha256, latents, codec, tables_sha256])
    return hashlib.sha256(parts).hexdigest()[:16]


def parse_manifest(data: bytes) -> Manifest:
    """Decode and check a manifest.

    Args:
        data: The bytes of `manifest.json`, at most `MAX_MANIFEST_BYTES`.

    Raises:
        ManifestError: Too large, not canonical JSON, an unknown field or version, or a value out of range.
    """
    if len(data) > MAX_MANIFEST_BYTES:
        raise ManifestError(
            f"Wanted a manifest of at most {MAX_MANIFEST_BYTES} B, found {len(data)} B. Export it again."
        )
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ManifestError(
            f"Wanted a headtail manifest (schema {SCHEMA_VERSION}), found: {error}. Export it again."
        ) from error
    if manifest.schema != SCHEMA_VERSION:
        raise ManifestError(
            f"Wanted manifest schema {SCHEMA_VERSION}, found {manifest.schema}. Use the headtail version that wrote it "
            f"({manifest.tool.version}) or export it again."
        )
    check_manifest(manifest)
    if canonical_bytes(manifest) != data:
        raise ManifestError(
            "Wanted canonical JSON (sorted keys, no spaces), found other bytes: the manifest was edited by hand. Export it again."
        )
    return manifest


def check_manifest(manifest: Manifest) -> None:
    """Check what types alone cannot say: paths, hashes, sizes, references between fields.

    Raises:
        ManifestError: With the field and the value.
    """
    if not 1 <= len(manifest.files) <= MAX_FILES:
        raise ManifestError(f"Wanted 1 to {MAX_FILES} files, found {len(manifest.files)} in `files`.")
    for entry in manifest.files:
        check_file_entry(entry)
    listed = manifest.files_by_path
    if len(listed) != len(manifest.files):
        raise ManifestError("Wanted every file listed once, found a path twice in `files`.")
    for path in _referenced_files(manifest):
        if path not in listed:
            raise ManifestError(f"Wanted {path!r} in `files`, found only {sorted(listed)}.")
    latents = manifest.cut.tensors if manifest.cut else ()
    for group, specs in (("inputs", manifest.inputs), ("outputs", manifest.outputs), ("cut.tensors", latents)):
        _check_tensors(group, specs, required=group != "cut.tensors" or manifest.cut is not None)
    if not 1 <= manifest.engine.threads <= MAX_THREADS:  # of 0 each engine makes what it likes
        raise ManifestError(f"Wanted 1 to {MAX_THREADS} threads, found {manifest.engine.threads}.")
    if manifest.preprocessing is not None:
        _check_preprocessing(manifest.preprocessing)
    _check_cut(manifest)
    _check_exit(manifest)


def check_file_entry(entry: FileEntry, *, max_parts: int = 4) -> None:
    """Refuse a listed file whose name could leave the folder, or whose hash or size cannot be.

    Raises:
        ManifestError: With the file and the value.
    """
    parts = entry.path.split("/")
    if not all(_SAFE_PART.match(part) for part in parts) or len(parts) > max_parts:
        raise ManifestError(
            f"Wanted a relative path of at most {max_parts} plain names, found {entry.path!r} in `files`. The artefact would leave its folder."
        )
    if entry.path in (MANIFEST_NAME, "manifest.sig"):
        raise ManifestError(f"Wanted model files in `files`, found {entry.path!r}, which cannot list itself.")
    if not _SHA256.match(entry.sha256):
        raise ManifestError(f"Wanted 64 lower-case hex digits for {entry.path}, found sha256 {entry.sha256!r}.")
    if not 0 <= entry.size <= MAX_FILE_BYTES:
        raise ManifestError(f"Wanted a size of 0 to {MAX_FILE_BYTES} B for {entry.path}, found {entry.size}.")


def _referenced_files(manifest: Manifest) -> list[str]:
    paths = [manifest.entry]
    for golden in manifest.golden:
        paths += [*golden.inputs, *golden.expected]
    if manifest.postprocessing.labels is not None:
        paths.append(manifest.postprocessing.labels)
    return paths


def _check_tensors(group: str, specs: tuple[TensorSpec, ...], *, required: bool) -> None:
    if len(specs) > MAX_TENSORS or (required and not specs):
        raise ManifestError(f"Wanted 1 to {MAX_TENSORS} tensors in `{group}`, found {len(specs)}.")
    for spec in specs:
        if len(spec.shape) > 6 or not all(1 <= size <= 1 << 24 for size in spec.shape) or spec.nbytes > MAX_FILE_BYTES:
            raise ManifestError(
                f"Wanted at most 6 sizes of 1 to 2^24 for {spec.name} in `{group}`, found {spec.shape}."
            )
        if spec.quantisation is not None and not 0.0 < spec.quantisation.scale < float("inf"):
            raise ManifestError(f"Wanted a positive finite scale for {spec.name}, found {spec.quantisation.scale}.")


def _check_preprocessing(found: Preprocessing) -> None:
    """Sizes that a picture can have, and a division that gives numbers."""
    sizes = found.crop if found.resize_short is None else (*found.crop, found.resize_short)
    if not all(1 <= size <= MAX_PICTURE_SIDE for size in sizes):
        raise ManifestError(
            f"Wanted sizes of 1 to {MAX_PICTURE_SIDE} in `preprocessing`, found crop {found.crop} and resize_short {found.resize_short}."
        )
    if {len(found.mean), len(found.std)} - {1, 3} or 0.0 in found.std:
        raise ManifestError(
            f"Wanted one or three numbers for mean and std in `preprocessing` (std not 0), found {found.mean}, {found.std}."
        )


def _check_cut(manifest: Manifest) -> None:
    cut = manifest.cut
    if (manifest.role == "whole") != (cut is None):
        raise ManifestError(
            f"Wanted `cut` for a head or tail and none for a whole model, found role {manifest.role!r}."
        )
    if cut is None:
        return
    hashes = {entry.sha256 for entry in manifest.files}
    if (cut.codec == "rans") != (cut.tables_sha256 is not None) or (cut.tables_sha256 or "") not in {"", *hashes}:
        raise ManifestError(
            f"Wanted the hash of a listed table file for codec rans and none for raw, found {cut.tables_sha256} for {cut.codec}."
        )
    ids = cut.accepts if manifest.role == "tail" else (cut.cut_id or "",)
    if not ids or not all(_CUT_ID.match(one) for one in ids):
        raise ManifestError(f"Wanted cut ids of 16 hex digits for a {manifest.role}, found {list(ids)}.")


def _check_exit(manifest: Manifest) -> None:
    leaving = manifest.early_exit
    if not leaving:
        return
    sent = {spec.name for spec in manifest.cut.tensors} if manifest.cut else set()
    found = [spec for spec in manifest.outputs if spec.name == leaving.output]
    if manifest.role != "head" or len(found) != 1 or leaving.output in sent or found[0].dtype != "float32":
        raise ManifestError(
            f"Wanted the early exit of a head to be one float32 output that is not sent, found {leaving.output!r} of a "
            f"{manifest.role} with outputs {[spec.name for spec in manifest.outputs]}. Export it again."
        )
    if not (0.0 < leaving.temperature < float("inf") and 0.0 <= leaving.threshold < float("inf")):
        raise ManifestError(f"Wanted a temperature above 0 and a threshold of at least 0, found {leaving}.")
