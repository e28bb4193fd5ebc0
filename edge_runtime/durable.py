"""Files that are whole whatever happens: a power cut leaves the old content or the new one."""

import contextlib
import ctypes
import errno
import hashlib
import os
import shutil
from pathlib import Path

_CHUNK_BYTES = 1 << 20
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


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


def lacks_room(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, is a disk without room: it says nothing about what was to be written."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__
    return False


def no_room() -> OSError:
    """The cause of an error about room that was looked for before anything was written."""
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def sync(path: Path) -> None:
    """Bring a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Bring a folder and everything in it to the disk."""
    for root, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync(Path(root, name))
        sync(Path(root))


def replace_folder(staging: Path, folder: Path) -> None:
    """Put a complete folder in the place of another on the same disk; of two processes that do so at once, the later wins.

    Where Linux and the file system can exchange two names there is a whole folder at every moment. Elsewhere the old one is moved
    away first; a crash right then leaves it as `.NAME.old` beside.
    """
    while True:
        try:
            staging.rename(folder)  # over nothing, or an empty folder
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        if _exchange(staging, folder):
            shutil.rmtree(staging, ignore_errors=True)
            return
        old = staging.with_name(staging.name + ".old")
        with contextlib.suppress(FileNotFoundError):  # the other one has just moved it
            folder.rename(old)
            shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; false where that cannot be done.

    Source: renameat2(2), Linux 3.15, glibc 2.28.
    """
    try:
        function = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        return False
    function.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    done: int = function(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    return done == 0


def file_sha256(path: Path) -> str:
    """sha256 of a file, read in pieces of 1 MiB; 64 hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
