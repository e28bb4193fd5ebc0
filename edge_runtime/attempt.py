"""One offloaded request under way: its deadline, and what each stage took so far."""

import math
import os
import time
from dataclasses import dataclass

from edge_runtime.answer import Breakdown
from edge_runtime.early_exit import ExitAnswer
from edge_runtime.local_model import LocalInputs
from edge_runtime.offload import OffloadError
from edge_runtime.tracing import Tracer


@dataclass(slots=True)
class Attempt:
    """Seconds of the monotonic clock, and milliseconds of stages. Zero: not yet."""

    started: float
    deadline: float
    sent_at: float = 0.0
    answered_at: float = 0.0  # when the network thread had the reply
    head_ms: float = 0.0
    encode_ms: float = 0.0
    serialise_ms: float = 0.0
    bytes_sent: int = 0
    leaving: ExitAnswer | None = None  # where the head has an exit
    trace_id: bytes | None = None  # where it is traced: the request's id
    local: LocalInputs | None = None  # where a whole model here could answer

    @staticmethod
    def begin(deadline_ms: float, tracer: Tracer | None, local: LocalInputs | None) -> "Attempt":
        """One that begins now.

        Raises:
            OffloadError: A deadline that is no finite number of ms.
        """
        now = time.perf_counter()
        if not math.isfinite(deadline_ms):
            raise OffloadError(f"Wanted a finite deadline in ms, found {deadline_ms}.")
        trace_id = os.urandom(16) if tracer is not None and tracer.wants() else None
        return Attempt(now, now + deadline_ms / 1000, trace_id=trace_id, local=local)

    def breakdown(self, **stages: float) -> Breakdown:
        """What is known of it already, these stages, and the time since it began."""
        return Breakdown(
            head_ms=self.head_ms,
            encode_ms=self.encode_ms,
            serialise_ms=self.serialise_ms,
            total_ms=ms_since(self.started),
            **stages,
        )


def ms_since(begun: float) -> float:
    """Milliseconds since a reading of the monotonic clock."""
    return 1000 * (time.perf_counter() - begun)
