"""Page-aligned memory that is only resident where it was touched, and reads that go straight into it."""

import mmap
import os
from pathlib import Path
from typing import Any

import torch

from orchestrator.tensor_parallel.config import Encoding
from orchestrator.tensor_parallel.errors import ShardError
from orchestrator.tensor_parallel.lowbit import Packed, encoded_bytes

_AT_ONCE = 64 << 20


class Buffer:
    """Anonymous, page-aligned memory; given back to the system when the last view of it is gone."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self._memory = mmap.mmap(-1, max(nbytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.view = memoryview(self._memory)

    def tensor(self, offset: int, shape: tuple[int, ...]) -> Any:  # noqa: ANN401 - torch is untyped here
        """A float32 view; it keeps the memory alive."""
        count = 1
        for size in shape:
            count *= size
        if count == 0:
            return torch.empty(shape)
        return torch.frombuffer(self._memory, dtype=torch.float32, count=count, offset=offset).view(shape)

    def packed(self, offset: int, shape: tuple[int, int], encoding: Encoding, *, transposed: bool) -> Packed:
        """A packed matrix of a part (rows, width); it keeps the memory alive."""
        nbytes = encoded_bytes(encoding, shape[0] * shape[1])
        data = torch.frombuffer(self._memory, dtype=torch.uint8, count=nbytes, offset=offset)
        rows, columns = shape[::-1] if transposed else shape
        return Packed(data, rows, columns, encoding, transposed)


class WeightFile:
    """A rank's file, read by `pread` into buffers.

    Args:
        path: The file.
        drop_behind: Tell the kernel to read no further than asked (a piece's neighbours may be in memory already) and to
            forget what was read, so that page cache is not held beside the buffers.
    """

    def __init__(self, path: Path, *, drop_behind: bool) -> None:
        self._path = path
        self._drop_behind = drop_behind
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise ShardError(f"Wanted the weights of a rank, found {error} at {path}.") from error
        if drop_behind:
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_RANDOM)

    def close(self) -> None:
        """Close the file; closing twice is nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def read(self, offset: int, into: memoryview) -> None:
        """Fill `into` from `offset`.

        Raises:
            ShardError: The file ends before, or cannot be read.
        """
        done = 0
        while done < len(into):
            try:
                got = os.preadv(self._fd, [into[done : done + _AT_ONCE]], offset + done)
            except OSError as error:
                raise ShardError(f"Wanted {len(into)} B at {offset}, found {error} in {self._path}.") from error
            if got == 0:
                raise ShardError(f"Wanted {len(into)} B at {offset}, found the end of {self._path} after {done} B.")
            done += got
        if self._drop_behind:
            os.posix_fadvise(self._fd, offset, len(into), os.POSIX_FADV_DONTNEED)
