"""Keys and values of a rank, in float32 or as int8 with a scale for each token and head."""

import math
from typing import Any

import torch

from orchestrator.tensor_parallel.buffers import Buffer
from orchestrator.tensor_parallel.config import ModelConfig
from orchestrator.tensor_parallel.protocol import Segment

Tensor = Any  # torch is untyped here

KINDS = ("float32", "int8")
_SMALLEST = 1e-30  # keeps a row of zeros from being divided by zero


def bytes_per_token(config: ModelConfig, kv_heads: int, kind: str) -> int:
    """Bytes of one token of one sequence over all layers."""
    row = 4 * config.head_dim if kind == "float32" else config.head_dim + 4
    return 2 * config.layers * kv_heads * row


class KvCache:
    """For each layer (slots, 2, k, context, d); memory is resident where it was written.

    Args:
        config: The model.
        kv_heads: k, of this rank.
        slots: Sequences.
        context: Tokens of each.
        kind: float32, or int8: the largest value of a token's head becomes 127 (relative error of a value at most 1/254
            of that).
    """

    def __init__(self, config: ModelConfig, kv_heads: int, *, slots: int, context: int, kind: str = "float32") -> None:
        shape = (slots, 2, kv_heads, context, config.head_dim)
        layers = range(config.layers if kv_heads else 0)
        self._stored = [_tensor(shape, torch.float32 if kind == "float32" else torch.int8) for _ in layers]
        self._scales = [] if kind == "float32" else [_tensor((*shape[:-1], 1), torch.float32) for _ in layers]

    def write(self, layer: int, segment: Segment, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store (k, n, d) keys and values at the segment's place; return all up to there, (k, T, d).

        What an earlier step left elsewhere is moved first, see `Segment`.
        """
        parts = [stored[layer][segment.slot] for stored in (self._stored, self._scales) if stored]
        if segment.moved:
            for part in parts:
                moved = part[:, :, segment.moved_from : segment.moved_from + segment.moved].clone()
                part[:, :, segment.start - segment.moved : segment.start] = moved
        stop = segment.start + segment.count
        fresh = torch.stack((keys, values))  # (2, k, n, d)
        if not self._scales:
            parts[0][:, :, segment.start : stop] = fresh
            return parts[0][0, :, :stop], parts[0][1, :, :stop]
        stored, scales = parts
        scale = fresh.abs().amax(-1, keepdim=True) / 127
        stored[:, :, segment.start : stop] = (fresh / scale.clamp_min(_SMALLEST)).round().to(torch.int8)
        scales[:, :, segment.start : stop] = scale
        known = stored[:, :, :stop] * scales[:, :, :stop]
        return known[0], known[1]


def _tensor(shape: tuple[int, ...], dtype: Any) -> Tensor:  # noqa: ANN401 - torch is untyped here
    count = math.prod(shape)
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(Buffer(count * dtype.itemsize).view, dtype=dtype, count=count).view(shape)
