"""Find the model that a caller names, without importing it when nothing has changed since the last time.

Importing a module of one's own and torch takes seconds, a cached export should not. So the first time, every file that
the function reads while it runs is noted, together with the code that it imports, and kept with the identity of what
it returned. The next time these files are compared (size, time, then content), and if none differs the identity is
known. What cannot be noted is not recalled: a function that opens network connections, starts processes, reads
weights through a library that Python does not see (safetensors), or returns other weights each time it is called.
"""

import dataclasses
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from edge_runtime.artefact import file_sha256
from export.cache import Cache, cache_key, is_own_code
from export.convert import load_step
from export.source import ModelSource, Source, find_source

_MAX_FILES = 20_000
_SLOWEST_REPEAT_S = 10.0  # a function that takes longer is not called a second time to see whether it repeats itself
_UNSEEN_READERS = ("safetensors",)
_UNSEEN_EVENTS = ("socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.system", "os.posix_spawn", "os.fork")
_BINARY = (".pyc", ".so")


class Witness(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file as it was when the function ran."""

    path: str
    size: int
    mtime_ns: int
    sha256: str


class Memory(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a `module:function` returned, and what it was made from."""

    name: str
    model_sha256: str
    files: tuple[Witness, ...]


def load_source(source: str | Path | Source | ModelSource, cache: Cache) -> Source:
    """Find and identify a model; a module that has not changed is recalled, not loaded.

    Args:
        source: MODEL as text or path, or something that is found already.
        cache: Where memories are kept.

    Raises:
        SourceError: It cannot be exported.
        MissingDependencyError: It is a module, and torch is not installed.
    """
    if isinstance(source, Source):
        return source
    if isinstance(source, ModelSource):
        made: Source = load_step("export.modules").from_model(source)
        return made
    found = find_source(source)
    if found.kind != "torch":
        return found
    path = _memory_path(found, cache)
    memory = _recall(path)
    if memory is not None:
        return dataclasses.replace(found, name=memory.name, sha256=memory.model_sha256)
    return _load_and_remember(found, cache, path)


def loaded(source: Source) -> Source:
    """The source with its module in memory; a file source as it is."""
    if source.kind != "torch" or source.model is not None:
        return source
    made: Source = load_step("export.modules").load_module(source)
    return made


def _memory_path(source: Source, cache: Cache) -> Path | None:
    if cache.folder is None:
        return None
    return cache.folder / "recall" / cache_key("recall", source.text, str(Path.cwd()), sys.path, sys.version)


def _recall(path: Path | None) -> Memory | None:
    if path is None or not path.is_file():
        return None
    try:
        memory = msgspec.json.decode(path.read_bytes(), type=Memory)
    except (msgspec.DecodeError, OSError):
        return None
    return memory if all(_unchanged(one) for one in memory.files) else None


def _unchanged(witness: Witness) -> bool:
    try:
        status = os.stat(witness.path)
        if status.st_size != witness.size:
            return False
        # Library code is large and only changes with its time; everything else is compared by content.
        if status.st_mtime_ns == witness.mtime_ns and not witness.sha256:
            return True
        return bool(witness.sha256) and file_sha256(Path(witness.path)) == witness.sha256
    except OSError:
        return False


def _load_and_remember(source: Source, cache: Cache, path: Path | None) -> Source:
    modules = load_step("export.modules")  # torch is imported before the watch starts
    start = time.monotonic()
    with _watch() as seen:
        made: Source = modules.load_module(source)
    quick = time.monotonic() - start < _SLOWEST_REPEAT_S
    if path is None or not seen.complete or not quick or any(one in sys.modules for one in _UNSEEN_READERS):
        return made
    if modules.repeats_itself(made):
        witnesses = _witnesses(seen.paths | modules.imported_files(), modules.library_folders())
        if witnesses is not None:
            memory = Memory(made.name, made.sha256, witnesses)
            cache.keep(path, msgspec.json.encode(memory))
    return made


def _witnesses(paths: set[str], libraries: tuple[str, ...]) -> tuple[Witness, ...] | None:
    """The files as they are now; null when there are too many or one is gone."""
    if len(paths) > _MAX_FILES:
        return None
    found = []
    for name in sorted(paths):
        path = Path(name)
        if not path.is_file() or path.suffix in _BINARY or is_own_code(path):
            continue
        status = path.stat()
        is_library = name.startswith(libraries) and path.suffix == ".py"
        digest = "" if is_library else file_sha256(path)
        found.append(Witness(name, status.st_size, status.st_mtime_ns, digest))
    return tuple(found)


class _Seen:
    """What the audit hook noted."""

    def __init__(self) -> None:
        self.paths: set[str] = set()
        self.complete = True
        self.active = True

    def note(self, event: str, arguments: tuple[object, ...]) -> None:
        """One audit event; called for everything that the process does."""
        if not self.active:
            return
        if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            path = os.fsdecode(arguments[0])
            if not path.startswith(("/proc/", "/dev/", "/sys/")):
                self.paths.add(os.path.abspath(path))
        elif event in _UNSEEN_EVENTS:
            self.complete = False


@contextmanager
def _watch() -> Iterator[_Seen]:
    """Note the files that are opened meanwhile. An audit hook cannot be removed: afterwards it only returns."""
    seen = _Seen()
    sys.addaudithook(seen.note)
    try:
        yield seen
    finally:
        seen.active = False
