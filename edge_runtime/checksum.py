"""CRC32 as zlib computes it, by libdeflate's vector instructions where that library is installed: same result, a few us.

Debian installs `libdeflate0` together with its picture libraries. Nothing depends on it.
"""

import ctypes
import zlib
from collections.abc import Callable

import numpy as np

_SONAME = "libdeflate.so.0"
_WORTH_BYTES = 4096  # below it, the call costs more than it saves
_MOST_BYTES = 1 << 20  # above it, zlib lets other threads run meanwhile; this call does not

Crc = Callable[[bytes | memoryview, int], int]


def load_crc32(soname: str = _SONAME) -> Crc:
    """The fastest CRC32 here: called with data and the CRC of what came before (0 at first)."""
    try:
        # PyDLL keeps the interpreter's lock: giving it up for some microseconds costs more.
        function = ctypes.PyDLL(soname).libdeflate_crc32
    except (OSError, AttributeError):
        return zlib.crc32
    function.argtypes = (ctypes.c_uint32, ctypes.c_void_p, ctypes.c_size_t)
    function.restype = ctypes.c_uint32

    def crc32(data: bytes | memoryview, value: int = 0) -> int:
        size = len(data)
        if not _WORTH_BYTES <= size <= _MOST_BYTES:
            return zlib.crc32(data, value)
        address = np.frombuffer(data, np.uint8).__array_interface__["data"][0]
        result: int = function(value, address, size)
        return result

    probe = bytes(range(256)) * 32
    return crc32 if crc32(probe, 7) == zlib.crc32(probe, 7) else zlib.crc32


crc32: Crc = load_crc32()
