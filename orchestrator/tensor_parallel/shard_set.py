"""A shard set on disk: `set.json`, the tokenizer, and for each rank one file of blocks with an index of hashes.

set.json            model, capabilities, what each rank holds, hash of the source
rank0.json, ...     the set's id; offset, size and sha256 of each block and of the whole file
rank0.bin, ...      page-aligned blocks in execution order; matrices as config.weights says
tokenizer.json, chat_template.jinja, special_tokens.json
"""

import hashlib
from pathlib import Path

import msgspec

from orchestrator.tensor_parallel.config import ModelConfig
from orchestrator.tensor_parallel.errors import ShardError
from orchestrator.tensor_parallel.layout import Block, file_bytes, file_offsets, rank_blocks
from orchestrator.tensor_parallel.partition import Share

SCHEMA = 2
_AGAIN = "Delete it: a worker fetches its file again; for the master, shard again."
TOKENIZER_FILES = ("tokenizer.json", "chat_template.jinja", "special_tokens.json")


class BlockEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One block of a rank's file."""

    name: str
    offset: int
    nbytes: int
    sha256: str


class RankIndex(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a rank's file holds."""

    rank: int
    nbytes: int
    sha256: str
    blocks: tuple[BlockEntry, ...]
    set_id: str | None = None  # the set that it was cut for; none where an earlier version wrote it


class NodeEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A rank of the set: its name, its capability when the set was cut, what it holds on disk."""

    name: str
    capability: float
    held: Share


class ShardSet(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `set.json` says; node 0 is the master."""

    schema: int
    model: str
    source_sha256: str
    config: ModelConfig
    nodes: tuple[NodeEntry, ...]

    @property
    def set_id(self) -> str:
        """Names this cut of this model: equal ids have equal bytes in every rank's file."""
        return hashlib.sha256(msgspec.json.encode(self, order="deterministic")).hexdigest()[:32]

    def blocks(self, rank: int) -> list[Block]:
        """The blocks in a rank's file."""
        return rank_blocks(self.config, self.nodes[rank].held, master=rank == 0)


def read_set(folder: Path) -> ShardSet:
    """Read set.json.

    Raises:
        ShardError: None there, or not one of this version.
    """
    path = folder / "set.json"
    try:
        found = msgspec.json.decode(path.read_bytes(), type=ShardSet)
    except OSError as error:
        raise ShardError(f"Wanted a shard set, found no {path}. Make one with `headtail llm shard`.") from error
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise ShardError(f"Wanted a shard set, found {error} in {path}. Shard the checkpoint again.") from error
    if found.schema != SCHEMA:
        raise ShardError(f"Wanted shard schema {SCHEMA}, found {found.schema} in {path}. Shard the checkpoint again.")
    return found


def read_index(folder: Path, rank: int, shard_set: ShardSet) -> RankIndex:
    """Read a rank's index and check it against the set.

    Raises:
        ShardError: None there, damaged, or of another set.
    """
    path = folder / f"rank{rank}.json"
    try:
        index = msgspec.json.decode(path.read_bytes(), type=RankIndex)
    except (OSError, msgspec.DecodeError, msgspec.ValidationError) as error:
        raise ShardError(f"Wanted the index of rank {rank}, found {error} at {path}. Shard again.") from error
    check_index(index, rank, shard_set, str(path))
    return index


def check_index(index: RankIndex, rank: int, shard_set: ShardSet, where: str) -> None:
    """Check an index against the set that it should belong to.

    Raises:
        ShardError: Cut for another set, or other blocks, offsets or sizes than the set's.
    """
    blocks = shard_set.blocks(rank)
    wanted = [(b.name, o, b.nbytes) for b, o in zip(blocks, file_offsets(blocks), strict=True)]
    found = [(entry.name, entry.offset, entry.nbytes) for entry in index.blocks]
    stranger = index.set_id not in (None, shard_set.set_id)
    if stranger or index.rank != rank or found != wanted or index.nbytes != file_bytes(blocks):
        another = f"another, of set {index.set_id}," if stranger else "another"
        raise ShardError(
            f"Wanted the index of rank {rank} of set {shard_set.set_id}, found {another} in {where}. "
            "Shard the checkpoint again."
        )


def verify_file(path: Path, index: RankIndex) -> None:
    """Read a rank's file once and compare size and hash.

    Raises:
        ShardError: Missing, of another size, or with another hash; names the first block that differs.
    """
    if not path.is_file():
        raise ShardError(f"Wanted {index.nbytes} B, found no {path}. Shard the checkpoint again.")
    if path.stat().st_size != index.nbytes:
        raise ShardError(f"Wanted {index.nbytes} B, found {path.stat().st_size} at {path}. {_AGAIN}")
    if file_sha256(path) == index.sha256:
        return
    with path.open("rb") as stream:
        for entry in index.blocks:
            stream.seek(entry.offset)
            if hashlib.sha256(stream.read(entry.nbytes)).hexdigest() != entry.sha256:
                raise ShardError(f"Block {entry.name} of {path} has another hash. {_AGAIN}")
    raise ShardError(f"Bytes between the blocks of {path} differ. {_AGAIN}")


def file_sha256(path: Path) -> str:
    """sha256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
