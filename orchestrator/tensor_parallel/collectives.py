"""Sums over all ranks, in rank order, so that every rank holds the same bits. One exchange (mesh) or through the master (star)."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from orchestrator.tensor_parallel.errors import PeerError
from orchestrator.tensor_parallel.payload import Payload, decode, encode, payload_bytes, rounded
from orchestrator.tensor_parallel.peer_link import Link, move
from orchestrator.tensor_parallel.protocol import Kind

Tensor = Any  # torch is untyped here


class Collective(Protocol):
    """What a rank needs of the others in a step."""

    def allreduce(self, partial: Tensor | None, senders: Sequence[int], shape: tuple[int, int]) -> Tensor:
        """The sum over `senders`, on every rank. A rank that is no sender gives null."""
        ...

    def reduce(self, partial: Tensor | None, senders: Sequence[int], shape: tuple[int, int]) -> Tensor | None:
        """The sum over `senders` on the master, null elsewhere."""
        ...

    def close(self) -> None:
        """Let go of connections that this collective made itself."""
        ...


class MeshCollective:
    """Every rank sends its partial to all others and adds up: one trip. The final sum goes to the master alone.

    Args:
        rank: Own rank.
        links: The other ranks'.
        timeout_s: For each exchange.
        payload: How partial sums cross the network.
    """

    def __init__(self, rank: int, links: Mapping[int, Link], *, timeout_s: float, payload: Payload = "float32") -> None:
        self._rank, self._links, self._timeout_s, self._payload = rank, dict(links), timeout_s, payload
        self._sequence = 0

    def allreduce(self, partial: Tensor | None, senders: Sequence[int], shape: tuple[int, int]) -> Tensor:
        """As `Collective.allreduce`.

        Raises:
            PeerError: A rank is lost.
        """
        return self._sum(partial, senders, shape, to=list(self._links))

    def reduce(self, partial: Tensor | None, senders: Sequence[int], shape: tuple[int, int]) -> Tensor | None:
        """As `Collective.reduce`.

        Raises:
            PeerError: A rank is lost.
        """
        if self._rank == 0:
            return self._sum(partial, senders, shape, to=[])
        self._sum(partial, [], shape, to=[0])
        return None

    def close(self) -> None:
        """Links belong to whoever made them."""

    def _sum(self, partial: Tensor | None, senders: Sequence[int], shape: tuple[int, int], to: list[int]) -> Tensor:
        sequence = self._sequence = (self._sequence + 1) & 0xFFFFFFFF
        sending = [self._links[rank] for rank in to] if partial is not None else []
        receiving = {rank: self._links[rank] for rank in senders if rank != self._rank}
        nbytes = payload_bytes(self._payload, shape)
        if sending:
            payload = encode(partial, self._payload)
            for link in sending:
                link.begin_send(Kind.PARTIAL, payload, sequence=sequence)
        for link in receiving.values():
            link.begin_receive(Kind.PARTIAL, sequence=sequence, limit=nbytes)
        move(sending, list(receiving.values()), timeout_s=self._timeout_s)
        parts = {rank: _tensor_of(link, shape, self._payload) for rank, link in receiving.items()}
        if partial is not None:
            parts[self._rank] = rounded(partial, self._payload)
        return sum_in_order(parts, senders)


class StarCollective:
    """Workers send to the master, which adds up and sends the sum back: two trips, 2 (N - 1) messages.

    Args:
        rank: Own rank.
        links: To the master; on the master, to every worker.
        timeout_s: For each exchange.
        in_turn: The master reads worker after worker, and sends to worker after worker, as TPI-LLM does.
        payload: How partial sums cross the network; totals are sent as they are.
    """

    def __init__(
        self,
        rank: int,
        links: Mapping[int, Link],
        *,
        timeout_s: float,
        in_turn: bool = False,
        payload: Payload = "float32",
    ) -> None:
        self._rank, self._links, self._timeout_s, self._in_turn = rank, dict(links), timeout_s, in_turn
        self._payload = payload
        self._sequence = 0

    def allreduce(self, partial: Tensor | None, senders: Sequence[int], shape: tuple[int, int]) -> Tensor:
        """As `Collective.allreduce`.

        Raises:
            PeerError: A rank is lost.
        """
        total = self.reduce(partial, senders, shape)
        links = list(self._links.values())
        if total is not None:
            payload = encode(total, "float32")
            for link in links:
                link.begin_send(Kind.PARTIAL, payload, sequence=self._sequence)
            self._move(links, [])
            return total
        links[0].begin_receive(Kind.PARTIAL, sequence=self._sequence, limit=4 * shape[0] * shape[1])
        self._move([], links)
        return _tensor_of(links[0], shape, "float32")

    def reduce(self, partial: Tensor | None, senders: Sequence[int], shape: tuple[int, int]) -> Tensor | None:
        """As `Collective.reduce`.

        Raises:
            PeerError: A rank is lost.
        """
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF
        if self._rank:
            if partial is not None:
                link = self._links[0]
                link.begin_send(Kind.PARTIAL, encode(partial, self._payload), sequence=self._sequence)
                self._move([link], [])
            return None
        receiving = {rank: self._links[rank] for rank in senders if rank != 0}
        for link in receiving.values():
            link.begin_receive(Kind.PARTIAL, sequence=self._sequence, limit=payload_bytes(self._payload, shape))
        self._move([], list(receiving.values()))
        parts = {rank: _tensor_of(link, shape, self._payload) for rank, link in receiving.items()}
        if partial is not None:
            parts[0] = rounded(partial, self._payload)
        return sum_in_order(parts, senders)

    def close(self) -> None:
        """Links belong to whoever made them."""

    def _move(self, sending: list[Link], receiving: list[Link]) -> None:
        if not self._in_turn:
            move(sending, receiving, timeout_s=self._timeout_s)
            return
        for link in sending:
            move([link], [], timeout_s=self._timeout_s)
        for link in receiving:
            move([], [link], timeout_s=self._timeout_s)


def sum_in_order(parts: Mapping[int, Tensor], senders: Sequence[int]) -> Tensor:
    """Add in the order of `senders`; null for no sender."""
    total = None
    for rank in senders:
        total = parts[rank] if total is None else total + parts[rank]
    return total


def _tensor_of(link: Link, shape: tuple[int, int], payload: Payload) -> Tensor:
    body = link.taken()
    if len(body) != payload_bytes(payload, shape):
        raise PeerError(f"Wanted {shape} {payload} values from {link.peer}, found {len(body)} B.")
    return decode(body, shape, payload)
