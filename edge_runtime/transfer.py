"""Receive an artefact in blocks: which are there, which are missing, and the file that they make up.

A transfer that is interrupted, by either side, goes on where it stopped. Beside the part file lies the sha256 of every
block that was written; whatever a power cut left of the two, only blocks whose content has that hash count as received.
"""

import contextlib
import hashlib
import os
import shutil
from pathlib import Path

from device_profiles.errors import EdgeError
from edge_runtime.artefact import file_sha256
from edge_runtime.blocks import Block
from edge_runtime.durable import no_room
from edge_runtime.messages import BLOCK_BYTES, DeployStart

_SPARE_BYTES = 16 << 20
_HASH_BYTES = 32
_STAT_BLOCK_BYTES = 512  # of st_blocks, whatever the file system's own are


class TransferError(EdgeError):
    """Blocks that do not make up what was announced, or no room for them."""


def block_count(size: int) -> int:
    """How many blocks a file of `size` bytes takes."""
    return -(-size // BLOCK_BYTES)


def block_length(size: int, index: int) -> int:
    """Bytes in one block of a file of `size` bytes."""
    return min(BLOCK_BYTES, size - index * BLOCK_BYTES)


def missing_blocks(have: bytes, count: int) -> list[int]:
    """Indices below `count` whose bit is not set; bit 0 of byte 0 is block 0. A short bitmap counts as zeros."""
    padded = have.ljust((count + 7) // 8, b"\0")
    return [index for index in range(count) if not padded[index // 8] >> (index % 8) & 1]


def _taken(path: Path) -> int:
    """Bytes that a file takes on the disk; its holes take none."""
    try:
        return path.stat().st_blocks * _STAT_BLOCK_BYTES
    except FileNotFoundError:
        return 0


class IncomingFile:
    """One file on its way. Only one transfer uses the folder; what an earlier one left is removed.

    Args:
        folder: For the part file and the bitmap.
        start: The announcement.

    Raises:
        TransferError: Not enough room.
    """

    def __init__(self, folder: Path, start: DeployStart) -> None:
        self.start = start
        self.count = block_count(start.size)
        folder.mkdir(parents=True, exist_ok=True)
        self._part = folder / f"{start.zip_sha256}.part"
        self._map = folder / f"{start.zip_sha256}.have"
        for path in folder.iterdir():
            if path not in (self._part, self._map):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        # What an interrupted transfer holds is not wanted again.
        free = shutil.disk_usage(folder).free + _taken(self._part) + _taken(self._map)
        if free < 2 * start.size + _SPARE_BYTES:  # the .zip and its content
            raise TransferError(
                f"Wanted {2 * start.size + _SPARE_BYTES} B of room in {folder}, found {free} B free. Make room on the disk."
            ) from no_room()
        self._have = bytearray((self.count + 7) // 8)
        if self._part.is_file() and self._map.is_file() and self._part.stat().st_size == start.size:
            self._take_over()
        else:
            for path in (self._map, self._part):  # hashes of another length of part never meet it
                path.unlink(missing_ok=True)
            with self._part.open("wb") as stream:
                stream.truncate(start.size)

    def _take_over(self) -> None:
        """Count what an earlier run received, as far as its content is what it should be."""
        with self._part.open("rb") as part, self._map.open("rb") as hashes:
            for index in range(self.count):
                noted = hashes.read(_HASH_BYTES)
                content = part.read(BLOCK_BYTES)
                if len(noted) == _HASH_BYTES and any(noted) and hashlib.sha256(content).digest() == noted:
                    self._mark(index)

    def _mark(self, index: int) -> None:
        self._have[index // 8] |= 1 << (index % 8)

    @property
    def have(self) -> bytes:
        """The bitmap."""
        return bytes(self._have)

    @property
    def complete(self) -> bool:
        """Whether no block is missing."""
        return not missing_blocks(self.have, self.count)

    def add(self, block: Block) -> bool:
        """Store a block whose hash was checked; False when it was there already.

        Raises:
            TransferError: An index or length that is not part of this file.
        """
        if block.index >= self.count or len(block.content) != block_length(self.start.size, block.index):
            raise TransferError(
                f"Wanted blocks of a file of {self.start.size} B, found block {block.index} with {len(block.content)} B."
            )
        if self._have[block.index // 8] >> (block.index % 8) & 1:
            return False
        with self._part.open("r+b") as stream:
            stream.seek(block.index * BLOCK_BYTES)
            stream.write(block.content)
        with self._map.open("r+b" if self._map.exists() else "w+b") as stream:
            stream.seek(block.index * _HASH_BYTES)
            stream.write(hashlib.sha256(block.content).digest())
        self._mark(block.index)
        return True

    def finish(self) -> Path:
        """The complete .zip, its hash checked.

        Raises:
            TransferError: Blocks are missing, or the whole differs from what was announced; then it starts over.
        """
        missing = missing_blocks(self.have, self.count)
        if missing:
            raise TransferError(f"Wanted all {self.count} blocks, found {len(missing)} missing.")
        digest = file_sha256(self._part)
        if digest != self.start.zip_sha256:
            self.discard()
            raise TransferError(
                f"Wanted sha256 {self.start.zip_sha256[:16]}.., found {digest[:16]}.. of the whole. Deploy it again."
            )
        archive = self._part.with_suffix(".zip")
        with self._part.open("rb") as stream:
            os.fsync(stream.fileno())
        self._part.rename(archive)
        self._map.unlink(missing_ok=True)
        return archive

    def discard(self) -> None:
        """Forget what was received."""
        with contextlib.suppress(FileNotFoundError):
            self._part.unlink()
        with contextlib.suppress(FileNotFoundError):
            self._map.unlink()
