"""Weights in 4 and 8 bit: how they are packed, and products with them by our C (csrc/lowbit.c) or by torch.

A matrix (rows, columns) is cut into tiles of 16 x 32 (layout: csrc/lowbit.c), each row of a tile with a scale of its own in
float16. Tiles lie row by row, or column by column where a share is a range of columns. float32 stays the exact reference.
"""

import ctypes
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import torch

from orchestrator.tensor_parallel.config import Encoding

ENCODINGS: tuple[str, ...] = get_args(Encoding)
TILE_ROWS, TILE_COLUMNS = 16, 32
_BITS = {"int8": 8, "int4": 4}
_SCALES_TRIED = (1.0, 0.95, 0.9, 0.85, 1.05)
_AT_ONCE = 1 << 22  # values that torch unpacks at a time

Tensor = Any  # torch is untyped here
Array = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]


def encoded_bytes(encoding: Encoding, values: int) -> int:
    """Bytes of so many values; whole tiles where packed."""
    if encoding == "float32":
        return 4 * values
    return values // (TILE_ROWS * TILE_COLUMNS) * _tile_bytes(encoding)


def _tile_bytes(encoding: Encoding) -> int:
    return TILE_ROWS * TILE_COLUMNS * _BITS[encoding] // 8 + 2 * TILE_ROWS


def pack(matrix: Array, encoding: Encoding, *, by_column: bool) -> Bytes:
    """Round a matrix, float32 (rows, columns) with whole tiles, to packed bytes.

    Scales are float16: a value is off by half a step at most, beside what rounding the scale itself adds. At 4 bit each
    row of a tile takes the scale of a few that leaves the smallest squared error.
    """
    rows, columns = matrix.shape
    tiles = matrix.reshape(rows // TILE_ROWS, TILE_ROWS, columns // TILE_COLUMNS, TILE_COLUMNS)
    tiles = tiles.transpose((2, 0, 1, 3) if by_column else (0, 2, 1, 3)).reshape(-1, TILE_ROWS, TILE_COLUMNS)
    scales, values = _round(np.ascontiguousarray(tiles), encoding)
    groups = values.reshape(-1, TILE_ROWS, 8, 4).swapaxes(1, 2).reshape(-1, 8, 64)  # (tiles, group, 4 row + column)
    if encoding == "int4":
        stored = (groups + 8).astype(np.uint8)
        body = stored[:, 0::2] | (stored[:, 1::2] << 4)
    else:
        body = groups.view(np.uint8)
    packed = np.concatenate([body.reshape(len(tiles), -1), scales.view(np.uint8)], axis=1)
    return np.ascontiguousarray(packed).reshape(-1)


def _round(tiles: Array, encoding: Encoding) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.int8]]:
    """Scales (tiles, 16) and values (tiles, 16, 32)."""
    place = np.abs(tiles).argmax(axis=-1)[..., None]
    extreme = np.take_along_axis(tiles, place, axis=-1)[..., 0]  # with its sign
    if encoding == "int8":
        scales = (np.abs(extreme) / 127).astype(np.float16)
        return scales, _steps(tiles, scales, -127, 127)
    best, least, chosen = None, None, None
    for factor in _SCALES_TRIED:  # the extreme becomes -8, which is one step more than the other side has
        scales = (extreme * np.float32(-factor / 8)).astype(np.float16)
        values = _steps(tiles, scales, -8, 7)
        error = np.square(tiles - values * scales.astype(np.float32)[..., None]).sum(-1)
        if best is None or least is None or chosen is None:
            best, least, chosen = values, error, scales
            continue
        better = error < least
        best[better], least[better], chosen[better] = values[better], error[better], scales[better]
    assert best is not None
    assert chosen is not None
    return chosen, best


def _steps(tiles: Array, scales: npt.NDArray[np.float16], lowest: int, highest: int) -> npt.NDArray[np.int8]:
    wide = scales.astype(np.float32)
    inverse = np.divide(1.0, wide, out=np.zeros_like(wide), where=wide != 0)
    steps: npt.NDArray[np.int8] = np.clip(np.rint(tiles * inverse[..., None]), lowest, highest).astype(np.int8)
    return steps


def unpack(packed: Bytes, shape: tuple[int, int], encoding: Encoding, *, by_column: bool) -> Array:
    """The float32 matrix (rows, columns) that packed bytes stand for."""
    rows, columns = shape
    tiles = packed.reshape(-1, _tile_bytes(encoding))
    scales = np.ascontiguousarray(tiles[:, -2 * TILE_ROWS :]).view(np.float16).astype(np.float32)
    body = tiles[:, : -2 * TILE_ROWS].reshape(len(tiles), -1, 64)
    if encoding == "int4":
        values = np.empty((len(tiles), 8, 64), np.float32)
        values[:, 0::2], values[:, 1::2] = body & 15, body >> 4
        values -= 8
    else:
        values = body.view(np.int8).astype(np.float32)
    values = values.reshape(-1, 8, TILE_ROWS, 4).swapaxes(1, 2).reshape(-1, TILE_ROWS, TILE_COLUMNS)
    values = values * scales[..., None]
    down, across = rows // TILE_ROWS, columns // TILE_COLUMNS
    if by_column:
        ordered = values.reshape(across, down, TILE_ROWS, TILE_COLUMNS).transpose(1, 2, 0, 3)
    else:
        ordered = values.reshape(down, across, TILE_ROWS, TILE_COLUMNS).swapaxes(1, 2)
    matrix: Array = ordered.reshape(rows, columns)
    return matrix


@dataclass(frozen=True)
class Packed:
    """A packed matrix W (rows, columns) somewhere in memory."""

    data: Tensor  # uint8; keeps the memory alive
    rows: int
    columns: int
    encoding: Encoding
    by_column: bool


def by_c(library: ctypes.CDLL, weights: Packed, x: Tensor) -> Tensor:
    """The product x W^T, (n, columns) -> (n, rows). Activations are rounded to 8 bit, a scale for each 32."""
    x = x.contiguous()
    count, columns = x.shape
    blocks = count * columns // TILE_COLUMNS
    bytes_ = torch.empty(count * columns, dtype=torch.int8)
    scales, sums = torch.empty(blocks), torch.empty(blocks, dtype=torch.int32)
    y = torch.empty((count, weights.rows))
    library.ht_lowbit_round(x.data_ptr(), count, columns, bytes_.data_ptr(), scales.data_ptr(), sums.data_ptr())
    shape = (ctypes.c_int64 * 3)(weights.rows, columns, count)
    library.ht_lowbit_product(
        weights.data.data_ptr(), _BITS[weights.encoding], int(weights.by_column), shape,
        bytes_.data_ptr(), scales.data_ptr(), sums.data_ptr(), y.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return y


def by_torch(weights: Packed, x: Tensor) -> Tensor:
    """The same, unpacked piece by piece to float32; activations are not rounded."""
    packed, total = weights.data.numpy(), torch.zeros((x.shape[0], weights.rows))
    unit = TILE_COLUMNS if weights.by_column else TILE_ROWS
    other = weights.rows if weights.by_column else weights.columns
    step = max(unit, _AT_ONCE // other // unit * unit)
    for first in range(0, weights.columns if weights.by_column else weights.rows, step):
        stop = min(first + step, weights.columns if weights.by_column else weights.rows)
        at, end = (encoded_bytes(weights.encoding, place * other) for place in (first, stop))
        shape = (weights.rows, stop - first) if weights.by_column else (stop - first, weights.columns)
        piece = torch.from_numpy(unpack(packed[at:end], shape, weights.encoding, by_column=weights.by_column))
        if weights.by_column:
            total += x[:, first:stop] @ piece.T
        else:
            total[:, first:stop] = x @ piece.T
    return total
