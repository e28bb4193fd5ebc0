"""What a request ends with: its outputs, who computed them, and where the time went."""

from typing import Literal

import msgspec
import numpy as np


class Breakdown(msgspec.Struct, frozen=True):
    """Where the time of one request went, in ms; what is measured nowhere else is `link_ms`: broker, network, threads."""

    head_ms: float = 0.0
    encode_ms: float = 0.0
    link_ms: float = 0.0
    queue_ms: float = 0.0  # at the tail, before its turn
    decode_ms: float = 0.0
    tail_ms: float = 0.0
    local_ms: float = 0.0  # the fallback
    total_ms: float = 0.0

    def as_dict(self) -> dict[str, float]:
        """The stages by name, rounded to microseconds."""
        return {name: round(value, 3) for name, value in msgspec.structs.asdict(self).items()}


class Answer(msgspec.Struct, frozen=True):
    """Outputs of one request and who computed them. `bytes_sent` is the payload published, 0 when none was."""

    outputs: list[np.ndarray]
    source: Literal["remote", "local"]
    breakdown: Breakdown
    bytes_sent: int = 0
    why_local: str | None = None
