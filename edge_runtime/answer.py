"""What a request ends with: its outputs, who computed them, and where every millisecond went."""

import math
from typing import Literal

import msgspec
import numpy as np


class Breakdown(msgspec.Struct, frozen=True):
    """Where the time of one request went, in ms, in the order in which it went there; what no stage shows is unaccounted.

    The stages are those of "Beyond Inference" (arXiv 2403.12981). Both ways of the link together are measured by this
    device's clock alone; how they divide is an estimate (`edge_runtime.clock_offset`).
    """

    preprocess_ms: float = 0.0
    head_ms: float = 0.0
    encode_ms: float = 0.0  # entropy coder
    serialise_ms: float = 0.0  # frame, checksum, envelope
    uplink_ms: float = 0.0  # until the host has all of it: socket, broker, network
    queue_ms: float = 0.0  # at the tail, before its turn
    decode_ms: float = 0.0
    tail_ms: float = 0.0
    downlink_ms: float = 0.0  # framing the answer, socket, broker, network
    postprocess_ms: float = 0.0  # reading the answer's frame, ranking the classes
    waited_ms: float = 0.0  # for a tail that did not answer in time
    local_ms: float = 0.0  # the fallback
    total_ms: float = 0.0

    @property
    def link_ms(self) -> float:
        """Both ways: what neither device nor host account for."""
        return self.uplink_ms + self.downlink_ms

    @property
    def unaccounted_ms(self) -> float:
        """The total less every stage: locks, waking up, calls between the stages."""
        stages = [getattr(self, name) for name in self.__struct_fields__ if name != "total_ms"]
        return self.total_ms - math.fsum(stages)

    def as_dict(self) -> dict[str, float]:
        """The stages by name, rounded to microseconds, what is unaccounted before the total."""
        found = {name: round(value, 3) for name, value in msgspec.structs.asdict(self).items()}
        total = found.pop("total_ms")
        return {**found, "unaccounted_ms": round(self.unaccounted_ms, 3), "total_ms": total}


class Answer(msgspec.Struct, frozen=True):
    """Outputs of one request and who computed them (exit: the head's own exit). `bytes_sent` is the payload published, 0 when none was."""

    outputs: list[np.ndarray]
    source: Literal["remote", "local", "exit"]
    breakdown: Breakdown
    bytes_sent: int = 0
    why_local: str | None = None
    plan_id: str | None = None  # of the plan that was followed, where there is a plan table
    trace_id: bytes | None = None  # of a traced request; whoever has the last word on it tells the tracer
