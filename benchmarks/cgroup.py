"""Limits that the kernel enforces on programs of a benchmark: memory, and the rate of reading from storage (cgroup v1)."""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from device_profiles.errors import EdgeError

_MEMORY, _BLKIO = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup/blkio")


class CgroupError(EdgeError):
    """A control group cannot be made."""


def unavailable() -> str | None:
    """Why nothing can be limited here; null when it can."""
    for root, file in ((_MEMORY, "memory.limit_in_bytes"), (_BLKIO, "blkio.throttle.read_bps_device")):
        if not (root / file).exists() and root is _MEMORY:
            return f"there is no {root / file} (cgroup v1)"
        if not os.access(root, os.W_OK):
            return f"{root} cannot be written"
    return None


class Cgroup:
    """One group; programs started with its `command` are in it. Leave it after they have ended.

    Args:
        name: Distinguishes groups of this process.
        memory_bytes: Hard limit: whoever needs more is killed.
        read_mb_per_s: Of the storage that holds `folder`.
        folder: Where the files to be read lie.
    """

    def __init__(
        self, name: str, *, memory_bytes: int, read_mb_per_s: float | None = None, folder: Path | None = None
    ) -> None:
        leaf = f"headtail-{os.getpid()}-{name}"
        self._memory = _MEMORY / leaf
        self._folders = [self._memory]
        try:
            self._memory.mkdir()
            (self._memory / "memory.limit_in_bytes").write_text(str(memory_bytes))
            if read_mb_per_s is not None and folder is not None:
                throttled = _BLKIO / leaf
                throttled.mkdir()
                self._folders.append(throttled)
                rule = f"{_device(folder)} {int(read_mb_per_s * 1e6)}"
                (throttled / "blkio.throttle.read_bps_device").write_text(rule)
        except OSError as error:
            self.close()
            raise CgroupError(f"Wanted a control group {leaf}, found {error}.") from error

    def command(self, arguments: Sequence[str | Path]) -> list[str]:
        """The command line that runs a program in the group."""
        joins = "; ".join(f'echo $$ > "{folder}/cgroup.procs"' for folder in self._folders)
        return ["sh", "-c", f'{joins}; exec "$@"', "sh", *map(str, arguments)]

    @property
    def peak_bytes(self) -> int:
        """The most that was charged at once, page cache that the group read included."""
        return int((self._memory / "memory.max_usage_in_bytes").read_text())

    @property
    def killed(self) -> bool:
        """Whether the limit ended a program."""
        text = (self._memory / "memory.oom_control").read_text()
        return any(line.split() == ["oom_kill", "0"] for line in text.splitlines()) is False

    def close(self) -> None:
        """Remove it."""
        for folder in self._folders:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _device(folder: Path) -> str:
    """Major and minor of the whole disk: throttling knows no partitions, and works for unpartitioned disks as they are."""
    number = folder.stat().st_dev
    return f"{os.major(number)}:{os.minor(number)}"


def evict(folder: Path) -> None:
    """Tell the kernel to forget the cached pages of every file below a folder."""
    for file in folder.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.fdatasync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)
