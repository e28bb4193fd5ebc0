"""A content-addressed cache on disk: the same work is done once.

Entries are named by the sha256 of everything that went in (source, options, calibration data, tool versions), written
in one step, and checked against their own hash when read. `HEADTAIL_CACHE` names another folder, or is "off".
"""

import contextlib
import functools
import hashlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from device_profiles.errors import EdgeError
from device_profiles.version import __version__
from edge_runtime.artefact import Artefact, open_artefact
from edge_runtime.manifest import canonical_bytes

LIMIT_BYTES = 4 << 30
_HASH_BYTES = 32
_STALE_S = 86_400.0  # what was being written so long ago was left by a process that died
_ROOT = Path(__file__).resolve().parents[1]
_OWN_PACKAGES = ("device_profiles", "edge_runtime", "export", "orchestrator", "split")
_OTHER_CODE = ("cut_", "trt_", "to_tensorrt")  # of this package, but no part of an export
_LOG = logging.getLogger(__name__)
# What takes part in an export; a new version of any of them is a new key.
_PACKAGES = (
    "torch", "onnx", "onnxscript", "onnx-ir", "onnxruntime", "litert-torch", "litert-converter", "ai-edge-quantizer",
    "ai-edge-litert", "numpy", "pillow",
)  # fmt: skip


@dataclass(frozen=True)
class Cache:
    """The cache folder; null keeps nothing."""

    folder: Path | None

    def blob(self, key: str, make: Callable[[], bytes]) -> bytes:
        """The bytes under `key`, made and kept when they are not there or damaged.

        Args:
            key: From `cache_key`.
            make: Makes the bytes; its errors pass through and nothing is kept.
        """
        path = None if self.folder is None else self.folder / "blob" / key
        if path is None:
            return make()
        kept = _read(path)
        if kept is not None:
            if hashlib.sha256(kept[_HASH_BYTES:]).digest() == kept[:_HASH_BYTES]:
                with contextlib.suppress(OSError):  # a cache of others, or one that was emptied meanwhile
                    path.touch()
                return kept[_HASH_BYTES:]
            _LOG.warning("Cache entry %s is damaged; made again.", path)
        data = make()
        _write(path, hashlib.sha256(data).digest() + data)
        _prune(path.parent, LIMIT_BYTES)
        return data

    def keep(self, path: Path, data: bytes) -> None:
        """Write a small file of the cache in one step."""
        _write(path, data)

    def artefact(self, key: str) -> Artefact | None:
        """The complete artefact under `key`, checked; null when there is none or it is damaged."""
        folder = self.artefact_folder(key)
        if folder is None or not folder.is_dir():
            return None
        try:
            return open_artefact(folder)
        except EdgeError as error:
            _LOG.warning("Cached artefact %s is damaged (%s); made again.", folder, error)
            shutil.rmtree(folder, ignore_errors=True)
            return None

    def prune_artefacts(self, limit: int = LIMIT_BYTES) -> None:
        """Remove the oldest artefacts until the rest takes at most `limit` bytes; the newest stays."""
        if self.folder is None:
            return
        for one in _oldest(self.folder / "artefact", limit):
            shutil.rmtree(one, ignore_errors=True)

    def artefact_folder(self, key: str) -> Path | None:
        """Where the artefact of `key` lies or goes."""
        return None if self.folder is None else self.folder / "artefact" / key

    def keeps_artefacts(self) -> bool:
        """Whether an artefact can be written here; a full or read-only disk costs the cache, not the export."""
        if self.folder is None:
            return False
        try:
            with tempfile.TemporaryDirectory(prefix=".part-", dir=_made(self.folder / "artefact")):
                return True
        except OSError as error:
            _LOG.warning("Cannot keep artefacts in the cache: %s.", error)
            return False


def _read(path: Path) -> bytes | None:
    """What is there; null where nothing is, or nothing that may be read."""
    try:
        return path.read_bytes()
    except OSError:
        return None


def _oldest(folder: Path, limit: int) -> list[Path]:
    """Entries that were not used for longest and are too much for the limit; the newest is never one of them."""
    entries = []
    try:
        for one in folder.iterdir():
            used = one.stat().st_mtime
            if one.name.startswith(".") and time.time() - used < _STALE_S:
                continue  # it is being written
            inside = [one, *one.rglob("*")] if one.is_dir() else [one]
            entries.append((used, sum(path.stat().st_size for path in inside), one))
    except OSError:  # another process removes something at the same time, or there is no such folder: next time
        return []
    entries.sort()
    total, found = sum(size for _, size, _ in entries), []
    for _, size, one in entries[:-1]:
        if total <= limit:
            break
        found.append(one)
        total -= size
    return found


def open_cache() -> Cache:
    """The cache that the environment names: `HEADTAIL_CACHE`, else `$XDG_CACHE_HOME/headtail`."""
    chosen = os.environ.get("HEADTAIL_CACHE")
    if chosen in ("off", "0"):
        return Cache(None)
    if chosen:
        return Cache(Path(chosen))
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Cache(Path(base) / "headtail")


def cache_key(*parts: object) -> str:
    """64 hex digits for everything given, and for the versions of headtail and the converters.

    Args:
        parts: msgspec-encodable values, in a fixed order.
    """
    return hashlib.sha256(canonical_bytes([tool_versions(), _own_code(), *parts])).hexdigest()


def is_own_code(path: Path) -> bool:
    """Whether a file belongs to headtail's packages, which count in every key as a whole."""
    return any(_ROOT / name in path.parents for name in _OWN_PACKAGES)


@functools.cache
def _own_code() -> str:
    """Hash of the sources that make artefacts: whoever changes an exporter must not meet what the old one made."""
    digest = hashlib.sha256()
    sources = [path for path in (_ROOT / "export").glob("*.py") if not path.name.startswith(_OTHER_CODE)]
    sources += [path for path in (_ROOT / "export" / "mcu").rglob("*") if path.suffix in (".py", ".c", ".h", ".j2")]
    sources += list((_ROOT / "split").glob("patch*.py"))
    sources += [_ROOT / "edge_runtime" / name for name in ("artefact.py", "manifest.py", "preprocess.py")]
    for path in sorted(sources):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def tool_versions() -> dict[str, str]:
    """Installed versions of what takes part in an export, by distribution name."""
    found = {"headtail": __version__}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _write(path: Path, data: bytes) -> None:
    """Write in one step; a full or read-only disk costs the cache, not the export."""
    try:
        descriptor, name = tempfile.mkstemp(prefix=".part-", dir=_made(path.parent))
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(data)
            Path(name).replace(path)
        except OSError:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        _LOG.warning("Cannot keep %s in the cache: %s.", path, error)


def _prune(folder: Path, limit: int) -> None:
    """Remove the entries that were not used for longest until the folder is below the limit."""
    for path in _oldest(folder, limit):
        with contextlib.suppress(OSError):
            path.unlink()
