"""Where every weight of a rank stands: blocks in execution order, each a list of row-major parts. Pure functions.

Every cut tensor is stored so that a share is a range of rows: the projections by output row, o and down transposed.
Where weights are packed, a range of rows is one of whole tiles. A rank's file may hold more than its share (for the day when another rank is lost); offsets are computed, not stored.
"""

from dataclasses import dataclass, replace
from typing import Literal

from orchestrator.tensor_parallel.config import Encoding, ModelConfig
from orchestrator.tensor_parallel.lowbit import encoded_bytes
from orchestrator.tensor_parallel.partition import Share

PAGE_BYTES = 4096
ALIGNMENT_BYTES = 64

Axis = Literal["kv", "ffn", "vocabulary", "whole"]
Kind = Literal["attention", "ffn", "embedding", "head"]


@dataclass(frozen=True)
class Part:
    """One tensor of a block: `rows` rows for each unit of its axis, `width` values each."""

    name: str
    axis: Axis
    rows: int
    width: int
    transposed: bool = False  # stored as columns of the checkpoint's tensor
    encoding: Encoding = "float32"

    def bytes_of(self, rows: int) -> int:
        """Bytes of so many rows."""
        return encoded_bytes(self.encoding, rows * self.width)


@dataclass(frozen=True)
class Placed:
    """A part's rows in a file or a buffer."""

    part: Part
    offset: int
    first_row: int
    row_count: int

    @property
    def nbytes(self) -> int:
        """Bytes of the rows."""
        return self.part.bytes_of(self.row_count)


@dataclass(frozen=True)
class Block:
    """What is loaded and released together. `layer` is -1 outside of layers."""

    kind: Kind
    layer: int
    placed: tuple[Placed, ...]
    nbytes: int

    @property
    def name(self) -> str:
        """For the index and for messages."""
        return self.kind if self.layer < 0 else f"{self.kind}.{self.layer}"

    def part(self, name: str) -> Placed | None:
        """The rows of one part, if the block has it."""
        return next((one for one in self.placed if one.part.name == name), None)


def attention_parts(config: ModelConfig) -> tuple[Part, ...]:
    """Norm, q, k, v, o and what the family adds."""
    heads, size, hidden = config.group * config.head_dim, config.head_dim, config.hidden
    parts = [
        Part("attention_norm", "whole", 1, hidden),
        Part("q", "kv", heads, hidden),
        Part("k", "kv", size, hidden),
        Part("v", "kv", size, hidden),
        Part("o", "kv", heads, hidden, transposed=True),
    ]
    if config.qkv_bias:
        parts += [Part("q_bias", "kv", heads, 1), Part("k_bias", "kv", size, 1), Part("v_bias", "kv", size, 1)]
    if config.qk_norm:
        parts += [Part("q_norm", "whole", 1, size), Part("k_norm", "whole", 1, size)]
    return tuple(parts)


def ffn_parts(config: ModelConfig) -> tuple[Part, ...]:
    """Norm, gate, up, down."""
    return (
        Part("ffn_norm", "whole", 1, config.hidden),
        Part("gate", "ffn", 1, config.hidden),
        Part("up", "ffn", 1, config.hidden),
        Part("down", "ffn", 1, config.hidden, transposed=True),
    )


def rank_blocks(config: ModelConfig, share: Share, *, master: bool) -> list[Block]:
    """The blocks of a rank in execution order; a block with nothing to compute is left out.

    The master also has the embedding, and the final norm with lm_head (or the norm alone where lm_head is tied).
    """
    blocks = []
    if master:
        embedding = Part("embedding", "vocabulary", 1, config.hidden)
        blocks.append(make_block("embedding", -1, (embedding,), config, share))
    for layer in range(config.layers):
        if share.kv_heads:
            blocks.append(make_block("attention", layer, attention_parts(config), config, share))
        if share.columns:
            blocks.append(make_block("ffn", layer, ffn_parts(config), config, share))
    if master:
        head: tuple[Part, ...] = (Part("final_norm", "whole", 1, config.hidden),)
        if not config.tied_embedding:
            head += (Part("head", "vocabulary", 1, config.hidden),)
        blocks.append(make_block("head", -1, head, config, share))
    return blocks


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor of a checkpoint by the part's name, as Hugging Face stores it: (rows, columns), or (values,)."""
    whole = Share(kv_start=0, kv_stop=config.kv_heads, ffn_start=0, ffn_stop=config.ffn)
    outside = [Part("embedding", "vocabulary", 1, config.hidden), Part("final_norm", "whole", 1, config.hidden)]
    outside += [] if config.tied_embedding else [Part("head", "vocabulary", 1, config.hidden)]
    found: dict[str, tuple[int, ...]] = {}
    for part in (*outside, *attention_parts(config), *ffn_parts(config)):
        first, stop = unit_range(part.axis, config, whole)
        matrix = (part.rows * (stop - first), part.width)
        vector = part.axis == "whole" or part.width == 1
        found[part.name] = (max(matrix),) if vector else matrix[::-1] if part.transposed else matrix
    return found


def file_offsets(blocks: list[Block]) -> list[int]:
    """Page-aligned start of each block in a rank's file."""
    offsets, position = [], 0
    for block in blocks:
        offsets.append(position)
        position = _up(position + block.nbytes, PAGE_BYTES)
    return offsets


def file_bytes(blocks: list[Block]) -> int:
    """Size of a rank's file."""
    return _up(file_offsets(blocks)[-1] + blocks[-1].nbytes, PAGE_BYTES) if blocks else 0


def make_block(kind: Kind, layer: int, parts: tuple[Part, ...], config: ModelConfig, share: Share) -> Block:
    """The rows of these parts that a share has, one behind the other."""
    placed, position = [], 0
    for plain in parts:
        part = replace(plain, encoding=encoding_of(plain, config))
        first, stop = unit_range(part.axis, config, share)
        one = Placed(part, position, first * part.rows, (stop - first) * part.rows)
        placed.append(one)
        position = _up(position + one.nbytes, ALIGNMENT_BYTES)
    return Block(kind, layer, tuple(placed), position)


def encoding_of(part: Part, config: ModelConfig) -> Encoding:
    """Vectors stay float32; the table and lm_head have 8 bit where the rest has 4."""
    if config.weights == "float32" or part.axis == "whole" or part.width == 1:
        return "float32"
    return "int8" if part.axis == "vocabulary" else config.weights


def unit_range(axis: Axis, config: ModelConfig, share: Share) -> tuple[int, int]:
    """The units of an axis that a share has."""
    ranges = {
        "kv": (share.kv_start, share.kv_stop),
        "ffn": (share.ffn_start, share.ffn_stop),
        "vocabulary": (0, config.vocabulary),
        "whole": (0, 1),
    }
    return ranges[axis]


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
