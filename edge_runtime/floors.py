"""The oldest versions that a device still takes, kept a second time: a damaged pointer file opens no way back to older ones.

The pointer file is the truth as long as it can be read. The copy is brought in line before the pointer file is switched, so that
it is never behind; it counts alone when that file is damaged or gone.
"""

import logging
from pathlib import Path

import msgspec

from edge_runtime.durable import write_durably

log = logging.getLogger(__name__)
_MAX_BYTES = 64 << 10


def keep_floors(pointer: Path, floors: dict[str, int]) -> None:
    """Have a copy of a pointer file's floors on the disk.

    Raises:
        OSError: It cannot be written; the one before is still there.
    """
    if floors != kept_floors(pointer):
        write_durably(_copy(pointer), msgspec.json.encode(floors, order="sorted"))


def kept_floors(pointer: Path) -> dict[str, int]:
    """The copy of a pointer file's floors; none where it cannot be read either."""
    path = _copy(pointer)
    try:
        with path.open("rb") as stream:
            return msgspec.json.decode(stream.read(_MAX_BYTES), type=dict[str, int])
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        log.error("Wanted the floors of this device's versions, found: %s, in %s.", error, path)
        return {}


def _copy(pointer: Path) -> Path:
    return pointer.with_name(f"{pointer.stem}.floors.json")
