"""Cut a checkpoint into a shard set: slice by slice, resumable, verified."""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np

from orchestrator.tensor_parallel.checkpoint import Array, Checkpoint
from orchestrator.tensor_parallel.config import Encoding
from orchestrator.tensor_parallel.errors import CheckpointError, ShardError
from orchestrator.tensor_parallel.layout import Block, Part, Placed, file_bytes, file_offsets
from orchestrator.tensor_parallel.lowbit import pack
from orchestrator.tensor_parallel.nodes import Node
from orchestrator.tensor_parallel.partition import held_shares
from orchestrator.tensor_parallel.shard_set import (
    SCHEMA,
    TOKENIZER_FILES,
    BlockEntry,
    NodeEntry,
    RankIndex,
    ShardSet,
    file_sha256,
    read_index,
    read_set,
    verify_file,
)

_ROWS_AT_ONCE = 2048

Progress = Callable[[int, int], None]  # bytes done, bytes in all


def shard_checkpoint(
    checkpoint: Checkpoint,
    nodes: Sequence[Node],
    out: Path,
    *,
    spares: int = 1,
    weights: Encoding = "float32",
    progress: Progress | None = None,
) -> ShardSet:
    """Write the set; blocks that an interrupted run of the same set left complete are kept, those of another written over.

    Args:
        checkpoint: The model.
        nodes: The master first.
        out: Folder of the set.
        spares: How many nodes may be lost without fetching anything again.
        weights: How matrices are stored and computed; float32 is exact.
        progress: Called after each block.

    Raises:
        CheckpointError: A tensor is missing, truncated, of another shape, or holds values that are not finite.
        ShardError: `out` holds another set.
        TokenizerError: The checkpoint's tokenizer is of a kind that is not handled.
    """
    held = held_shares(checkpoint.config, [node.capability for node in nodes], spares=spares)
    shard_set = ShardSet(
        schema=SCHEMA,
        model=checkpoint.path.stem if checkpoint.path.is_file() else checkpoint.path.resolve().name,
        source_sha256=_source_hash(checkpoint.path),
        config=checkpoint.config.encoded(weights),
        nodes=tuple(
            NodeEntry(name=node.name, capability=node.capability, held=share)
            for node, share in zip(nodes, held, strict=True)
        ),
    )
    out.mkdir(parents=True, exist_ok=True)
    if (out / "set.json").is_file() and read_set(out).set_id != shard_set.set_id:
        raise ShardError(f"Wanted an empty folder or the same set, found another set in {out}. Give another folder.")
    _write_tokenizer(checkpoint.tokenizer_files(), out, shard_set)
    total = sum(file_bytes(shard_set.blocks(rank)) for rank in range(len(nodes)))
    done = 0
    for rank in range(len(nodes)):
        for size in _write_rank(checkpoint, shard_set, rank, out):
            done += size
            if progress is not None:
                progress(done, total)
    _replace(out / "set.json", msgspec.json.format(msgspec.json.encode(shard_set), indent=1))
    return shard_set


def _write_rank(checkpoint: Checkpoint, shard_set: ShardSet, rank: int, out: Path) -> Iterator[int]:
    """Write one rank's file and index; yields the bytes of each block."""
    path, blocks = out / f"rank{rank}.bin", shard_set.blocks(rank)
    if _is_complete(out, shard_set, rank):
        yield file_bytes(blocks)
        return
    part = path.with_suffix(".part")
    log = _ResumeLog(out / f"rank{rank}.log", shard_set.set_id)
    entries = []
    with _open_sized(part, file_bytes(blocks)) as stream:
        for block, offset in zip(blocks, file_offsets(blocks), strict=True):
            digest = log.done.get(block.name)
            if digest is None or _hash_at(stream, offset, block.nbytes) != digest:
                digest = _write_block(checkpoint, block, offset, stream)
                os.fdatasync(stream.fileno())
                log.append(block.name, digest)
            entries.append(BlockEntry(name=block.name, offset=offset, nbytes=block.nbytes, sha256=digest))
            yield block.nbytes
    index = RankIndex(
        rank=rank,
        nbytes=file_bytes(blocks),
        sha256=file_sha256(part),
        blocks=tuple(entries),
        set_id=shard_set.set_id,
    )
    part.replace(path)
    _replace(out / f"rank{rank}.json", msgspec.json.format(msgspec.json.encode(index), indent=1))
    log.path.unlink(missing_ok=True)


def _is_complete(out: Path, shard_set: ShardSet, rank: int) -> bool:
    """Whether the rank's file is whole and of this set: another checkpoint of the same shape has the same offsets."""
    try:
        index = read_index(out, rank, shard_set)
        if index.set_id is None:
            return False
        verify_file(out / f"rank{rank}.bin", index)
    except ShardError:
        return False
    return True


def _write_tokenizer(files: dict[str, str], out: Path, shard_set: ShardSet) -> None:
    """Write what the checkpoint brings; of another set that was begun here, nothing stays."""
    if _begun_set(out) not in (None, shard_set.set_id):
        for name in TOKENIZER_FILES:
            (out / name).unlink(missing_ok=True)
    for name, text in files.items():
        (out / name).write_text(text, encoding="utf-8")


def _begun_set(out: Path) -> str | None:
    """Id of the set whose first rank an earlier run wrote, or began to; none where it left none."""
    log, index = out / "rank0.log", out / "rank0.json"
    if log.is_file():
        return next(iter(log.read_text().splitlines()), None)
    with contextlib.suppress(OSError, msgspec.DecodeError, UnicodeDecodeError):
        return msgspec.json.decode(index.read_bytes(), type=RankIndex).set_id
    return None


class _ResumeLog:
    """Blocks already written, one a line behind the set's id; a torn last line counts as absent."""

    def __init__(self, path: Path, set_id: str) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path.is_file() else []
        if not lines or lines[0] != set_id:
            path.write_text(set_id + "\n")
            lines = []
        pairs = [line.split(" ") for line in lines[1:]]
        self.done = {pair[0]: pair[1] for pair in pairs if len(pair) == 2 and len(pair[1]) == 64}

    def append(self, name: str, digest: str) -> None:
        with self.path.open("a") as stream:
            stream.write(f"{name} {digest}\n")


@contextlib.contextmanager
def _open_sized(path: Path, size: int) -> Iterator[BinaryIO]:
    path.touch()
    with path.open("r+b") as stream:
        stream.truncate(size)
        yield stream


def _write_block(checkpoint: Checkpoint, block: Block, offset: int, stream: BinaryIO) -> str:
    digest, position = hashlib.sha256(), 0
    stream.seek(offset)
    for placed in block.placed:
        padding = b"\0" * (placed.offset - position)
        stream.write(padding)
        digest.update(padding)
        for array in _read_part(checkpoint, block, placed):
            data = _encoded(array, placed.part)
            stream.write(data)
            digest.update(data)
        position = placed.offset + placed.nbytes
    padding = b"\0" * (block.nbytes - position)
    stream.write(padding)
    digest.update(padding)
    stream.flush()
    return digest.hexdigest()


def _encoded(array: Array, part: Part) -> bytes:
    if part.encoding == "float32":
        return array.tobytes()
    matrix = array.T if part.transposed else array
    return pack(matrix, part.encoding, by_column=part.transposed).tobytes()


def _read_part(checkpoint: Checkpoint, block: Block, placed: Placed) -> Iterator[Array]:
    """A part's rows in pieces, checked for shape and finite values."""
    part, first, stop = placed.part, placed.first_row, placed.first_row + placed.row_count
    if part.axis == "whole":  # a vector is one row
        array = checkpoint.rows(part.name, block.layer, 0, part.width)
        yield _checked(array.reshape(1, -1), (1, part.width), block, placed)
        return
    pieces = [(stop_ - start_, start_, stop_) for start_, stop_ in _spans(first, stop, part.transposed)]
    for count, start, end in pieces:
        read = checkpoint.columns if part.transposed else checkpoint.rows
        yield _checked(read(part.name, block.layer, start, end), (count, part.width), block, placed)


def _spans(first: int, stop: int, transposed: bool) -> Iterator[tuple[int, int]]:
    """Pieces of a range; a transposed part is read at once, as each piece would decode the whole tensor again."""
    step = stop - first if transposed else _ROWS_AT_ONCE
    for start in range(first, stop, max(1, step)):
        yield start, min(stop, start + step)


def _checked(array: Array, shape: tuple[int, int], block: Block, placed: Placed) -> Array:
    if array.shape != shape:
        raise CheckpointError(f"Wanted {shape} of {placed.part.name} in {block.name}, found {array.shape}.")
    if not np.isfinite(array).all():
        raise CheckpointError(f"Wanted finite weights, found NaN or infinity in {placed.part.name} of {block.name}.")
    return array


def _hash_at(stream: BinaryIO, offset: int, nbytes: int) -> str:
    stream.seek(offset)
    return hashlib.sha256(stream.read(nbytes)).hexdigest()


def _source_hash(path: Path) -> str:
    """Hash of the checkpoint's weight files, by name and content."""
    files = [path] if path.is_file() else [path / "config.json", *sorted(path.glob("*.safetensors"))]
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name} {file_sha256(file)}\n".encode())
    return digest.hexdigest()


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_suffix(path.suffix + ".tmp")
    temporary.write_bytes(data + b"\n")
    temporary.replace(path)
