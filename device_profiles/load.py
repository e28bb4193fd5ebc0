"""Read and list board files: those that ship, and those in the user's configuration folder."""

import difflib
import os
import platform
import re
from pathlib import Path

import msgspec

from device_profiles.errors import BoardError
from device_profiles.schema import DeviceProfile

_SHIPPED = Path(__file__).parent / "data"
_MAX_BYTES = 1 << 16
_ID = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}\Z")
_GENERIC = {"x86_64": "linux-x86-64", "AMD64": "linux-x86-64", "aarch64": "linux-aarch64", "arm64": "linux-aarch64"}


def user_folder() -> Path:
    """Where users put board files of their own: `$XDG_CONFIG_HOME/headtail/boards`."""
    base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "headtail" / "boards"


def list_boards() -> list[DeviceProfile]:
    """Every known board, sorted by id; a user's file replaces a shipped one of the same id.

    Raises:
        BoardError: A file is not valid; the message names it.
    """
    paths = {path.stem: path for folder in (_SHIPPED, user_folder()) for path in sorted(folder.glob("*.json"))}
    return [load_board_file(paths[name]) for name in sorted(paths)]


def load_board(board: str) -> DeviceProfile:
    """The board of that id; "this" is the machine at hand.

    Raises:
        BoardError: Not known; the message names the nearest ids.
    """
    name = this_board_id() if board == "this" else board
    if _ID.match(name):
        for folder in (user_folder(), _SHIPPED):
            path = folder / f"{name}.json"
            if path.is_file():
                return load_board_file(path)
    known = sorted({path.stem for folder in (_SHIPPED, user_folder()) for path in folder.glob("*.json")})
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    hint = f" Did you mean {', '.join(near)}?" if near else ""
    raise BoardError(f"Wanted a known board, found {name!r}.{hint} `headtail devices` lists them all.")


def load_board_file(path: Path) -> DeviceProfile:
    """Read one board file.

    Raises:
        BoardError: Too large, not JSON, an unknown field, or an id that is not the file's name.
    """
    data = path.read_bytes()
    if len(data) > _MAX_BYTES:
        raise BoardError(f"Wanted a board file of at most {_MAX_BYTES} B, found {len(data)} B in {path}.")
    try:
        profile = msgspec.json.decode(data, type=DeviceProfile)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BoardError(
            f"Wanted the fields of a board, found: {error}, in {path}. `docs/devices.md` lists them."
        ) from error
    if profile.id != path.stem or not _ID.match(profile.id):
        raise BoardError(
            f"Wanted id {path.stem!r} (the file's name; lower case, digits, dots, dashes), found {profile.id!r} in {path}."
        )
    unknown = sorted(set(profile.sources) - set(profile.__struct_fields__))
    if unknown:
        raise BoardError(f"Wanted sources of known fields, found {unknown} in {path}.")
    return profile


def this_board_id(machine: str | None = None) -> str:
    """The generic board of the machine at hand.

    Raises:
        BoardError: Neither x86-64 nor aarch64.
    """
    machine = platform.machine() if machine is None else machine
    if machine not in _GENERIC:
        raise BoardError(
            f"Wanted an x86-64 or aarch64 machine, found {machine!r}. A 64-bit operating system is required."
        )
    return _GENERIC[machine]
