"""What a rank loads, in execution order, and which of it stays: pure functions over sizes."""

from dataclasses import dataclass

import msgspec

from orchestrator.tensor_parallel.config import Encoding, ModelConfig
from orchestrator.tensor_parallel.layout import (
    ALIGNMENT_BYTES,
    Block,
    Part,
    Placed,
    attention_parts,
    ffn_parts,
    file_offsets,
    make_block,
    rank_blocks,
)
from orchestrator.tensor_parallel.lowbit import TILE_ROWS
from orchestrator.tensor_parallel.partition import FFN_UNIT, Share

PIECE_BYTES = 8 << 20  # of a load, about: the window's buffers are as large as the largest
_GOLDEN = 0.6180339887498949


@dataclass(frozen=True)
class View:
    """A tensor inside a loaded buffer: its shape as stored, which for a packed matrix is (rows, width) of its part."""

    name: str
    offset: int
    shape: tuple[int, ...]
    encoding: Encoding = "float32"
    transposed: bool = False


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

    `cycle` is loaded block by block in this order for each step; `norm` (master) is kept; the embedding, whose rows are
    read singly, stands in the file as `table` says. In the paper's mode all of it is the first load of the cycle.
    A large block is several loads, as the window's buffers are as large as the largest load and what they take cannot stay:
    attention without o, then o; the FFN by columns, the first piece with its norm.
    """

    cycle: tuple[Load, ...]
    norm: Load | None
    table: tuple[Part, int] | None  # and its offset
    head_chunks: tuple[tuple[int, int], ...]  # vocabulary rows of the last loads of the cycle
    ffn_pieces: int  # loads of a layer's FFN


def rank_loads(config: ModelConfig, held: Share, active: Share, *, master: bool, paper: bool) -> RankLoads:
    """The loads of a rank that holds `held` on disk and computes `active`.

    Args:
        config: The model.
        held: What the file has.
        active: What is computed; a part of `held`.
        master: The rank has embedding and head.
        paper: Load every block, the embedding and the head whole, as published, instead of by pieces, rows and chunks.
    """
    in_file = rank_blocks(config, held, master=master)
    where = {block.name: (block, offset) for block, offset in zip(in_file, file_offsets(in_file), strict=True)}
    blocks = rank_blocks(config, active, master=False)
    pieces = [(block, [block] if paper else _pieces(config, active, block)) for block in blocks]
    cycle = [_part_of(*where[block.name], piece) for block, cut in pieces for piece in cut]
    ffn_pieces = max((len(cut) for block, cut in pieces if block.kind == "ffn"), default=1)
    if not master:
        return RankLoads(tuple(cycle), None, None, (), ffn_pieces)
    embedding, table_offset = where["embedding"]
    table = embedding.placed[0].part
    head, head_offset = where["head"]
    norm_part = head.placed[0]
    norm = Load("norm", norm_part.nbytes, ((head_offset, norm_part.nbytes, 0),), (View("norm", 0, (config.hidden,)),))
    projection = head.part("head")
    start = table_offset if projection is None else head_offset + projection.offset
    part = table if projection is None else projection.part
    at_once = config.vocabulary if paper else max(TILE_ROWS, PIECE_BYTES // part.bytes_of(TILE_ROWS) * TILE_ROWS)
    chunks = tuple((r, min(config.vocabulary, r + at_once)) for r in range(0, config.vocabulary, at_once))
    if paper:
        cycle.insert(0, _rows("embedding", table, table_offset, (0, config.vocabulary)))
    cycle += [_rows(f"head.{chunk[0]}", part, start, chunk) for chunk in chunks]
    return RankLoads(tuple(cycle), norm, (table, table_offset), chunks, ffn_pieces)


def _pieces(config: ModelConfig, share: Share, block: Block) -> list[Block]:
    """A block of a layer as blocks of about `PIECE_BYTES`."""
    count = -(-block.nbytes // PIECE_BYTES)
    if count == 1:
        return [block]
    if block.kind == "attention":
        parts = attention_parts(config)
        apart = tuple(part for part in parts if part.name != "o"), tuple(part for part in parts if part.name == "o")
        return [make_block(block.kind, block.layer, one, config, share) for one in apart]
    step = -(-share.columns // (count * FFN_UNIT)) * FFN_UNIT
    made: list[Block] = []
    for start in range(share.ffn_start, share.ffn_stop, step):
        piece = msgspec.structs.replace(share, ffn_start=start, ffn_stop=min(start + step, share.ffn_stop))
        parts = tuple(part for part in ffn_parts(config) if part.axis == "ffn" or not made)
        made.append(make_block(block.kind, block.layer, parts, config, piece))
    return made


def _rows(name: str, part: Part, start: int, rows: tuple[int, int]) -> Load:
    first, stop = rows
    nbytes = part.bytes_of(stop - first)
    read = (start + part.bytes_of(first), nbytes, 0)
    return Load(name, nbytes, (read,), (View("rows", 0, (stop - first, part.width), part.encoding),))


def _part_of(in_file: Block, offset: int, wanted: Block) -> Load:
    """Reads that take `wanted` out of a block that holds at least as much; neighbours that stay neighbours are one read."""
    reads: list[tuple[int, int, int]] = []
    views = []
    for placed in wanted.placed:
        source = in_file.part(placed.part.name)
        assert source is not None
        skip = placed.part.bytes_of(placed.first_row - source.first_row)
        at = offset + source.offset + skip
        first, nbytes, to = reads[-1] if reads else (0, -ALIGNMENT_BYTES, 0)
        if 0 <= at - first - nbytes < ALIGNMENT_BYTES and at - first == placed.offset - to:
            reads[-1] = (first, at + placed.nbytes - first, to)
        else:
            reads.append((at, placed.nbytes, placed.offset))
        views.append(_view(placed))
    return Load(wanted.name, wanted.nbytes, tuple(reads), tuple(views))


def _view(placed: Placed) -> View:
    part = placed.part
    shape = (part.width,) if part.axis == "whole" else (placed.row_count, part.width)
    return View(
        part.name, placed.offset, (placed.row_count,) if part.width == 1 else shape, part.encoding, part.transposed
    )


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
