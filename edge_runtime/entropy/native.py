"""The C coder through ctypes, where it was built; importing this never fails (docs/adr/0006-native-code.md)."""

import ctypes
import os
from functools import lru_cache
from pathlib import Path

import numpy as np

from edge_runtime.entropy.baked import U8, Baked, bake
from edge_runtime.entropy.errors import (
    EntropyCorruptError,
    EntropyError,
    EntropyShapeError,
    EntropyTrailingError,
    EntropyTruncatedError,
)
from edge_runtime.entropy.reference import Layout
from edge_runtime.entropy.tables import TableSet

LIBRARY = Path(__file__).parent.parent / "csrc" / "libht_entropy.so"
VERSION = 1

_ERRORS: dict[int, type[EntropyError]] = {
    2: EntropyTruncatedError,
    3: EntropyTrailingError,
    4: EntropyCorruptError,
    5: EntropyShapeError,
}


class _Tables(ctypes.Structure):
    _fields_ = (
        ("entries", ctypes.c_void_p),
        ("reciprocals", ctypes.c_void_p),
        ("costs", ctypes.c_void_p),
        ("slots", ctypes.c_void_p),
        ("offset", ctypes.c_void_p),
        ("low", ctypes.c_void_p),
        ("count", ctypes.c_void_p),
        ("tables", ctypes.c_uint16),
        ("block", ctypes.c_uint16),
        ("variants", ctypes.c_uint8),
    )


class _Layer(ctypes.Structure):
    _fields_ = (
        ("base", ctypes.c_char_p),
        ("channels", ctypes.c_uint32),
        ("positions", ctypes.c_uint32),
        ("channel_step", ctypes.c_uint32),
        ("position_step", ctypes.c_uint32),
        ("flip", ctypes.c_uint8),
    )


class NativeCoder:
    """Codes layers with the shared library at `path`.

    Raises:
        OSError: No library there that this machine can load, or one of another version.
    """

    def __init__(self, path: Path = LIBRARY) -> None:
        library = ctypes.CDLL(str(path))
        try:
            found = library.ht_entropy_version()
        except AttributeError as error:
            raise OSError(f"Wanted an entropy coder, found another library at {path}.") from error
        if found != VERSION:
            raise OSError(f"Wanted an entropy coder of version {VERSION}, found {found} at {path}.")
        size = ctypes.POINTER(ctypes.c_size_t)
        pointer = ctypes.c_void_p
        self._encode = library.ht_entropy_encode
        self._encode.argtypes = (pointer, pointer, pointer, pointer, pointer, ctypes.c_size_t, size)
        self._decode = library.ht_entropy_decode
        self._decode.argtypes = (pointer, pointer, pointer, ctypes.c_size_t, pointer, pointer)

    def encode(self, tables: TableSet, layout: Layout, codes: U8) -> bytes:
        """As `reference.encode`."""
        codes = np.ascontiguousarray(codes, np.uint8)
        if codes.shape != (len(layout.base), layout.positions):
            raise EntropyShapeError(f"Wanted codes of {(len(layout.base), layout.positions)}, found {codes.shape}.")
        out = np.empty(layout.symbols + 1, np.uint8)
        size = ctypes.c_size_t(0)
        scratch = np.empty(len(layout.base) * layout.blocks + 1, np.uint8)
        status = self._encode(
            ctypes.byref(_c_tables(tables)[0]),
            ctypes.byref(_c_layer(layout)),
            codes.ctypes.data,
            scratch.ctypes.data,
            out.ctypes.data,
            out.size,
            ctypes.byref(size),
        )
        _check(status, layout)
        return out[out.size - size.value :].tobytes()

    def decode(self, tables: TableSet, layout: Layout, data: bytes | memoryview) -> U8:
        """As `reference.decode`."""
        view = np.frombuffer(data, np.uint8) if len(data) else np.empty(0, np.uint8)
        scratch = np.empty(len(layout.base) * layout.blocks + 1, np.uint8)
        codes = np.empty((len(layout.base), layout.positions), np.uint8)
        status = self._decode(
            ctypes.byref(_c_tables(tables)[0]),
            ctypes.byref(_c_layer(layout)),
            view.ctypes.data,
            view.size,
            scratch.ctypes.data,
            codes.ctypes.data,
        )
        _check(status, layout)
        return codes


@lru_cache(maxsize=1)
def built_coder() -> NativeCoder | None:
    """The coder that was built with the package, or None: not built, not for this machine, or HEADTAIL_NO_C is set."""
    if os.environ.get("HEADTAIL_NO_C"):
        return None
    try:
        return NativeCoder()
    except OSError:
        return None


@lru_cache(maxsize=16)
def _c_tables(tables: TableSet) -> tuple[_Tables, tuple[object, ...]]:
    """The C view of a set, and the arrays that it points to."""
    baked: Baked = bake(tables)
    arrays = (
        np.ascontiguousarray(baked.entry),
        baked.reciprocal,
        baked.cost,
        baked.slot,
        baked.offset,
        baked.low,
        baked.count,
    )
    pointers = [array.ctypes.data for array in arrays]
    return _Tables(*pointers, len(tables.tables), tables.block, tables.variants), arrays


def _c_layer(layout: Layout) -> _Layer:
    return _Layer(bytes(layout.base), len(layout.base), layout.positions, layout.positions, 1, 0)


def _check(status: int, layout: Layout) -> None:
    if status:
        raise _ERRORS.get(status, EntropyError)(
            f"Wanted one layer of {len(layout.base)} channels of {layout.positions} positions, found bytes that do not "
            f"decode to it (status {status}): truncated, damaged, or coded with other tables."
        )
