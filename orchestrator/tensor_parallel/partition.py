"""Who computes what: key-value groups and FFN columns by capability, for any number of ranks and heads. Pure functions."""

import itertools
from collections.abc import Sequence

import msgspec

from orchestrator.tensor_parallel.config import ModelConfig
from orchestrator.tensor_parallel.errors import PartitionError

FFN_UNIT = 32  # columns that stay together: the block of 4 and 8 bit weights


class Share(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Half-open ranges of key-value heads and of FFN columns; either may be empty."""

    kv_start: int
    kv_stop: int
    ffn_start: int
    ffn_stop: int

    def __post_init__(self) -> None:
        if not (0 <= self.kv_start <= self.kv_stop and 0 <= self.ffn_start <= self.ffn_stop):
            raise PartitionError(f"Wanted ascending ranges, found {self}.")

    @property
    def kv_heads(self) -> int:
        """Key-value heads of this rank."""
        return self.kv_stop - self.kv_start

    @property
    def columns(self) -> int:
        """FFN columns of this rank."""
        return self.ffn_stop - self.ffn_start

    def covers(self, other: "Share") -> bool:
        """Whether everything of `other` is held here; an empty range is held anywhere."""
        heads = other.kv_heads == 0 or (self.kv_start <= other.kv_start and other.kv_stop <= self.kv_stop)
        columns = other.columns == 0 or (self.ffn_start <= other.ffn_start and other.ffn_stop <= self.ffn_stop)
        return heads and columns


def largest_remainder(total: int, weights: Sequence[float]) -> list[int]:
    """Divide `total` units by weight; the largest fractions get what rounding down leaves (ties: the first).

    Raises:
        PartitionError: A weight that is negative or not a number, or none above 0.
    """
    whole = sum(weights)
    if any(not weight >= 0 for weight in weights) or not 0 < whole < float("inf"):
        raise PartitionError(f"Wanted capabilities >= 0 with a positive sum, found {list(weights)}.")
    exact = [total * weight / whole for weight in weights]
    units = [int(value) for value in exact]
    order = sorted(range(len(weights)), key=lambda i: (units[i] - exact[i], i))
    for index in order[: total - sum(units)]:
        units[index] += 1
    return units


def attention_parameters(config: ModelConfig) -> int:
    """Weights of one key-value group in one layer: q and o of its heads, k and v."""
    return 2 * (config.group + 1) * config.head_dim * config.hidden


def cut(config: ModelConfig, capabilities: Sequence[float]) -> list[Share]:
    """Shares in rank order: groups by largest remainder, then columns so that whole ranks balance as heads cannot.

    Args:
        config: The model.
        capabilities: One relative speed for each rank.

    Raises:
        PartitionError: As `largest_remainder`.
    """
    groups = largest_remainder(config.kv_heads, capabilities)
    group_cost = attention_parameters(config)
    column_cost = 3 * config.hidden
    layer_cost = config.kv_heads * group_cost + config.ffn * column_cost
    fair = [layer_cost * value / sum(capabilities) for value in capabilities]
    room = [max(0.0, wanted - heads * group_cost) for wanted, heads in zip(fair, groups, strict=True)]
    units = largest_remainder(-(-config.ffn // FFN_UNIT), room if sum(room) > 0 else capabilities)
    shares = []
    kv = column = 0
    for heads, count in zip(groups, units, strict=True):
        stop = min(config.ffn, column + count * FFN_UNIT)
        shares.append(Share(kv_start=kv, kv_stop=kv + heads, ffn_start=column, ffn_stop=stop))
        kv, column = kv + heads, stop
    return shares


def held_shares(config: ModelConfig, capabilities: Sequence[float], *, spares: int) -> list[Share]:
    """What each rank keeps on disk so that any `spares` other ranks may be lost: the hull of all its possible shares.

    Rank 0 is the master and is never lost.
    """
    ranks = len(capabilities)
    hull = cut(config, capabilities)
    for lost in range(1, min(spares, ranks - 1) + 1):
        for gone in itertools.combinations(range(1, ranks), lost):
            left = [rank for rank in range(ranks) if rank not in gone]
            for rank, share in zip(left, cut(config, [capabilities[rank] for rank in left]), strict=True):
                hull[rank] = _hull(hull[rank], share)
    return hull


def _hull(one: Share, other: Share) -> Share:
    kv = _join((one.kv_start, one.kv_stop), (other.kv_start, other.kv_stop))
    ffn = _join((one.ffn_start, one.ffn_stop), (other.ffn_start, other.ffn_stop))
    return Share(kv_start=kv[0], kv_stop=kv[1], ffn_start=ffn[0], ffn_stop=ffn[1])


def _join(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    if one[0] == one[1]:
        return other
    if other[0] == other[1]:
        return one
    return min(one[0], other[0]), max(one[1], other[1])
