"""Engines and timing caches that were built on this device, kept under everything they depend on.

An engine holds machine code for one GPU and one TensorRT build. It is taken from the cache only when its record says
exactly what is asked for and its bytes have the recorded hash; anything else counts as absent and is built again.
"""

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edge_runtime.manifest import canonical_bytes

_MAX_RECORD_BYTES = 1 << 16
_MAX_ENGINE_BYTES = 4 << 30


class BuildOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What may change an engine besides the network. There is no precision: that stands in the ONNX file."""

    workspace_bytes: int | None = None  # scratch memory that a kernel may take; null is TensorRT's default
    optimisation_level: int = 3  # 0 builds fastest, 5 searches longest


class EngineKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that an engine depends on."""

    onnx_sha256: str
    tensorrt: str  # full version: engines are not portable between builds
    gpu: str
    compute_capability: str
    options: BuildOptions

    @property
    def digest(self) -> str:
        """32 hex digits that name the engine's files."""
        return hashlib.sha256(canonical_bytes(self)).hexdigest()[:32]

    @property
    def timing_digest(self) -> str:
        """32 hex digits that name the timing cache: shared by all networks of one GPU and TensorRT build."""
        parts = canonical_bytes([self.tensorrt, self.gpu, self.compute_capability])
        return hashlib.sha256(parts).hexdigest()[:32]


class _Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    key: EngineKey
    sha256: str
    size: int


class RaceResult(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which engine was fastest, and by how much; milliseconds are medians."""

    winner: str
    median_ms: dict[str, float]
    failed: dict[str, str] = {}  # engine -> why it did not run


@dataclass(frozen=True)
class EngineCache:
    """A folder of engines; only its owner may read it, because an engine is code."""

    folder: Path

    def load_engine(self, key: EngineKey) -> bytes | None:
        """The engine of exactly this key; null when there is none or it was edited."""
        record = self._record(key)
        path = self._path(key.digest, "engine")
        if record is None or record.key != key or not path.is_file() or record.size > _MAX_ENGINE_BYTES:
            return None
        if path.stat().st_size != record.size:
            return None
        data = path.read_bytes()
        return data if hashlib.sha256(data).hexdigest() == record.sha256 else None

    def store_engine(self, key: EngineKey, data: bytes) -> None:
        """Keep an engine: its bytes first, then the record that makes them count."""
        record = _Record(key=key, sha256=hashlib.sha256(data).hexdigest(), size=len(data))
        self._write(self._path(key.digest, "engine"), data)
        self._write(self._path(key.digest, "json"), canonical_bytes(record))

    def load_timings(self, key: EngineKey) -> bytes:
        """The timing cache for this GPU and TensorRT build; empty when there is none."""
        path = self._path(key.timing_digest, "timings")
        return path.read_bytes() if path.is_file() and path.stat().st_size < _MAX_ENGINE_BYTES else b""

    def store_timings(self, key: EngineKey, data: bytes) -> None:
        """Keep the timing cache: later builds on this device take a fraction of the time."""
        self._write(self._path(key.timing_digest, "timings"), data)

    def load_race(self, key: EngineKey, contenders: tuple[str, ...]) -> RaceResult | None:
        """An earlier race of the same contenders with this engine; null when there was none."""
        path = self._path(_race_name(key, contenders), "race")
        if not path.is_file() or path.stat().st_size > _MAX_RECORD_BYTES:
            return None
        try:
            result = msgspec.json.decode(path.read_bytes(), type=RaceResult)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
        return result if result.winner in contenders else None

    def store_race(self, key: EngineKey, contenders: tuple[str, ...], result: RaceResult) -> None:
        """Keep a race, so that the next start does not run it again."""
        self._write(self._path(_race_name(key, contenders), "race"), canonical_bytes(result))

    def _record(self, key: EngineKey) -> _Record | None:
        path = self._path(key.digest, "json")
        if not path.is_file() or path.stat().st_size > _MAX_RECORD_BYTES:
            return None
        try:
            return msgspec.json.decode(path.read_bytes(), type=_Record)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None

    def _path(self, name: str, kind: str) -> Path:
        return self.folder / f"{name}.{kind}"

    def _write(self, path: Path, data: bytes) -> None:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, partial = tempfile.mkstemp(prefix=f".{path.name}.", dir=self.folder)
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
        Path(partial).replace(path)


def default_cache() -> EngineCache:
    """`$XDG_CACHE_HOME/headtail/tensorrt`, or `~/.cache/headtail/tensorrt`."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return EngineCache(Path(base) / "headtail" / "tensorrt")


def _race_name(key: EngineKey, contenders: tuple[str, ...]) -> str:
    return hashlib.sha256(canonical_bytes([key, list(contenders)])).hexdigest()[:32]
