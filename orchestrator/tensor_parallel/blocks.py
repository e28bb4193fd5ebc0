"""Attention and FFN over a rank's share.

Shapes: n tokens of this step, H hidden, k key-value heads of this rank, g query heads for each, d head size, T tokens
in the cache. Weights are (rows, H) with o and down transposed, so that a rank's share is a range of rows; `kernels` multiplies.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from orchestrator.tensor_parallel.config import ModelConfig
from orchestrator.tensor_parallel.kernels import mix, product
from orchestrator.tensor_parallel.kv_cache import KvCache
from orchestrator.tensor_parallel.lowbit import Packed
from orchestrator.tensor_parallel.protocol import Segment

Tensor = Any  # torch is untyped here
Tensors = dict[str, Any]


class Rotary:
    """Rotary positions (RoPE), halves convention, with llama3's stretching of long wavelengths where configured."""

    def __init__(self, config: ModelConfig) -> None:
        exponent = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim
        frequency = 1.0 / (config.rope_base**exponent)  # (d / 2,)
        scaling = config.rope_scaling
        if scaling is not None:
            wavelength = 2 * math.pi / frequency
            low = scaling.original_context / scaling.low_freq_factor
            high = scaling.original_context / scaling.high_freq_factor
            blend = (scaling.original_context / wavelength - scaling.low_freq_factor) / (
                scaling.high_freq_factor - scaling.low_freq_factor
            )
            between = (1 - blend) * frequency / scaling.factor + blend * frequency
            stretched = torch.where(wavelength > low, frequency / scaling.factor, between)
            frequency = torch.where(wavelength < high, frequency, stretched)
        self._frequency = frequency

    def table(self, segments: Sequence[Segment]) -> tuple[Tensor, Tensor]:
        """Cosine and sine for the tokens of a step, (n, 1, d) each."""
        positions = torch.cat([_positions(segment) for segment in segments]).float()
        angles = positions[:, None] * self._frequency  # (n, d / 2)
        angles = torch.cat((angles, angles), dim=-1)[:, None]  # (n, 1, d)
        return angles.cos(), angles.sin()


def _positions(segment: Segment) -> Tensor:
    """Positions of a segment's tokens, (n,): those of a branch follow the tokens before the fork."""
    places = torch.arange(segment.start, segment.start + segment.count)
    if segment.branches == 1:
        return places
    drafted = places - segment.fork
    return torch.where(drafted < 0, places, segment.fork + drafted % segment.depth)


def _hidden(segment: Segment, length: int) -> Tensor:
    """What a segment's tokens do not see of a cache of T places, (n, T): later tokens, and other branches."""
    places = torch.arange(length)
    own = places[segment.start : segment.start + segment.count]
    ahead = places[None] > own[:, None]
    if segment.branches == 1:
        return ahead
    branch = torch.div(places - segment.fork, segment.depth, rounding_mode="floor")  # below 0: no branch
    return ahead | ((branch[None] >= 0) & (branch[None] != branch[own][:, None]))


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Apply rotary positions to (n, heads, d)."""
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * table[0] + turned * table[1]


def rms_norm(x: Tensor, weight: Tensor, config: ModelConfig) -> Tensor:
    """RMSNorm over the last axis (arXiv:1910.07467, eq. 4)."""
    scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + config.norm_eps)
    return x * scale * (weight + config.norm_offset if config.norm_offset else weight)


def project(x: Tensor, weights: Tensor | Packed, bias: Tensor | None = None) -> Tensor:
    """The product x W^T (+ bias), (n, H) -> (n, rows)."""
    y = product(x, weights)
    return y if bias is None else y + bias


def attention(
    x: Tensor, weights: Tensors, config: ModelConfig, place: tuple[KvCache, int], context: tuple[Sequence[Segment], Any]
) -> Tensor:
    """Grouped-query attention of this rank's heads.

    Args:
        x: Residual, (n, H).
        weights: The block.
        config: The model.
        place: The cache and the layer in it.
        context: The step's segments and its rotary table.

    Returns:
        What this rank's heads see, (n, k g d): `mix` with o makes a partial sum of it.
    """
    cache, layer = place
    segments, table = context
    size, count = config.head_dim, x.shape[0]
    h = rms_norm(x, weights["attention_norm"], config)
    q = project(h, weights["q"], weights.get("q_bias")).view(count, -1, size)
    k = project(h, weights["k"], weights.get("k_bias")).view(count, -1, size)
    v = project(h, weights["v"], weights.get("v_bias")).view(count, -1, size)
    if config.qk_norm:
        q, k = rms_norm(q, weights["q_norm"], config), rms_norm(k, weights["k_norm"], config)
    q, k = rotate(q, table), rotate(k, table)
    out = torch.empty_like(q)
    first = 0
    for segment in segments:
        rows = slice(first, first + segment.count)
        keys, values = cache.write(layer, segment, k[rows].transpose(0, 1), v[rows].transpose(0, 1))
        out[rows] = _attend(q[rows], keys, values, segment)
        first += segment.count
    return out.view(count, -1)


def _attend(q: Tensor, keys: Tensor, values: Tensor, segment: Segment) -> Tensor:
    """Causal attention of one sequence: q (n, k g, d), keys and values (k, T, d) -> (n, k g, d)."""
    count, heads, size = q.shape
    kv_heads, length, _ = keys.shape
    grouped = q.view(count, kv_heads, heads // kv_heads, size).permute(1, 2, 0, 3)  # (k, g, n, d)
    scores = grouped.reshape(kv_heads, -1, size) @ keys.transpose(1, 2) / math.sqrt(size)  # (k, g n, T)
    if count > 1:
        scores = scores.view(kv_heads, -1, count, length).masked_fill(_hidden(segment, length), -torch.inf)
    mixed = torch.softmax(scores.view(kv_heads, -1, length), dim=-1) @ values  # (k, g n, d)
    return mixed.view(kv_heads, -1, count, size).permute(2, 0, 1, 3).reshape(count, heads, size)


def feed_forward(h: Tensor, weights: Tensors, config: ModelConfig) -> Tensor:
    """Gated FFN of normed h, (n, H), over some of this rank's columns; partial sum, (n, H)."""
    gate = project(h, weights["gate"])
    gate = F.gelu(gate, approximate="tanh") if config.family == "gemma" else F.silu(gate)
    return mix(gate * project(h, weights["up"]), weights["down"])  # (n, s) @ (s, H)
