"""Build tables from latents: exact normalisation, range choice, clusters of blocks. Runs once, before export."""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge_runtime.entropy.baked import COST_UNIT, PRECISION, RAW_BITS, symbol_cost
from edge_runtime.entropy.codec import to_codes
from edge_runtime.entropy.errors import TableError
from edge_runtime.entropy.tables import MAX_COUNT, SCALE, LayerPlan, Table, TableSet, TensorPlan

_ROUNDS = 8  # of clustering; it rarely moves after five

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class CountOptions:
    """How latents become tables.

    Attributes:
        channel_axis: 0 for (1, channels, ...), 1 for (1, ..., channels).
        layers: Channels at which a layer ends, rising, the last one all of them; empty for a single layer.
        variants: Tables that a block may choose from, shared by all channels; 1 gives each channel a table of its own.
        block: Consecutive positions that share an index, a multiple of 32; 0 without variants.
        fill: Value that stands in for channels that did not arrive: the tensor's zero point.
    """

    channel_axis: int = 0
    layers: tuple[int, ...] = ()
    variants: int = 1
    block: int = 0
    fill: int = 0


def count_tables(symbols: Sequence[npt.NDArray[np.generic]], options: CountOptions | None = None) -> TableSet:
    """The table set of one tensor, counted on calibration latents.

    Args:
        symbols: int8 or uint8 latents of one shape, batch 1 each.
        options: Layers, blocks, layout.

    Raises:
        TableError: No latents, or options that make no valid set.
        EntropyShapeError: Another dtype or no batch of 1.
    """
    options = options or CountOptions()
    if not symbols:
        raise TableError("Wanted at least one latent tensor to count, found none. Run the head on calibration data.")
    codes = [to_codes(array, channel_axis=options.channel_axis) for array in symbols]
    channels = codes[0].shape[0]
    flip = 0x80 if symbols[0].dtype == np.int8 else 0
    fill = (options.fill & 0xFF) ^ flip
    stops = options.layers or (channels,)
    layers = tuple(LayerPlan(0, start, stop) for start, stop in zip((0, *stops), stops, strict=False))
    if options.variants == 1:
        tables, base = _channel_tables(codes)
        return TableSet((TensorPlan(base, options.channel_axis, fill),), layers, tables)
    tables = cluster_tables(_block_histograms(codes, options.block), options.variants)
    plan = TensorPlan((0,) * channels, options.channel_axis, fill)
    return TableSet((plan,), layers, tables, options.variants, options.block)


def join_tables(sets: Sequence[TableSet]) -> TableSet:
    """One set for several tensors without block variants: their layers one after another.

    Raises:
        TableError: Sets with variants, or too many tables, layers or tensors.
    """
    tensors: list[TensorPlan] = []
    layers: list[LayerPlan] = []
    tables: list[Table] = []
    for part in sets:
        if part.variants != 1:
            raise TableError(f"Wanted sets without block variants to join, found {part.variants} variants.")
        for tensor in part.tensors:
            shifted = tuple(base + len(tables) for base in tensor.base)
            tensors.append(TensorPlan(shifted, tensor.channel_axis, tensor.fill))
        first = len(tensors) - len(part.tensors)
        layers += [LayerPlan(first + layer.tensor, layer.start, layer.stop) for layer in part.layers]
        tables += part.tables
    return TableSet(tuple(tensors), tuple(layers), tuple(tables))


def normalise(counts: Sequence[int]) -> tuple[int, ...]:
    """Frequencies of at least 1 that sum to 4096 and minimise the total code length of `counts`.

    Exact: the gain of one more slot, count * log2((f + 1) / f), falls with f, so giving each slot to the largest gain
    is optimal (a separable concave problem).
    """
    if not 1 <= len(counts) <= SCALE or min(counts) < 0:
        raise TableError(f"Wanted 1 to {SCALE} counts of at least 0, found {len(counts)}.")
    frequencies = [1] * len(counts)
    if not any(counts):
        counts = [1] * len(counts)
    heap = [(-count * math.log2(2), number) for number, count in enumerate(counts)]
    heapq.heapify(heap)
    for _ in range(SCALE - len(counts)):
        _, number = heap[0]
        frequencies[number] += 1
        f = frequencies[number]
        heapq.heapreplace(heap, (-counts[number] * math.log2((f + 1) / f), number))
    return tuple(frequencies)


def build_table(histogram: I64) -> Table:
    """The table of a histogram over the 256 codes: the cheapest range, everything outside of it escaped."""
    low, high = _best_range(histogram)
    outside = int(histogram.sum() - histogram[low:high].sum())
    return Table(low, normalise([*histogram[low:high].tolist(), outside]))


def code_lengths(table: Table) -> I64:
    """Cost of each of the 256 codes under a table, in 1/256 bit."""
    lengths = np.full(256, symbol_cost(table.frequencies[-1]) + RAW_BITS * COST_UNIT, np.int64)
    for symbol, frequency in enumerate(table.frequencies[:-1]):
        lengths[table.low + symbol] = symbol_cost(frequency)
    return lengths


def cluster_tables(histograms: I64, variants: int) -> tuple[Table, ...]:
    """`variants` tables for blocks, then the table of their indices.

    Lloyd's iteration in code length: each block goes to the table that codes it shortest, each table is rebuilt from
    its blocks.

    Args:
        histograms: Counts of the codes in each block, shape (blocks, 256).
        variants: 2 or more.
    """
    spread = _entropies(histograms) + 1e-6 * histograms.argmax(1)
    choice = np.argsort(np.argsort(spread, kind="stable"), kind="stable") * variants // max(len(histograms), 1)
    index_costs = np.full(variants, round(COST_UNIT * math.log2(variants)), np.int64)
    tables: list[Table] = []
    for _ in range(_ROUNDS):
        groups = [histograms[choice == variant].sum(0) for variant in range(variants)]
        whole = histograms.sum(0)
        tables = [build_table(group if group.any() else whole) for group in groups]
        lengths = np.stack([code_lengths(table) for table in tables])  # (variants, 256)
        update = (histograms @ lengths.T + index_costs).argmin(1)
        if (update == choice).all():
            break
        choice = update
        used = normalise([*np.bincount(choice, minlength=variants).tolist(), 0])
        index_costs = np.array([symbol_cost(frequency) for frequency in used[:-1]], np.int64)
    index = Table(0, normalise([*np.bincount(choice, minlength=variants).tolist(), 0]))
    return (*tables, index)


def _channel_tables(codes: Sequence[npt.NDArray[np.uint8]]) -> tuple[tuple[Table, ...], tuple[int, ...]]:
    """One table for each channel, merged down when there are more channels than tables."""
    joined = np.concatenate(codes, axis=1)
    histograms = np.stack([np.bincount(row, minlength=256) for row in joined])
    if len(histograms) <= 128:
        return tuple(build_table(histogram) for histogram in histograms), tuple(range(len(histograms)))
    groups = cluster_tables(histograms, 64)[:-1]
    lengths = np.stack([code_lengths(table) for table in groups])
    return groups, tuple((histograms @ lengths.T).argmin(1).tolist())


def _block_histograms(codes: Sequence[npt.NDArray[np.uint8]], block: int) -> I64:
    if block < 1:
        raise TableError(f"Wanted blocks of a multiple of 32 positions with variants, found {block}.")
    parts = []
    for array in codes:
        for row in array:
            parts += [np.bincount(row[at : at + block], minlength=256) for at in range(0, len(row), block)]
    return np.stack(parts)


def _entropies(histograms: I64) -> F64:
    share = histograms / np.maximum(histograms.sum(1, keepdims=True), 1)
    logs: F64 = np.log2(share, out=np.zeros_like(share), where=share > 0)
    entropy: F64 = -(share * logs).sum(1)
    return entropy


def _best_range(histogram: I64) -> tuple[int, int]:
    """Codes [low, high) whose table is estimated to cost least, escapes included."""
    total = int(histogram.sum())
    if not total:
        return 0, 1
    share = total / SCALE  # counts below this get a whole slot all the same
    log = np.log2(np.maximum(histogram, share) / total)
    inner = np.concatenate([[0.0], np.cumsum(-histogram * log)])
    kept = np.concatenate([[0], np.cumsum(histogram)])
    spare = np.concatenate([[0.0], np.cumsum(np.maximum(1 - histogram / share, 0))])
    low, high = np.triu_indices(257, 1)
    low, high = low[high - low <= MAX_COUNT], high[high - low <= MAX_COUNT]
    outside = total - (kept[high] - kept[low])
    wasted = spare[high] - spare[low] + np.maximum(1 - outside / share, 0)
    escape = outside * (PRECISION - np.log2(np.maximum(outside / share, 1)) + RAW_BITS)
    cost = inner[high] - inner[low] + escape - total * np.log2(1 - np.minimum(wasted, SCALE - 1) / SCALE)
    best = int(cost.argmin())
    return int(low[best]), int(high[best])
