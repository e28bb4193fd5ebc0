"""What a rank loads, in execution order, and which of it stays: pure functions over sizes."""

from dataclasses import dataclass

from orchestrator.tensor_parallel.config import ModelConfig
from orchestrator.tensor_parallel.layout import WIDTH_BYTES, Block, file_offsets, rank_blocks
from orchestrator.tensor_parallel.partition import Share

HEAD_CHUNK_BYTES = 8 << 20
_GOLDEN = 0.6180339887498949


@dataclass(frozen=True)
class View:
    """A tensor inside a loaded buffer."""

    name: str
    offset: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Load:
    """One thing that is loaded at once: reads of (file offset, bytes, buffer offset), and the tensors they make."""

    name: str
    nbytes: int
    reads: tuple[tuple[int, int, int], ...]
    views: tuple[View, ...]


@dataclass(frozen=True)
class RankLoads:
    """Everything a rank reads.

    `cycle` is loaded block by block in this order for each step; `norm` (master) is kept; single embedding rows are at
    `embedding_offset` + row * hidden * 4. In the paper's mode the whole embedding is the first load of the cycle.
    """

    cycle: tuple[Load, ...]
    norm: Load | None
    embedding_offset: int
    head_chunks: tuple[tuple[int, int], ...]  # vocabulary rows of the last loads of the cycle


def rank_loads(config: ModelConfig, held: Share, active: Share, *, master: bool, paper: bool) -> RankLoads:
    """The loads of a rank that holds `held` on disk and computes `active`.

    Args:
        config: The model.
        held: What the file has.
        active: What is computed; a part of `held`.
        master: The rank has embedding and head.
        paper: Load the embedding and the head whole, as published, instead of by rows and chunks.
    """
    in_file = rank_blocks(config, held, master=master)
    where = {block.name: (block, offset) for block, offset in zip(in_file, file_offsets(in_file), strict=True)}
    cycle = [_part_of(*where[block.name], block) for block in rank_blocks(config, active, master=False)]
    if not master:
        return RankLoads(tuple(cycle), None, 0, ())
    _, table_offset = where["embedding"]
    head, head_offset = where["head"]
    norm_part = head.placed[0]
    norm = Load("norm", norm_part.nbytes, ((head_offset, norm_part.nbytes, 0),), (View("norm", 0, (config.hidden,)),))
    projection = head.part("head")
    start = table_offset if projection is None else head_offset + projection.offset
    row_bytes = config.hidden * WIDTH_BYTES
    at_once = config.vocabulary if paper else max(1, HEAD_CHUNK_BYTES // row_bytes)
    chunks = tuple((r, min(config.vocabulary, r + at_once)) for r in range(0, config.vocabulary, at_once))
    if paper:
        cycle.insert(0, _rows("embedding", table_offset, 0, config.vocabulary, config.hidden))
    cycle += [_rows(f"head.{first}", start, first, stop, config.hidden) for first, stop in chunks]
    return RankLoads(tuple(cycle), norm, table_offset, chunks)


def _rows(name: str, start: int, first: int, stop: int, width: int) -> Load:
    nbytes = (stop - first) * width * WIDTH_BYTES
    read = (start + first * width * WIDTH_BYTES, nbytes, 0)
    return Load(name, nbytes, (read,), (View("rows", 0, (stop - first, width)),))


def _part_of(in_file: Block, offset: int, wanted: Block) -> Load:
    """Reads that take `wanted` out of a block that holds at least as much."""
    reads, views = [], []
    for part in wanted.placed:
        source = in_file.part(part.part.name)
        assert source is not None
        skip = (part.first_row - source.first_row) * part.part.width * WIDTH_BYTES
        reads.append((offset + source.offset + skip, part.nbytes, part.offset))
        shape = (part.part.width,) if part.part.axis == "whole" else (part.row_count, part.part.width)
        views.append(View(part.part.name, part.offset, (part.row_count,) if part.part.width == 1 else shape))
    if in_file.placed == wanted.placed:  # all of it: one read
        reads = [(offset, wanted.nbytes, 0)]
    return Load(wanted.name, wanted.nbytes, tuple(reads), tuple(views))


def choose_resident(loads: tuple[Load, ...], budget: int | None, *, window: int) -> tuple[frozenset[int], int]:
    """Which loads stay in memory, spread evenly over the cycle, and the bytes of the window's buffers.

    Retention (TPI-LLM, section 3.3): as much stays as the budget permits, so only the rest is loaded for each token.

    Args:
        loads: The cycle.
        budget: Bytes for weights; null keeps everything.
        window: Buffers that what does not stay goes through.

    Returns:
        Indices of what stays, and the bytes of all buffers together (0 when everything stays).
    """
    total = sum(load.nbytes for load in loads)
    if budget is None or total <= budget:
        return frozenset(range(len(loads))), 0
    buffers = window * max(load.nbytes for load in loads)
    left, chosen = budget - buffers, set()
    for index in sorted(range(len(loads)), key=lambda i: (i * _GOLDEN) % 1.0):
        if loads[index].nbytes <= left:
            chosen.add(index)
            left -= loads[index].nbytes
    return frozenset(chosen), buffers


def smallest_budget(loads: tuple[Load, ...], *, window: int) -> int:
    """Bytes below which the cycle cannot run: the window's buffers, or everything where that is less."""
    return min(sum(load.nbytes for load in loads), window * max((load.nbytes for load in loads), default=0))
