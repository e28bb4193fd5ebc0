"""Files that are whole whatever happens: a power cut leaves the old content or the new one."""

import os
from pathlib import Path


def write_durably(path: Path, content: bytes) -> None:
    """Write a file in one step; it is on the disk when this returns.

    Raises:
        OSError: It cannot be written; the old content is still there.
    """
    partial = path.with_name(path.name + ".part")
    with partial.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Bring a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
