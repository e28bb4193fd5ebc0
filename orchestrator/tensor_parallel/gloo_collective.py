"""torch.distributed's gloo behind the same interface: a reference, neither encrypted nor authenticated."""

import datetime
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from orchestrator.tensor_parallel.errors import PeerError

Tensor = Any  # torch is untyped here


class GlooCollective:
    """Sums through a gloo group; the order of addition is gloo's.

    Args:
        rank: Own rank in the group, 0 is the master.
        ranks: Size of the group.
        address: host and port of the master's store.
        timeout_s: For each operation.
    """

    def __init__(self, rank: int, ranks: int, address: tuple[str, int], *, timeout_s: float) -> None:
        self._rank = rank
        timeout = datetime.timedelta(seconds=timeout_s)
        try:
            if dist.is_initialized():
                dist.destroy_process_group()
            store = dist.TCPStore(address[0], address[1], ranks, rank == 0, timeout)
            dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=timeout)
        except RuntimeError as error:
            raise PeerError(f"Wanted a gloo group of {ranks} at {address[0]}:{address[1]}, found: {error}") from error

    def allreduce(self, partial: Tensor | None, senders: Sequence[int], shape: tuple[int, int]) -> Tensor:
        """As `Collective.allreduce`.

        Raises:
            PeerError: A rank is lost.
        """
        total = torch.zeros(shape) if partial is None else partial.clone()
        try:
            dist.all_reduce(total)
        except RuntimeError as error:
            raise PeerError(f"Wanted a sum over gloo, found: {error}") from error
        return total

    def reduce(self, partial: Tensor | None, senders: Sequence[int], shape: tuple[int, int]) -> Tensor | None:
        """As `Collective.reduce`; all ranks take part.

        Raises:
            PeerError: A rank is lost.
        """
        total = self.allreduce(partial, senders, shape)
        return total if self._rank == 0 else None

    def close(self) -> None:
        """Leave the group."""
        if dist.is_initialized():
            dist.destroy_process_group()
