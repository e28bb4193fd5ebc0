"""The agent's own code as a signed bundle: what its manifest says, and how a bundle is opened and checked.

A bundle is a folder (or its .zip) like an artefact: manifest.json, manifest.sig, and under `site/` what a device puts first
on Python's path. Its id is the sha256 of the manifest, which lists every file with size and sha256.
"""

import hashlib
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from edge_runtime.durable import file_sha256
from edge_runtime.manifest import (
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    FileEntry,
    ManifestError,
    canonical_bytes,
    check_file_entry,
)

SITE = "site"
LINE = "headtail agent"  # what versions of it are counted for, unless the signer says otherwise
MAX_BUNDLE_FILES = 6000
_MAX_PARTS = 12
Platform = Literal["any", "x86-64", "aarch64"]
_MACHINES: dict[str, Platform] = {"x86_64": "x86-64", "amd64": "x86-64", "aarch64": "aarch64", "arm64": "aarch64"}


class AgentManifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is in a bundle, and where it runs."""

    schema: Literal[1] = 1
    role: Literal["agent"] = "agent"
    version: Annotated[str, msgspec.Meta(min_length=1, max_length=100)]  # as the agent says it itself
    platform: Platform  # "any": nothing in it is compiled
    python: Annotated[str, msgspec.Meta(pattern=r"^3\.\d{1,2}$")] | None = None  # needed by what is compiled
    distributions: dict[str, str]  # name -> version
    files: tuple[FileEntry, ...] = ()

    @property
    def files_by_path(self) -> dict[str, FileEntry]:
        """The listed files, by relative path."""
        return {entry.path: entry for entry in self.files}


@dataclass(frozen=True)
class AgentBundle:
    """A checked bundle on disk."""

    folder: Path
    manifest: AgentManifest

    @property
    def id(self) -> str:
        """sha256 of the canonical manifest, 64 hex digits."""
        return hashlib.sha256(canonical_bytes(self.manifest)).hexdigest()


def is_agent_manifest(data: bytes) -> bool:
    """Whether these bytes are the manifest of an agent, rather than of a model."""
    try:
        return msgspec.json.decode(data, type=_Role).role == "agent"
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False


def parse_agent_manifest(data: bytes) -> AgentManifest:
    """Decode and check a bundle's manifest.

    Raises:
        ManifestError: Too large, not canonical JSON, an unknown field, or a value out of range.
    """
    if len(data) > MAX_MANIFEST_BYTES:
        raise ManifestError(f"Wanted a manifest of at most {MAX_MANIFEST_BYTES} B, found {len(data)} B.")
    try:
        manifest = msgspec.json.decode(data, type=AgentManifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ManifestError(
            f"Wanted the manifest of an agent, found: {error}. Make it with `headtail agent-bundle`."
        ) from error
    if not 1 <= len(manifest.files) <= MAX_BUNDLE_FILES:
        raise ManifestError(f"Wanted 1 to {MAX_BUNDLE_FILES} files of an agent, found {len(manifest.files)}.")
    for entry in manifest.files:
        check_file_entry(entry, max_parts=_MAX_PARTS)
        if not entry.path.startswith(SITE + "/"):
            raise ManifestError(f"Wanted files below {SITE}/, found {entry.path!r} in the manifest of an agent.")
    if len(manifest.files_by_path) != len(manifest.files):
        raise ManifestError("Wanted every file listed once, found a path twice in the manifest of an agent.")
    if f"{SITE}/edge_runtime/cli.py" not in manifest.files_by_path:
        raise ManifestError("Wanted edge_runtime/cli.py in an agent, found none. Is headtail's wheel in the bundle?")
    if canonical_bytes(manifest) != data:
        raise ManifestError("Wanted canonical JSON (sorted keys, no spaces), found other bytes: edited by hand.")
    return manifest


def open_bundle(folder: Path) -> AgentBundle:
    """Open a bundle's folder and compare every file with the manifest.

    Raises:
        ArtefactError: No bundle there.
        ManifestError: The manifest is not valid.
        IntegrityError: A file is missing, extra, edited or truncated.
    """
    from edge_runtime.artefact import ArtefactError, check_files, read_small  # costs numpy: the launcher does without

    data = read_small(folder, MANIFEST_NAME)
    if data is None:
        raise ArtefactError(f"Wanted {MANIFEST_NAME}, found none in {folder}. Make it with `headtail agent-bundle`.")
    bundle = AgentBundle(folder, parse_agent_manifest(data))
    check_files(folder, bundle.manifest, max_files=MAX_BUNDLE_FILES)
    return bundle


def find_damage(folder: Path, bundle: str) -> str | None:
    """What is wrong with the stored bundle of this id: another manifest, or a file that is not as listed; null when all is well.

    What Python has compiled lies beside its sources and is not listed.
    """
    try:
        data = (folder / MANIFEST_NAME).read_bytes()
        if hashlib.sha256(data).hexdigest() != bundle:
            return f"{folder / MANIFEST_NAME} is not that of {bundle[:16]}.."
        for entry in parse_agent_manifest(data).files:
            if file_sha256(folder / entry.path) != entry.sha256:
                return f"{folder / entry.path} was changed"
    except (OSError, ManifestError) as error:
        return str(error)
    return None


def misfit(manifest: AgentManifest) -> str | None:
    """Why a bundle cannot run on this machine; null when it may."""
    here, python = this_platform(), f"{sys.version_info.major}.{sys.version_info.minor}"
    if manifest.platform not in ("any", here):
        return f"Wanted an agent for {here}, found one for {manifest.platform}."
    if manifest.python not in (None, python):
        return f"Wanted an agent for Python {python}, found one for {manifest.python}."
    return None


def this_platform() -> str:
    """The machine's architecture as manifests name it."""
    machine = platform.machine().lower()
    return _MACHINES.get(machine, machine)


class _Role(msgspec.Struct):
    role: str = ""
