"""One block of an artefact on the wire: 44 bytes of header with the content's sha256, then the content."""

import hashlib
import struct
from dataclasses import dataclass

from edge_runtime.messages import BLOCK_BYTES, MAX_BLOCKS, MessageError

BLOCK_HEADER_BYTES = 44
_BLOCK = struct.Struct("<2sBBII32s")  # magic, version, reserved, index, length, sha256 of the content
_BLOCK_MAGIC = b"HB"


@dataclass(frozen=True)
class Block:
    """One piece of a transfer; every block but the last holds `BLOCK_BYTES`."""

    index: int
    content: bytes | memoryview


def encode_block(block: Block) -> bytes:
    """44 bytes of header, then the content."""
    digest = hashlib.sha256(block.content).digest()
    header = _BLOCK.pack(_BLOCK_MAGIC, 1, 0, block.index, len(block.content), digest)
    return b"".join((header, block.content))


def decode_block(data: bytes) -> Block:
    """Take a block apart and check its hash.

    Raises:
        MessageError: Not a block, of another length than it says, or damaged.
    """
    if not BLOCK_HEADER_BYTES < len(data) <= BLOCK_HEADER_BYTES + BLOCK_BYTES:
        raise MessageError(f"Wanted a block of at most {BLOCK_BYTES} B and its header, found {len(data)} B.")
    magic, version, reserved, index, length, digest = _BLOCK.unpack_from(data)
    content = memoryview(data)[BLOCK_HEADER_BYTES:]
    if magic != _BLOCK_MAGIC or version != 1 or reserved or index >= MAX_BLOCKS or length != len(content):
        raise MessageError(f"Wanted a block header, found {magic!r} version {version}, index {index}, {length} B.")
    if hashlib.sha256(content).digest() != digest:
        raise MessageError(f"Wanted block {index} with its sha256, found other content: damaged on its way.")
    return Block(index, content)
