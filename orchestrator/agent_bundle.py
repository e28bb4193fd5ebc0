"""Make a bundle of the agent's own code: of the headtail that runs here, or of wheels, for one kind of machine or for any."""

import base64
import csv
import hashlib
import io
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

import device_profiles
from device_profiles.errors import EdgeError
from device_profiles.version import __version__
from edge_runtime.agent_bundle import (
    SITE,
    AgentBundle,
    AgentManifest,
    Platform,
    is_agent_manifest,
    parse_agent_manifest,
    this_platform,
)
from edge_runtime.artefact import Artefact, open_artefact, unpack_archive
from edge_runtime.durable import file_sha256
from edge_runtime.manifest import MANIFEST_NAME, FileEntry, canonical_bytes

PACKAGES = ("device_profiles", "edge_runtime")  # of headtail, what a device runs
_VERSION = re.compile(r'^__version__ = "([^"]+)"$', re.MULTILINE)
_WHEEL = re.compile(r"(?P<name>[^-]+)-(?P<version>[^-]+)(-\d[^-]*)?-(?P<python>[^-]+)-[^-]+-(?P<platform>[^-]+)\.whl\Z")
_COMPILED = (".so", ".pyd", ".dll", ".dylib")


class BundleError(EdgeError):
    """No bundle can be made of this."""


def bundle_installed(folder: Path, *, pure: bool = False) -> AgentBundle:
    """A bundle of the headtail that runs here, without its dependencies.

    Args:
        folder: Where it goes; a bundle that is there already is replaced.
        pure: Leave out what is compiled, so that it runs on any machine.

    Raises:
        BundleError: `folder` holds something else.
    """
    root = Path(device_profiles.__file__).parents[1]
    files: dict[str, bytes] = {}
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*")):
            compiled = path.suffix in _COMPILED
            if path.is_file() and path.suffix != ".pyc" and not (pure and compiled):
                files[path.relative_to(root).as_posix()] = path.read_bytes()
    compiled = any(path.endswith(_COMPILED) for path in files)
    where = this_platform() if compiled else "any"
    return write_bundle(folder, files, platform=where, python=None, distributions={"headtail": __version__})


def bundle_wheels(folder: Path, wheels: Sequence[Path]) -> AgentBundle:
    """A bundle of headtail's wheel, and of whatever else comes with it.

    Args:
        folder: Where it goes; a bundle that is there already is replaced.
        wheels: headtail's, and those of dependencies that devices lack or have in another version.

    Raises:
        BundleError: No wheel, wheels for different machines, or without headtail's.
    """
    files: dict[str, bytes] = {}
    platforms: set[Platform] = set()
    pythons: set[str] = set()
    distributions: dict[str, str] = {}
    for wheel in wheels:
        named = _WHEEL.match(wheel.name)
        if named is None:
            raise BundleError(f"Wanted wheels, found {wheel.name!r}.")
        platforms |= {_platform_of(named["platform"], wheel)} - {"any"}
        pythons |= {_python_of(named["python"])} - {""}
        name = named["name"].replace("_", "-").lower()
        distributions[name] = named["version"]
        found = _read_wheel(wheel)
        files |= {path: content for path, content in found if name != "headtail" or path.split("/")[0] in PACKAGES}
    if len(platforms) > 1 or len(pythons) > 1:
        raise BundleError(
            f"Wanted wheels for one kind of machine, found {sorted(platforms)}, Python {sorted(pythons)}."
        )
    where: Platform = next(iter(platforms), "any")
    return write_bundle(folder, files, platform=where, python=next(iter(pythons), None), distributions=distributions)


def open_any(path: Path) -> Artefact | AgentBundle:
    """An artefact, or the bundle of an agent: a folder or .zip of either.

    Raises:
        EdgeError: As `open_artefact` and `open_bundle`.
    """
    from edge_runtime.agent_bundle import MAX_BUNDLE_FILES, open_bundle

    if path.is_file() and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            agent = MANIFEST_NAME in archive.namelist() and is_agent_manifest(archive.read(MANIFEST_NAME))
        if agent:
            return open_bundle(unpack_archive(path, None, max_files=MAX_BUNDLE_FILES))
    elif (path / MANIFEST_NAME).is_file() and is_agent_manifest((path / MANIFEST_NAME).read_bytes()):
        return open_bundle(path)
    return open_artefact(path)


def write_bundle(
    folder: Path, files: dict[str, bytes], *, platform: str, python: str | None, distributions: dict[str, str]
) -> AgentBundle:
    """Write a bundle in one step.

    Args:
        folder: Where it goes; a bundle that is there already is replaced.
        files: Content by path, as they lie on Python's path.
        platform: Of what is compiled, or "any".
        python: Its version, where something is compiled for one.
        distributions: What is inside, for people.

    Raises:
        BundleError: `folder` holds something else, or headtail is not in it.
        ManifestError: A name that no device takes.
    """
    found = _VERSION.search(files.get("device_profiles/version.py", b"").decode("utf-8", "replace"))
    if found is None:
        raise BundleError("Wanted headtail with device_profiles/version.py, found none. Give its wheel too.")
    if folder.exists() and any(folder.iterdir()) and not (folder / MANIFEST_NAME).is_file():
        raise BundleError(f"Wanted an empty folder or a bundle to replace, found other files in {folder}.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as place:
        staging = Path(place, "bundle")
        entries: list[FileEntry] = []
        for path, content in sorted(files.items()):
            target = staging / SITE / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
            entries.append(FileEntry(path=f"{SITE}/{path}", sha256=file_sha256(target), size=len(content)))
        values = {"version": found[1], "platform": platform, "python": python, "distributions": distributions}
        manifest = msgspec.convert(
            {"schema": 1, "role": "agent", **values, "files": msgspec.to_builtins(entries)}, AgentManifest
        )
        data = canonical_bytes(manifest)
        manifest = parse_agent_manifest(data)
        (staging / MANIFEST_NAME).write_bytes(data)
        shutil.rmtree(folder, ignore_errors=True)
        staging.rename(folder)
    return AgentBundle(folder, manifest)


def _platform_of(tag: str, wheel: Path) -> Platform:
    if tag == "any":
        return "any"
    if "linux" in tag and tag.endswith("x86_64"):
        return "x86-64"
    if "linux" in tag and tag.endswith("aarch64"):
        return "aarch64"
    raise BundleError(f"Wanted a wheel for Linux on x86-64 or aarch64, or for any machine, found {wheel.name}.")


def _python_of(tag: str) -> str:
    """cp311 needs Python 3.11; py3 and the like need none in particular."""
    return f"3.{tag.removeprefix('cp3')}" if re.match(r"cp3\d+\Z", tag) else ""


def _read_wheel(wheel: Path) -> Iterator[tuple[str, bytes]]:
    """Where each file of a wheel goes, and its content, compared with the wheel's RECORD."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if not name.endswith("/")]
            record = next((name for name in names if re.match(r"[^/]+\.dist-info/RECORD\Z", name)), None)
            if record is None:
                raise BundleError(f"Wanted a wheel with a RECORD, found none in {wheel.name}.")
            listed = {row[0]: row[1] for row in csv.reader(io.StringIO(archive.read(record).decode())) if row}
            for name in names:
                content = archive.read(name)
                if name != record and listed.get(name) != _record_hash(content):
                    raise BundleError(f"Wanted {name} as the RECORD of {wheel.name} says, found other content.")
                parts = name.split("/")
                if not parts[0].endswith(".data"):
                    yield name, content
                elif parts[1] in ("purelib", "platlib"):
                    yield "/".join(parts[2:]), content
    except (OSError, zipfile.BadZipFile, UnicodeDecodeError) as error:
        raise BundleError(f"Wanted a wheel, found: {error}, in {wheel}.") from error


def _record_hash(content: bytes) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
