"""What a tail server counts: totals, and for each model how many requests, bytes and milliseconds. Under the server's lock."""

import bisect
from dataclasses import dataclass, field

from edge_runtime.offload import Estimate
from edge_runtime.tail_messages import TAIL_BOUNDS_MS, TailModel


@dataclass(slots=True)
class ServerCounters:
    """What became of the requests since the start."""

    received: int = 0
    answered: int = 0
    busy: int = 0
    expired: int = 0
    refused: int = 0  # unknown model, not decodable, model failed


@dataclass(slots=True)
class ModelStatistics:
    """Of one model: answered requests, and the sums from which means over any time are computed."""

    name: str
    keys: tuple[str, ...]
    answered: int = 0
    batches: int = 0
    bytes_in: int = 0
    queue_us: int = 0
    decode_us: int = 0
    tail_us: int = 0
    counts: list[int] = field(default_factory=lambda: [0] * (len(TAIL_BOUNDS_MS) + 1))
    estimate: Estimate | None = None  # of one run

    def add(self, size: int, queue_us: int, decode_us: int, tail_us: int) -> None:
        """One answered request."""
        self.answered += 1
        self.bytes_in += size
        self.queue_us += queue_us
        self.decode_us += decode_us
        self.tail_us += tail_us
        self.counts[bisect.bisect_left(TAIL_BOUNDS_MS, (queue_us + decode_us + tail_us) / 1000)] += 1

    def ran(self, seconds: float) -> None:
        """One run of the model, of one request or a batch."""
        self.batches += 1
        if self.estimate is None:
            self.estimate = Estimate(seconds)
        else:
            self.estimate.add(seconds)

    def as_message(self) -> TailModel:
        """The figures as they are published."""
        return TailModel(
            name=self.name[:500],
            keys=self.keys[:64],
            answered=self.answered,
            batches=self.batches,
            bytes_in=self.bytes_in,
            queue_us=self.queue_us,
            decode_us=self.decode_us,
            tail_us=self.tail_us,
            counts=tuple(self.counts),
        )
