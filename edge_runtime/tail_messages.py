"""What tail workers say of themselves on `up/tail`, and what they offer to devices; topics are in messages.py."""

from typing import Annotated

import msgspec

from edge_runtime.messages import Boot, Count, Message, Text

HOST_TENANT = "_host"  # of programs that are no device
TAIL_BOUNDS_MS = (
    0.5,
    1.0,
    2.0,
    5.0,
    10.0,
    20.0,
    50.0,
    100.0,
    200.0,
    500.0,
    1000.0,
)  # the last count is of longer times


class TailModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a tail worker did for one model since its start: sums, so that a mean over any time can be computed."""

    name: Text
    keys: Annotated[tuple[Boot, ...], msgspec.Meta(max_length=64)]
    answered: Count
    batches: Count  # runs of the model
    bytes_in: Count
    queue_us: Count
    decode_us: Count
    tail_us: Count
    counts: Annotated[tuple[Count, ...], msgspec.Meta(max_length=32)]  # requests by ms at the tail, see TAIL_BOUNDS_MS


class TailBeat(Message, frozen=True, kw_only=True):
    """Every few seconds while a tail worker runs; in the tenant `_host`, with the worker as the device."""

    seq: Count
    uptime_s: float
    workers: Count  # threads
    waiting: Count
    received: Count
    answered: Count
    busy: Count
    expired: Count
    refused: Count
    rss_bytes: Count | None
    models: Annotated[tuple[TailModel, ...], msgspec.Meta(max_length=32)]


class DirectOffer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A tail's answer to a device that asks for the direct data plane (docs/wire.md)."""

    endpoint: Annotated[str, msgspec.Meta(pattern=r"^tcp://[^\s/]{1,255}:[0-9]{1,5}$")]
    server_key: Annotated[str, msgspec.Meta(min_length=40, max_length=40)]  # CURVE public key, Z85
