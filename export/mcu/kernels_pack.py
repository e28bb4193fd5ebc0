"""Constant tables of the C row kernels: weights in kernel order and requantisation entries (``ht_kernels.h``)."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from export.mcu.fixedpoint import multiply_by_quantized_multiplier
from export.mcu.scratch import needs_gather

RQ_GENERAL, CLAMP, GATHER = 1, 2, 4  # HT_* flags
BLOCK, GROUP = 4, 16  # output channels of a weight block; taps of a group
_FAST_ACC_LIMIT = 2**30

Int8s = npt.NDArray[np.int8]
Int32s = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Quantization:
    """How a layer's accumulators become int8.

    Attributes:
        bias: int32, shape (out,), as in the model (no zero point folded in).
        multiplier: int32, shape (out,), 0 or in [2^30, 2^31).
        shift: int32, shape (out,), exponent of two, left when positive, in [-31, 31].
        in_zero: Zero point of the input.
        clamp: Lowest and highest int8 output.
    """

    bias: Int32s
    multiplier: Int32s
    shift: Int32s
    in_zero: int
    clamp: tuple[int, int] = (-128, 127)


@dataclass(frozen=True)
class RequantEntry:
    """One ``ht_rq4``."""

    mult: tuple[int, int, int, int]
    shift: tuple[int, int, int, int]


@dataclass(frozen=True)
class PackedLayer:
    """What ``ht_conv`` or ``ht_dwconv`` points to.

    Attributes:
        weights: Bytes for a 4-byte aligned const array.
        requant: Entries for a const ``ht_rq4`` array.
        rq_step: 1 with an entry per block of four channels, 0 when one entry serves all.
        flags: HT_RQ_GENERAL, HT_CLAMP, HT_GATHER.
    """

    weights: bytes
    requant: tuple[RequantEntry, ...]
    rq_step: int
    flags: int

    @property
    def flash_bytes(self) -> int:
        """Bytes of both arrays."""
        return len(self.weights) + 20 * len(self.requant)


def pack_conv(weights: Int8s, q: Quantization) -> PackedLayer:
    """Pack CONV_2D.

    Args:
        weights: int8, shape (out, kernel height, kernel width, in).
        q: Requantisation.

    Returns:
        Tables for ``ht_conv``.
    """
    out, height, width, channels = weights.shape
    gather = needs_gather(height, channels)
    flat, q = _freeze_constant_channels(weights.reshape(out, -1), q)
    weights = flat.reshape(weights.shape)
    runs = weights.reshape(out, 1, -1) if gather else weights.reshape(out, height, width * channels)
    over_read = -(-runs.shape[2] // 4 * 4) % GROUP  # by vector loads of the last, short group
    return _pack(_conv_blocks(runs), flat, q, flags=GATHER if gather else 0, over_read=over_read)


def pack_fully_connected(weights: Int8s, q: Quantization) -> PackedLayer:
    """Pack FULLY_CONNECTED; ``weights`` is int8, shape (out, in)."""
    return pack_conv(weights.reshape(weights.shape[0], 1, 1, weights.shape[1]), q)


def pack_depthwise(weights: Int8s, q: Quantization) -> PackedLayer:
    """Pack DEPTHWISE_CONV_2D with more than one input channel; with one, use ``depthwise_as_conv``.

    Args:
        weights: int8, shape (kernel height, kernel width, out); out = input channels * multiplier.
        q: Requantisation.

    Returns:
        Tables for ``ht_dwconv``.
    """
    flat, q = _freeze_constant_channels(weights.reshape(-1, weights.shape[-1]).T, q)
    taps = flat.T
    padded = np.pad(taps, ((0, 0), (0, -taps.shape[1] % BLOCK)))
    blocks = [padded[:, c : c + BLOCK].tobytes() for c in range(0, padded.shape[1], BLOCK)]
    return _pack(blocks, flat, q, flags=0, over_read=0)


def depthwise_as_conv(weights: Int8s) -> Int8s:
    """Depthwise weights (kernel height, kernel width, out) over ONE input channel as (out, height, width, 1)."""
    return np.ascontiguousarray(np.moveaxis(weights, 2, 0)[..., np.newaxis])


def _conv_blocks(runs: Int8s) -> list[bytes]:
    """Weight bytes per block of four channels; runs has shape (out, segments, taps)."""
    out, _, taps = runs.shape
    padded = np.pad(runs, ((0, -out % BLOCK), (0, 0), (0, -taps % 4)))
    blocks = []
    for c in range(0, padded.shape[0], BLOCK):
        parts: list[bytes] = []
        for segment in range(padded.shape[1]):
            run = padded[c : c + BLOCK, segment]  # (4, taps)
            parts.extend(run[:, k : k + GROUP].tobytes() for k in range(0, run.shape[1], GROUP))
        blocks.append(b"".join(parts))
    return blocks


def _pack(blocks: list[bytes], per_channel: Int8s, q: Quantization, *, flags: int, over_read: int) -> PackedLayer:
    """Put the folded biases before the blocks and make the requantisation table; per_channel is (out, taps)."""
    folded = _folded_bias(per_channel, q).astype(np.int32)  # wraps as the kernels' sums do
    fast = bool(_is_fast(per_channel, q).all())
    if not fast:
        flags |= RQ_GENERAL
    if q.clamp != (-128, 127):
        flags |= CLAMP
    bias = np.pad(folded, (0, -folded.size % BLOCK)).astype("<i4")
    weights = b"".join(bias[4 * i : 4 * i + 4].tobytes() + block for i, block in enumerate(blocks)) + bytes(over_read)
    requant, step = _requant_entries(q, fast=fast)
    return PackedLayer(weights, requant, step, flags)


def _folded_bias(per_channel: Int8s, q: Quantization) -> npt.NDArray[np.int64]:
    return np.asarray(q.bias.astype(np.int64) - q.in_zero * per_channel.astype(np.int64).sum(axis=1))


def _is_fast(per_channel: Int8s, q: Quantization) -> npt.NDArray[np.bool_]:
    """Channels that the fast requantisation serves: no partial sum reaches 2^30, right shift in [1, 31]."""
    reach = np.abs(_folded_bias(per_channel, q)) + 128 * np.abs(per_channel.astype(np.int64)).sum(axis=1)
    return np.asarray((reach < _FAST_ACC_LIMIT) & (q.shift <= -1) & (q.shift >= -31))


def _freeze_constant_channels(per_channel: Int8s, q: Quantization) -> tuple[Int8s, Quantization]:
    """Rewrite slow channels whose output cannot change (dead filters with a huge bias): zero weights, a small bias.

    Args:
        per_channel: int8, shape (out, taps).
        q: Requantisation.

    Returns:
        Both, with the same outputs for every input.
    """
    weights = per_channel.astype(np.int64)
    low = q.bias + np.minimum(weights * (-128 - q.in_zero), weights * (127 - q.in_zero)).sum(axis=1)
    high = q.bias + np.maximum(weights * (-128 - q.in_zero), weights * (127 - q.in_zero)).sum(axis=1)
    frozen, bias, multiplier, shift = per_channel.copy(), q.bias.copy(), q.multiplier.copy(), q.shift.copy()
    for c in np.flatnonzero(~_is_fast(per_channel, q)):
        if low[c] < -(2**31) or high[c] >= 2**31 or (max(int(shift[c]), 0) and multiplier[c]):
            continue
        ends = np.array([low[c], high[c]], np.int64)
        first, last = multiply_by_quantized_multiplier(ends, int(multiplier[c]), min(int(shift[c]), 0))
        if first != last or abs(int(first)) >= 2**27:
            continue
        frozen[c], bias[c], multiplier[c], shift[c] = 0, 4 * int(first), 2**30, -1
    return frozen, Quantization(bias, multiplier, shift, q.in_zero, q.clamp)


def _requant_entries(q: Quantization, *, fast: bool) -> tuple[tuple[RequantEntry, ...], int]:
    """The ``ht_rq4`` table and its step."""
    shift = -q.shift - 1 if fast else q.shift
    uniform = bool((q.multiplier == q.multiplier[0]).all() and (shift == shift[0]).all())
    if uniform:
        mult, amount = int(q.multiplier[0]), int(shift[0])
        return (RequantEntry((mult,) * 4, (amount,) * 4),), 0
    pad = -shift.size % BLOCK
    mults = [int(v) for v in np.pad(q.multiplier, (0, pad))]
    shifts = [int(v) for v in np.pad(shift, (0, pad))]
    entries = tuple(
        RequantEntry((m[0], m[1], m[2], m[3]), (s[0], s[1], s[2], s[3]))
        for m, s in ((mults[c : c + 4], shifts[c : c + 4]) for c in range(0, len(mults), 4))
    )
    return entries, 1
