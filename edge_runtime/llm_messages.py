"""What the nodes of a language model say on MQTT: control alone, tensors go from node to node. Topics are in messages.py."""

from typing import Annotated, Literal

import msgspec

from edge_runtime.messages import Count, Message, Text


class LlmNode(Message, frozen=True, kw_only=True):
    """A worker is there: retained on `up/llm`, sent at every change; the will says that it is gone."""

    address: Text  # host:port for the cluster's own protocol, whose key a stranger lacks
    state: Literal["waiting", "computing", "gone"]
    epoch: Count = 0
    resident_bytes: Count = 0  # weights in memory
    memory_limit: Count | None = None
    read_mb_per_s: Count = 0  # weights in a product with one token, as measured there; 0: not measured


class LlmMember(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one node computes."""

    name: Text
    kv_heads: Count
    columns: Count


class LlmPlan(Message, frozen=True, kw_only=True):
    """How a master divides a model now: retained on `up/llm-plan`, sent at every epoch; `gone` by the will."""

    model: Text
    set_id: Text
    epoch: Count
    members: Annotated[tuple[LlmMember, ...], msgspec.Meta(max_length=64)]
    gone: bool = False
