"""Tensors to layers and back with one table set; plugs into the wire frame as codec 1."""

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edge_runtime.entropy import reference
from edge_runtime.entropy.baked import U8, bake
from edge_runtime.entropy.errors import EntropyShapeError
from edge_runtime.entropy.native import NativeCoder, built_coder
from edge_runtime.entropy.reference import Layout
from edge_runtime.entropy.tables import LayerPlan, TableSet, TensorPlan

MAX_SYMBOLS = (1 << 31) - 1
_FLIP = {"int8": np.uint8(0x80), "uint8": np.uint8(0)}
_FLIP_OF_KIND = {np.dtype(name).char: flip for name, flip in _FLIP.items()}  # a dtype's name is made anew on every look
_NAME_OF_KIND = {np.dtype(name).char: name for name in _FLIP}


class Head(Protocol):
    """dtype and full shape, batch 1 first, of one tensor; `wire.TensorHead` is one."""

    @property
    def dtype(self) -> str:
        """A NumPy dtype name."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Batch 1 first."""


class EntropyCodec:
    """Codec 1 of the wire frame for one table set. Uses C where it was built, else NumPy: the same bytes."""

    def __init__(self, tables: TableSet, *, coder: NativeCoder | None = None, use_c: bool = True) -> None:
        self.tables = tables
        self._coder = coder or (built_coder() if use_c else None)

    @property
    def table_id(self) -> bytes:
        """The 4 bytes for the frame's table-set field."""
        return self.tables.id

    @property
    def progressive(self) -> bool:
        """Whether the first layers alone are of use: there are several, of one tensor."""
        return len(self.tables.tensors) == 1 < len(self.tables.layers)

    def encode(self, arrays: Sequence[npt.NDArray[np.generic]]) -> list[bytes | memoryview]:
        """One layer for each layer of the plan, the most important first.

        Args:
            arrays: int8 or uint8, shape (1, channels, ...) or (1, ..., channels) as the plan says.

        Raises:
            EntropyShapeError: Tensors that do not belong to the table set.
        """
        self._check_count(len(arrays))
        layers: list[bytes | memoryview] = []
        for layer in self.tables.layers:
            plan, array = self.tables.tensors[layer.tensor], arrays[layer.tensor]
            self._check(plan, _NAME_OF_KIND.get(array.dtype.char) or array.dtype.name, array.shape)
            codes = _to_codes(array, plan)[layer.start : layer.stop]
            layers.append(self._encode(self._layout(plan, layer, codes.shape[1]), codes))
        return layers

    def decode(self, heads: Sequence[Head], layers: Sequence[bytes | memoryview]) -> list[npt.NDArray[np.generic]]:
        """One array for each head; channels of layers that are not there hold the plan's fill value.

        Allocates the tensors that the heads announce and a copy of one: bound these first.

        Raises:
            EntropyShapeError: Heads or a number of layers that do not belong to the table set.
            EntropyError: A layer that is truncated, too long or damaged.
        """
        self._check_count(len(heads))
        if not 1 <= len(layers) <= len(self.tables.layers):
            raise EntropyShapeError(f"Wanted 1 to {len(self.tables.layers)} layers, found {len(layers)}.")
        codes = []
        for plan, head in zip(self.tables.tensors, heads, strict=True):
            self._check(plan, head.dtype, head.shape)
            codes.append(np.full((plan.channels, math.prod(head.shape) // plan.channels), plan.fill, np.uint8))
        for layer, data in zip(self.tables.layers, layers, strict=False):
            layout = self._layout(self.tables.tensors[layer.tensor], layer, codes[layer.tensor].shape[1])
            codes[layer.tensor][layer.start : layer.stop] = self._decode(layout, data)
        triples = zip(codes, self.tables.tensors, heads, strict=True)
        return [_from_codes(found, plan, head) for found, plan, head in triples]

    def _encode(self, layout: Layout, codes: U8) -> bytes:
        if self._coder is None:
            return reference.encode(bake(self.tables), layout, np.ascontiguousarray(codes))
        return self._coder.encode(self.tables, layout, codes)

    def _decode(self, layout: Layout, data: bytes | memoryview) -> U8:
        if self._coder is None:
            return reference.decode(bake(self.tables), layout, data)
        return self._coder.decode(self.tables, layout, data)

    def _layout(self, plan: TensorPlan, layer: LayerPlan, positions: int) -> Layout:
        return Layout(plan.base[layer.start : layer.stop], positions, self.tables.variants, self.tables.block)

    def _check_count(self, found: int) -> None:
        if found != len(self.tables.tensors):
            raise EntropyShapeError(f"Wanted {len(self.tables.tensors)} tensors for this table set, found {found}.")

    def _check(self, plan: TensorPlan, dtype: str, shape: tuple[int, ...]) -> None:
        axis = -1 if plan.channel_axis else 1
        if (
            dtype not in _FLIP
            or len(shape) < 2
            or shape[0] != 1
            or shape[axis] != plan.channels
            or not 0 < math.prod(shape) <= MAX_SYMBOLS
        ):
            raise EntropyShapeError(
                f"Wanted int8 or uint8 with batch 1 and {plan.channels} channels on axis {axis}, found {dtype} {shape}. "
                "Use the table set of this cut."
            )


def encode_layers(latents: Sequence[npt.NDArray[np.generic]], tables: TableSet) -> list[bytes | memoryview]:
    """Layers of `latents`, see `EntropyCodec.encode`."""
    return EntropyCodec(tables).encode(latents)


def decode_layers(
    heads: Sequence[Head], layers: Sequence[bytes | memoryview], tables: TableSet
) -> list[npt.NDArray[np.generic]]:
    """Tensors of all or the first `layers`, see `EntropyCodec.decode`."""
    return EntropyCodec(tables).decode(heads, layers)


def to_codes(array: npt.NDArray[np.generic], *, channel_axis: int = 0) -> U8:
    """(channels, positions) codes of an int8 or uint8 tensor with batch 1, as tables count them.

    Raises:
        EntropyShapeError: Another dtype or no batch of 1.
    """
    flip = _FLIP_OF_KIND.get(array.dtype.char)
    if flip is None or array.ndim < 2 or array.shape[0] != 1:
        raise EntropyShapeError(f"Wanted int8 or uint8 with batch 1, found {array.dtype} {array.shape}.")
    flat = array[0].reshape(-1, array.shape[-1]).T if channel_axis else array[0].reshape(array.shape[1], -1)
    codes: U8 = flat.view(np.uint8) ^ flip
    return codes


def _to_codes(array: npt.NDArray[np.generic], plan: TensorPlan) -> U8:
    return to_codes(array, channel_axis=plan.channel_axis)


def _from_codes(codes: U8, plan: TensorPlan, head: Head) -> npt.NDArray[np.generic]:
    values = codes ^ _FLIP[head.dtype]
    flat = values.T if plan.channel_axis else values
    array: npt.NDArray[np.generic] = np.ascontiguousarray(flat).view(head.dtype).reshape(head.shape)
    return array
