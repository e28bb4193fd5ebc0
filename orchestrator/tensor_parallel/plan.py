"""What a cut will cost before it is made: who holds what, memory of each node, predicted time a token. Pure.

Time a token = compute + waiting for storage + communication. A matrix-vector product reads each weight once, so compute
is bytes over the memory bandwidth that such a product reaches. Sums, two for each layer, take what `choice` says.
"""

from collections.abc import Sequence

import msgspec

from device_profiles.link import Link
from orchestrator.tensor_parallel.choice import Measured, choose, collective_ms
from orchestrator.tensor_parallel.config import ModelConfig
from orchestrator.tensor_parallel.errors import MemoryLimitError
from orchestrator.tensor_parallel.loads import rank_loads
from orchestrator.tensor_parallel.memory import TYPICAL_BASE_BYTES, plan_memory
from orchestrator.tensor_parallel.nodes import Node
from orchestrator.tensor_parallel.partition import Share, cut
from orchestrator.tensor_parallel.payload import payload_bytes
from orchestrator.tensor_parallel.protocol import RunSettings

DEFAULT_READ_MB_PER_S = 10_000.0
DEFAULT_STORAGE_MB_PER_S = 200.0


class NodePlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One node of a plan; times in milliseconds a token."""

    name: str
    share: Share
    memory_bytes: int
    limit_bytes: int | None
    resident_bytes: int
    streamed_bytes: int
    compute_ms: float
    storage_ms: float


class ClusterPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A way to run the model; times in milliseconds a token."""

    nodes: tuple[NodePlan, ...]
    communication_ms: float
    token_ms: float


class Comparison(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The plan over all nodes, that on the master alone (null: it does not fit), and which to use."""

    cluster: ClusterPlan
    alone: ClusterPlan | None
    alone_is_faster: bool
    reason: str
    refused: str | None = None  # why the master alone does not work


def plan_cluster(config: ModelConfig, nodes: Sequence[Node], link: Link, settings: RunSettings) -> ClusterPlan:
    """Predict one way to run the model; the slowest node counts, and loading hides behind the rest of the step.

    Raises:
        MemoryLimitError: A node's limit cannot be kept; the message names the number that would work.
        PartitionError: No capability above 0.
    """
    shares = cut(config, [node.capability for node in nodes])
    ranks = len(nodes)
    planned = [
        _plan_node(config, node, share, settings, ranks=ranks, master=rank == 0)
        for rank, (node, share) in enumerate(zip(nodes, shares, strict=True))
    ]
    nbytes, measured = payload_bytes(settings.payload, (1, config.hidden)), Measured(link.rtt_ms, link.up_bytes_per_s)
    chosen = choose(ranks, nbytes, measured)
    communication_ms = (2 * config.layers + 1) * collective_ms(chosen, ranks, nbytes, measured)
    computed_ms = max(node.compute_ms for node in planned) + communication_ms
    token_ms = max(computed_ms, *(node.storage_ms for node in planned))
    return ClusterPlan(nodes=tuple(planned), communication_ms=communication_ms, token_ms=token_ms)


def compare(config: ModelConfig, nodes: Sequence[Node], link: Link, settings: RunSettings) -> Comparison:
    """The cluster against its master alone: where a model fits one device, one device usually wins.

    Raises:
        MemoryLimitError: The cluster cannot run it either.
    """
    cluster = plan_cluster(config, nodes, link, settings)
    if len(nodes) == 1:
        return Comparison(cluster=cluster, alone=cluster, alone_is_faster=True, reason="there is one node")
    try:
        alone = plan_cluster(config, nodes[:1], link, settings)
    except MemoryLimitError as error:
        reason = f"{nodes[0].name} alone cannot keep its memory limit"
        return Comparison(cluster=cluster, alone=None, alone_is_faster=False, reason=reason, refused=str(error))
    faster = alone.token_ms <= cluster.token_ms
    return Comparison(
        cluster=cluster, alone=alone, alone_is_faster=faster, reason=_reason(cluster, alone, nodes, config)
    )


def _reason(cluster: ClusterPlan, alone: ClusterPlan, nodes: Sequence[Node], config: ModelConfig) -> str:
    saved_ms = alone.token_ms - (cluster.token_ms - cluster.communication_ms)
    even = saved_ms / (2 * config.layers + 1)
    verdict = (
        f"{nodes[0].name} alone takes {alone.token_ms:.0f} ms a token, {len(nodes)} nodes {cluster.token_ms:.0f} ms, "
        f"of which {cluster.communication_ms:.0f} ms communication"
    )
    if even <= 0:
        return f"{verdict}; several nodes would not pay off over any link"
    return f"{verdict}; several nodes pay off when a message takes less than {even:.2f} ms"


def _plan_node(
    config: ModelConfig, node: Node, share: Share, settings: RunSettings, *, ranks: int, master: bool
) -> NodePlan:
    loads = rank_loads(config, share, share, master=master, paper=settings.paper)
    try:
        memory = plan_memory(
            config, share, loads, settings,
            ranks=ranks, master=master, limit=node.memory_bytes, base=TYPICAL_BASE_BYTES,
        )  # fmt: skip
    except MemoryLimitError as error:
        raise MemoryLimitError(f"{node.name}: {error}") from error
    read = (node.read_mb_per_s or DEFAULT_READ_MB_PER_S) * 1e3  # bytes per millisecond
    storage = (node.storage_mb_per_s or DEFAULT_STORAGE_MB_PER_S) * 1e3
    return NodePlan(
        name=node.name,
        share=share,
        memory_bytes=memory.total,
        limit_bytes=node.memory_bytes,
        resident_bytes=memory.resident,
        streamed_bytes=memory.streamed,
        compute_ms=(memory.resident + memory.streamed) / read,
        storage_ms=memory.streamed / storage,
    )
