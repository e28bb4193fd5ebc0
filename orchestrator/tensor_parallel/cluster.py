"""The master's view of its nodes: who answers, what each computes, and an epoch of connections over which they do."""

import contextlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec

from device_profiles.errors import EdgeError
from edge_runtime.broker_url import is_loopback_host
from orchestrator.tensor_parallel.choice import choose, describe
from orchestrator.tensor_parallel.collectives import Collective, MeshCollective, StarCollective
from orchestrator.tensor_parallel.dial import CONNECT_S, DIAL_S, answers, dial
from orchestrator.tensor_parallel.errors import MemoryLimitError, NodesLostError, PartitionError, PeerError, ShardError
from orchestrator.tensor_parallel.nodes import Node
from orchestrator.tensor_parallel.partition import Share, cut
from orchestrator.tensor_parallel.peer_link import Link, receive_control, send, send_control
from orchestrator.tensor_parallel.probe import measure_links
from orchestrator.tensor_parallel.protocol import (
    CHUNK_BYTES,
    Assign,
    Connect,
    Hello,
    Kind,
    Member,
    Need,
    Ready,
    Refused,
    RunSettings,
)
from orchestrator.tensor_parallel.secure import Keys
from orchestrator.tensor_parallel.shard_set import ShardSet, read_index, read_set

log = logging.getLogger(__name__)

_REFUSALS = {error.__name__: error for error in (MemoryLimitError, ShardError)}
_SLOWEST_STORAGE = 20 << 20  # bytes per second that loading may take at worst

Stage = Literal["fetch", "load"]
Progress = Callable[[str, Stage, int, int], None]  # node, what it does, bytes done, bytes in all
Locate = Callable[[str], str | None]  # name to host:port


@dataclass
class Epoch:
    """Connections and shares that hold until a rank is lost."""

    number: int
    members: tuple[Member, ...]
    links: dict[int, Link]
    collective: Collective
    ready: dict[int, Ready] = field(default_factory=dict)

    def close(self) -> None:
        """Throw all connections away."""
        for link in self.links.values():
            link.close()
        self.collective.close()


class Cluster:
    """Nodes of a shard set, the master first.

    Args:
        folder: The shard set, with the files of all ranks where workers should fetch them.
        nodes: In the set's order.
        keys: The cluster's; null for a master alone.
        settings: Of every epoch.
        progress: Called while nodes fetch and load weights.
        locate: Where a node announces itself now, if it does; that goes before the address in `nodes`.

    Raises:
        ShardError: The set is damaged.
        PartitionError: The nodes are not those of the set.
    """

    def __init__(
        self,
        folder: Path,
        nodes: tuple[Node, ...],
        keys: Keys | None,
        settings: RunSettings,
        *,
        progress: Progress | None = None,
        locate: Locate | None = None,
    ) -> None:
        self._locate = locate
        self.folder, self.nodes, self.settings = folder, nodes, settings
        self.shard_set: ShardSet = read_set(folder)
        self._keys, self._progress = keys, progress
        # Workers remember no epochs; a random start keeps those of a former master apart.
        self._number = int.from_bytes(os.urandom(3), "little")
        self.alive: set[int] = set()
        names, wanted = [node.name for node in nodes], [node.name for node in self.shard_set.nodes]
        if names != wanted:
            raise PartitionError(f"Wanted the nodes of the set, {wanted}, found {names}. Shard again for these nodes.")
        if len(nodes) > 1 and keys is None:
            raise PartitionError("Wanted a key file for a cluster of several nodes, found none. Give --key.")
        remote = [node.name for node in nodes[1:] if not is_loopback_host(node.host_port()[0])]
        if settings.collective == "gloo" and remote:
            raise PartitionError(
                f"Wanted gloo on this machine alone (it neither encrypts nor authenticates), found the nodes {', '.join(remote)}. "
                "Use --collective mesh."
            )

    def begin(self, *, require_all: bool = False) -> Epoch:
        """Connect to every node that answers, divide the model among them, and wait until all are ready.

        A node that fails meanwhile is left out and the others begin again.

        Args:
            require_all: A node that does not answer, or fails, is an error instead.

        Raises:
            PeerError: With `require_all`, the first node that failed.
            NodesLostError: Those that are left do not hold the whole model.
            MemoryLimitError: A node cannot keep its limit, and the others do not suffice.
            ShardError: A node's weights are damaged, and the others do not suffice.
        """
        dead: set[int] = set()
        refused: EdgeError | None = None
        while True:
            self._number = (self._number + 1) & 0xFFFFFFFF
            links = self._dial_all(dead, require_all=require_all)
            self.alive = {0, *links}
            with contextlib.ExitStack() as undo:
                undo.callback(_close, links)
                try:
                    epoch = self._assign(links)
                except _NodeError as failed:
                    if require_all:
                        raise failed.cause from failed
                    log.warning("node %s is left out: %s", self.nodes[failed.rank].name, failed)
                    dead.add(failed.rank)
                    refused = refused or (None if isinstance(failed.cause, PeerError) else failed.cause)
                    continue
                except NodesLostError as lost:
                    if refused is not None:  # a node is there and could not: that is what is wrong
                        raise refused from lost
                    raise
                undo.pop_all()
                return epoch

    def came_back(self) -> bool:
        """Whether a node that is not part of the epoch answers now."""
        self._refresh()
        gone = [node for rank, node in enumerate(self.nodes) if rank not in self.alive]
        return self._keys is not None and any(answers(node.host_port(), self._keys, timeout_s=0.2) for node in gone)

    def shares(self, alive: list[int]) -> dict[int, Share]:
        """What each of these ranks computes.

        Raises:
            NodesLostError: A rank would compute what it does not hold.
        """
        entries = self.shard_set.nodes
        shares = dict(zip(alive, cut(self.shard_set.config, [entries[r].capability for r in alive]), strict=True))
        lacking = [entries[rank].name for rank, share in shares.items() if not entries[rank].held.covers(share)]
        if lacking:
            gone = [entry.name for rank, entry in enumerate(entries) if rank not in shares]
            raise NodesLostError(
                f"Wanted the whole model among {', '.join(entries[r].name for r in alive)}, found that "
                f"{', '.join(lacking)} lacks weights that {', '.join(gone)} had. Start {' or '.join(gone)} again, "
                "or shard with more --spares."
            )
        return shares

    def _refresh(self) -> None:
        """Take over addresses that nodes announce."""
        if self._locate is not None:
            found = [(node, self._locate(node.name)) for node in self.nodes[1:]]
            moved = (node if at is None else msgspec.structs.replace(node, address=at) for node, at in found)
            self.nodes = (self.nodes[0], *moved)

    def _dial_all(self, dead: set[int], *, require_all: bool) -> dict[int, Link]:
        self._refresh()
        links = {}
        hello = Hello(rank=0, epoch=self._number)
        for rank, node in enumerate(self.nodes[1:], start=1):
            if rank in dead or self._keys is None:
                continue
            try:
                address = node.host_port()
                links[rank] = dial(address, self._keys, hello, peer=node.name, timeout_s=DIAL_S, connect_s=CONNECT_S)
            except PeerError as error:
                if require_all:
                    _close(links)
                    raise
                log.warning("node %s does not answer: %s", node.name, error)
        return links

    def _assign(self, links: dict[int, Link]) -> Epoch:
        shares = self.shares(sorted({0, *links}))
        members = tuple(self._member(rank, share) for rank, share in shares.items() if rank == 0 or _computes(share))
        members_ranks = {member.rank for member in members}
        for rank in [rank for rank in links if rank not in members_ranks]:
            links.pop(rank).close()  # nothing to compute: it is not asked to
        settings = self._chosen(links)
        for rank, link in links.items():
            assign = Assign(
                shard_set=self.shard_set,
                index=read_index(self.folder, rank, self.shard_set),
                rank=rank,
                members=members,
                settings=settings,
                memory_limit=self.nodes[rank].memory_bytes,
            )
            with _blaming(rank):
                send_control(link, assign, timeout_s=self.settings.deadline_s)
        ready = {}
        for rank, link in links.items():
            with _blaming(rank):
                self._send_weights(rank, link)
                self._tell(link.peer, "load", 0, 1)  # how far it is, a worker does not say
                ready[rank] = self._expect_ready(link, self._load_timeout(rank))
                self._tell(link.peer, "load", 1, 1)
        return Epoch(self._number, members, links, self._connect(links, members, settings.collective), ready)

    def _chosen(self, links: dict[int, Link]) -> RunSettings:
        """The settings with `auto` decided by what the links take."""
        if self.settings.collective != "auto":
            return self.settings
        if not links:
            return msgspec.structs.replace(self.settings, collective="mesh")
        one_machine = all(is_loopback_host(self.nodes[rank].host_port()[0]) for rank in links)
        measured = measure_links(links, one_machine=one_machine, timeout_s=self.settings.deadline_s)
        ranks, nbytes = 1 + len(links), 4 * self.shard_set.config.hidden
        chosen = choose(ranks, nbytes, measured)
        log.info("%s", describe(chosen, ranks, nbytes, measured))
        return msgspec.structs.replace(self.settings, collective=chosen)

    def _connect(self, links: dict[int, Link], members: tuple[Member, ...], kind: str) -> Collective:
        timeout_s = self.settings.deadline_s
        for rank, link in links.items():
            with _blaming(rank):
                send_control(link, Connect(), timeout_s=timeout_s)
        collective: Collective
        if kind == "gloo":
            from orchestrator.tensor_parallel.gloo_collective import GlooCollective

            address = (members[0].host, self.settings.gloo_port)
            collective = GlooCollective(0, len(members), address, timeout_s=timeout_s)
        elif kind in ("star", "paper"):
            in_turn = kind == "paper"
            collective = StarCollective(0, links, timeout_s=timeout_s, in_turn=in_turn, payload=self.settings.payload)
        else:
            collective = MeshCollective(0, links, timeout_s=timeout_s, payload=self.settings.payload)
        for rank, link in links.items():
            with _blaming(rank):
                self._expect_ready(link, timeout_s + 1.0)
        return collective

    def _member(self, rank: int, share: Share) -> Member:
        node = self.nodes[rank]
        host, port = node.host_port() if rank else ((node.address or "127.0.0.1").rpartition(":")[0] or "127.0.0.1", 0)
        return Member(rank=rank, name=node.name, host=host, port=port, share=share)

    def _send_weights(self, rank: int, link: Link) -> None:
        """Send what a worker lacks of its file."""
        need = receive_control(link, timeout_s=self._load_timeout(rank))
        if isinstance(need, Refused):
            raise _refusal(link.peer, need)
        if not isinstance(need, Need):
            raise PeerError(f"Wanted {link.peer} to say what it needs, found {type(need).__name__}.")
        total = read_index(self.folder, rank, self.shard_set).nbytes
        if need.offset >= total:
            return
        path = self.folder / f"rank{rank}.bin"
        try:
            with path.open("rb") as stream:
                stream.seek(need.offset)
                sent = need.offset
                while chunk := stream.read(CHUNK_BYTES):
                    send(link, Kind.WEIGHTS, chunk, timeout_s=max(30.0, self.settings.deadline_s))
                    sent += len(chunk)
                    self._tell(link.peer, "fetch", sent, total)
        except OSError as error:
            raise ShardError(f"Wanted the weights of {link.peer} to send, found {error} at {path}.") from error

    def _tell(self, node: str, stage: Stage, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress(node, stage, done, total)

    def _expect_ready(self, link: Link, timeout_s: float) -> Ready:
        answer = receive_control(link, timeout_s=timeout_s)
        if isinstance(answer, Refused):
            raise _refusal(link.peer, answer)
        if not isinstance(answer, Ready):
            raise PeerError(f"Wanted {link.peer} to be ready, found {type(answer).__name__}.")
        return answer

    def _load_timeout(self, rank: int) -> float:
        total = sum(block.nbytes for block in self.shard_set.blocks(rank))
        return self.settings.deadline_s + 2 * total / _SLOWEST_STORAGE


class _NodeError(PeerError):
    """A node failed, or refused, while an epoch began."""

    def __init__(self, rank: int, cause: EdgeError) -> None:
        super().__init__(str(cause))
        self.rank, self.cause = rank, cause


class _blaming:
    """Name the rank behind what a peer did or said."""

    def __init__(self, rank: int) -> None:
        self._rank = rank

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Chain what is a peer's fault."""
        if isinstance(error, PeerError | MemoryLimitError | ShardError):
            raise _NodeError(self._rank, error) from error


def _refusal(peer: str, refused: Refused) -> EdgeError:
    kind = _REFUSALS.get(refused.kind)
    return PeerError(f"{peer} refused: {refused.message}") if kind is None else kind(f"{peer}: {refused.message}")


def _computes(share: Share) -> bool:
    return share.kv_heads > 0 or share.columns > 0


def _close(links: dict[int, Link]) -> None:
    for link in links.values():
        link.close()
