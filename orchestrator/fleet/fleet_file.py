"""Where a fleet lives and how commands find it: the file that `headtail fleet up` leaves in its folder while it runs."""

import os
from pathlib import Path

import msgspec

from orchestrator.fleet.errors import StoreError

FLEET_FILE = "fleet.json"
DEFAULT_BROKER = "mqtt://127.0.0.1:1883"


class FleetFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a running fleet is: commands read it."""

    store: str
    broker: str
    pid: int
    ports: dict[str, int]


def default_folder() -> Path:
    """Where a fleet lives when nothing else is said: /var/lib/headtail/fleet for root, else the user's own state folder."""
    if os.geteuid() == 0:
        return Path("/var/lib/headtail/fleet")
    return Path(os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state"), "headtail", "fleet")


def read_fleet_file(folder: Path | None) -> FleetFile | None:
    """What `headtail fleet up` wrote into its folder; null when there is none."""
    path = (folder or default_folder()) / FLEET_FILE
    if not path.is_file():
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=FleetFile)
    except msgspec.DecodeError as error:
        raise StoreError(f"Wanted the file of a fleet, found: {error}, in {path}. Remove it.") from error


def find_broker(folder: Path | None) -> str:
    """URL of the broker of the fleet in this folder; the usual one where none runs."""
    found = read_fleet_file(folder)
    return DEFAULT_BROKER if found is None else found.broker


def find_store(folder: Path | None) -> str:
    """URL of the database of a fleet in this folder.

    Raises:
        StoreError: No fleet was started there.
    """
    found = read_fleet_file(folder)
    if found is None:
        place = folder or default_folder()
        raise StoreError(f"Wanted a fleet in {place}, found none. Start it: headtail fleet up --folder {place}")
    return found.store
