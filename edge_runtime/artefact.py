"""Open, check, write and pack artefacts: a folder (or its .zip) with a manifest, files and golden vectors.

Order of the checks: signature where one is wanted, manifest, then size and sha256 of every file, then what `model_scan`
refuses, and only then may a model parser see a byte.
"""

import contextlib
import os
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np

from device_profiles.errors import EdgeError
from edge_runtime.durable import file_sha256, no_room, replace_folder
from edge_runtime.manifest import (
    MANIFEST_NAME,
    MAX_FILE_BYTES,
    MAX_FILES,
    MAX_MANIFEST_BYTES,
    FileEntry,
    Listing,
    Manifest,
    ManifestError,
    TensorSpec,
    artefact_id,
    canonical_bytes,
    check_manifest,
    parse_manifest,
    route_key,
)
from edge_runtime.model_scan import scan_onnx, scan_tflite

MAX_ARTEFACT_BYTES = 2 << 30  # all files together
MAX_ZIP_RATIO = 200  # unpacked over packed size of one member
_CHUNK_BYTES = 1 << 20
_SPARE_BYTES = 16 << 20  # left free on a disk
SIGNATURE_NAME = "manifest.sig"


class ArtefactError(EdgeError):
    """An artefact cannot be read: missing, not an artefact, or unsafe to unpack."""


class IntegrityError(ArtefactError):
    """A file differs from what the manifest says: edited, truncated, missing or extra."""


@dataclass(frozen=True)
class Artefact:
    """A checked artefact on disk."""

    folder: Path
    manifest: Manifest

    @property
    def id(self) -> str:
        """sha256 of the canonical manifest, 64 hex digits."""
        return artefact_id(self.manifest)

    @property
    def key(self) -> str:
        """The 16 hex digits under which requests for it travel."""
        return route_key(self.manifest)

    @property
    def entry(self) -> Path:
        """The file that the engine opens."""
        return self.path(self.manifest.entry)

    def path(self, relative: str) -> Path:
        """Where a listed file lies; the name was checked when the manifest was parsed."""
        return self.folder / relative


Gate = Callable[[bytes, bytes | None], object]  # of a manifest and its signature file; raises when they may not pass


class Packable(Protocol):
    """A folder with a manifest, and perhaps its signature."""

    @property
    def folder(self) -> Path:
        """Where it lies."""

    @property
    def manifest(self) -> Listing:
        """What is in it."""


def open_artefact(path: Path | str, gate: Gate | None = None) -> Artefact:
    """Open a folder or .zip and check everything that can be checked without an engine.

    A .zip is unpacked beside itself into `<name>.d`, replacing what an earlier call left there.

    Args:
        path: The folder or .zip.
        gate: Asked first, before anything else of the artefact is read; of a .zip, before anything else is unpacked.

    Raises:
        SignatureError: As the gate says.
        ManifestError: The manifest is not valid.
        IntegrityError: A file is missing, extra, edited or truncated.
        ModelScanError: A model with custom operators or external data, or no model at all.
        ArtefactError: No artefact there, or a .zip that is unsafe to unpack.
    """
    path = Path(path)
    if path.is_file():
        path = unpack_archive(path, gate)
    if not path.is_dir():
        raise ArtefactError(
            f"Wanted an artefact (a folder or .zip), found nothing at {path}. Check the path or run `headtail export`."
        )
    data = read_small(path, MANIFEST_NAME)
    if data is None:
        raise ArtefactError(f"Wanted {MANIFEST_NAME}, found none in {path}. Is it an artefact of `headtail export`?")
    if gate is not None:
        gate(data, read_small(path, SIGNATURE_NAME))
    manifest = parse_manifest(data)
    try:
        check_files(path, manifest)
        scan_models(path, manifest)
    except OSError as error:
        raise ArtefactError(f"Wanted to read the artefact at {path}, found: {error}. Check its permissions.") from error
    return Artefact(path, manifest)


def scan_models(folder: Path, manifest: Manifest) -> None:
    """Look through every model file before an engine does; the entry by its engine, whatever it is called.

    Raises:
        UnsafeModelError: Custom operators or external data.
        DamagedModelError: Not a model of that kind.
    """
    for relative in manifest.files_by_path:
        engine = manifest.engine.name if relative == manifest.entry else None
        if relative.endswith(".onnx") or engine in ("onnxruntime", "tensorrt"):
            scan_onnx(folder / relative)
        elif relative.endswith(".tflite") or engine in ("litert", "tflite-runtime", "tflite-micro"):
            scan_tflite(folder / relative)


def check_files(folder: Path, manifest: Listing, *, max_files: int = MAX_FILES) -> None:
    """Compare every file under `folder` with the manifest: no link, none missing, none extra, sizes and hashes equal.

    Raises:
        IntegrityError: With the file and both values.
    """
    found = _list_files(folder, 4 * max_files)
    wanted = manifest.files_by_path
    extra = sorted(found - set(wanted) - {MANIFEST_NAME, SIGNATURE_NAME})
    if extra:
        raise IntegrityError(
            f"Wanted only listed files in {folder}, found {extra[:3]} besides. Remove them or export again."
        )
    for relative, entry in wanted.items():
        if relative not in found:
            raise IntegrityError(f"Wanted {relative} in {folder}, found no such file. Copy the artefact again.")
        size = (folder / relative).stat().st_size
        if size != entry.size:
            raise IntegrityError(
                f"Wanted {entry.size} B in {relative}, found {size} B in {folder}. Copy the artefact again."
            )
    for relative, entry in wanted.items():
        digest = file_sha256(folder / relative)
        if digest != entry.sha256:
            raise IntegrityError(
                f"Wanted sha256 {entry.sha256[:16]}.. of {relative}, found {digest[:16]}.. in {folder}: the file was edited."
            )


def write_artefact(folder: Path, manifest: Manifest, files: Mapping[str, bytes | Path]) -> Artefact:
    """Write an artefact in one step: it is complete at `folder`, or not there at all.

    Args:
        folder: Where it goes; an artefact that is there already is replaced, anything else is not.
        manifest: With `files=()`; sizes and hashes are filled in here.
        files: Content, or the path of the content, by relative path.

    Raises:
        ArtefactError: `folder` holds something that is not an artefact, or cannot be made.
        ManifestError: The manifest is not valid together with the files.
    """
    folder = Path(folder)
    try:
        if _holds_other_files(folder):
            raise ArtefactError(
                f"Wanted an empty folder or an artefact to replace, found other files in {folder}. Choose another --out."
            )
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise ArtefactError(f"Wanted to write {folder}, found: {error}. Choose another --out.") from error
    try:
        entries = []
        for relative, content in sorted(files.items()):
            target = staging / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, Path):
                shutil.copyfile(content, target)
            else:
                target.write_bytes(content)
            entries.append(FileEntry(path=relative, sha256=file_sha256(target), size=target.stat().st_size))
        manifest = msgspec.structs.replace(manifest, files=tuple(entries))
        check_manifest(manifest)
        # Parsed back, so that what is returned is what a reader will see.
        data = canonical_bytes(manifest)
        manifest = parse_manifest(data)
        (staging / MANIFEST_NAME).write_bytes(data)
        staging.chmod(0o755)
        replace_folder(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return Artefact(folder, manifest)


def pack_artefact(artefact: Packable, archive: Path) -> Path:
    """Write the artefact as an uncompressed .zip with fixed timestamps: equal artefacts give equal bytes."""
    names = [MANIFEST_NAME, *sorted(artefact.manifest.files_by_path)]
    if (artefact.folder / SIGNATURE_NAME).is_file():
        names.insert(1, SIGNATURE_NAME)
    partial = archive.with_name(archive.name + ".part")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as bundle:
        for name in names:
            info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            info.external_attr = 0o644 << 16
            bundle.writestr(info, (artefact.folder / name).read_bytes())
    partial.replace(archive)
    return archive


def read_raw(artefact: Artefact, relative: str, spec: TensorSpec) -> np.ndarray:
    """Read a golden file: little-endian values of the spec's dtype and shape, nothing else.

    Raises:
        IntegrityError: The file's size is not that of the tensor.
    """
    data = artefact.path(relative).read_bytes()
    if len(data) != spec.nbytes:
        raise IntegrityError(f"Wanted {spec.nbytes} B for {spec.name} {spec.shape}, found {len(data)} B in {relative}.")
    return np.frombuffer(data, np.dtype(spec.dtype).newbyteorder("<")).reshape(spec.shape)


def read_small(folder: Path, name: str) -> bytes | None:
    """The manifest or its signature; null when there is no such plain file."""
    path = folder / name
    if not path.is_file() or path.is_symlink():
        return None
    try:
        with path.open("rb") as stream:
            return stream.read(MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        raise ArtefactError(f"Wanted to read {path}, found: {error}. Check its permissions.") from error


def _list_files(folder: Path, limit: int) -> set[str]:
    found: set[str] = set()
    for root, folders, names in os.walk(folder):
        for name in [*folders, *names]:
            path = Path(root, name)
            mode = path.lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise IntegrityError(
                    f"Wanted plain files, found a link or device at {path}. Export the artefact again."
                )
        found |= {Path(root, name).relative_to(folder).as_posix() for name in names}
        if len(found) > limit:
            raise IntegrityError(f"Wanted at most {limit} files, found more than {len(found)} in {folder}.")
    return found


def _holds_other_files(folder: Path) -> bool:
    """Whether something else than an artefact is there; looks again while another process replaces it."""
    while folder.exists():
        with contextlib.suppress(FileNotFoundError):
            before = folder.stat().st_ino
            names = {path.name for path in folder.iterdir()}
            if folder.stat().st_ino == before:
                return bool(names) and MANIFEST_NAME not in names
    return False


def unpack_archive(archive: Path, gate: Gate | None, *, max_files: int = MAX_FILES) -> Path:
    """Unpack a .zip beside itself into `<name>.d`, after a look at its members and the gate's word; the folder.

    Raises:
        SignatureError: As the gate says.
        ArtefactError: No .zip, or one that is unsafe to unpack.
    """
    target = archive.with_name(archive.name + ".d")
    try:
        staging = Path(tempfile.mkdtemp(prefix=f".{archive.name}.", dir=archive.parent))
    except OSError as error:
        raise ArtefactError(f"Wanted to unpack {archive} beside itself, found: {error}. Copy it elsewhere.") from error
    try:
        with zipfile.ZipFile(archive) as bundle:
            members = _checked_members(bundle, archive, 2 * max_files)
            if gate is not None:
                _ask_gate(bundle, members, archive, gate)
            _check_room(archive, sum(member.file_size for member in members))
            for member in members:
                _extract(bundle, member, staging / member.filename)
        if target.exists() and not (target / MANIFEST_NAME).is_file():
            raise ArtefactError(f"Wanted to unpack into {target}, found other files there. Remove them first.")
        staging.chmod(0o755)
        replace_folder(staging, target)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, RuntimeError, ValueError, OSError) as error:
        raise ArtefactError(f"Wanted an artefact as .zip, found: {error}, in {archive}. Copy it again.") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def _checked_members(bundle: zipfile.ZipFile, archive: Path, limit: int) -> list[zipfile.ZipInfo]:
    """Look at names, kinds and sizes before a byte is unpacked. The manifest is checked like the other names, later."""
    members = [member for member in bundle.infolist() if not member.is_dir()]
    if len(bundle.infolist()) > limit:
        raise ArtefactError(f"Wanted at most {limit} members, found {len(bundle.infolist())} in {archive}.")
    if sum(member.file_size for member in members) > MAX_ARTEFACT_BYTES:
        raise ArtefactError(f"Wanted at most {MAX_ARTEFACT_BYTES} B unpacked, found more in {archive}.")
    seen: set[str] = set()
    for member in members:
        name = member.filename
        kind = member.external_attr >> 16
        if name.startswith(("/", "\\")) or "\\" in name or ":" in name or ".." in name.split("/") or len(name) > 400:
            raise ArtefactError(
                f"Wanted names inside of the artefact, found {name!r} in {archive}: it would leave its folder."
            )
        if stat.S_IFMT(kind) not in (0, stat.S_IFREG):
            raise ArtefactError(f"Wanted plain files, found a link or device {name!r} in {archive}.")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ArtefactError(
                f"Wanted {name!r} stored or deflated, found method {member.compress_type} in {archive}."
            )
        if name in seen:
            raise ArtefactError(f"Wanted each name once, found {name!r} twice in {archive}.")
        if member.file_size > MAX_FILE_BYTES or member.file_size > MAX_ZIP_RATIO * max(member.compress_size, 1024):
            raise ArtefactError(
                f"Wanted a member that unpacks to at most {MAX_ZIP_RATIO}x, found {name!r} with {member.file_size} B in {archive}."
            )
        seen.add(name)
    return members


def _ask_gate(bundle: zipfile.ZipFile, members: list[zipfile.ZipInfo], archive: Path, gate: Gate) -> None:
    """Show the gate the manifest and the signature, read within their bounds."""
    small: dict[str, bytes] = {}
    for member in members:
        if member.filename in (MANIFEST_NAME, SIGNATURE_NAME):
            with bundle.open(member) as stream:
                small[member.filename] = stream.read(MAX_MANIFEST_BYTES + 1)
    if MANIFEST_NAME not in small:
        raise ArtefactError(f"Wanted {MANIFEST_NAME}, found none in {archive}. Is it an artefact?")
    gate(small[MANIFEST_NAME], small.get(SIGNATURE_NAME))


def _check_room(archive: Path, size: int) -> None:
    free = shutil.disk_usage(archive.parent).free
    if free < size + _SPARE_BYTES:
        raise ArtefactError(
            f"Wanted {size + _SPARE_BYTES} B of room to unpack {archive}, found {free} B free. Remove something there."
        ) from no_room()


def _extract(bundle: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    left = member.file_size
    with bundle.open(member) as source, target.open("wb") as sink:
        while chunk := source.read(min(_CHUNK_BYTES, left + 1)):
            left -= len(chunk)
            if left < 0:
                raise ArtefactError(
                    f"Wanted {member.file_size} B in {member.filename!r}, found more: the .zip lies about its size."
                )
            sink.write(chunk)


__all__ = [
    "Artefact",
    "ArtefactError",
    "IntegrityError",
    "ManifestError",
    "check_files",
    "file_sha256",
    "open_artefact",
    "pack_artefact",
    "read_raw",
    "write_artefact",
]
