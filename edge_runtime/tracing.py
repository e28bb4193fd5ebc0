"""Traces of requests across device and host: what is traced, and how its stages lie in time. Knows no tracing library.

A traced request carries a flag, and its request id is the id of the trace; the id of its outermost span follows from
that (`root_span_id`), so the host's spans find their place without a message more. Untraced requests cost nothing.
"""

import hashlib
from typing import Protocol

import msgspec

from edge_runtime.answer import Answer, Breakdown

HOST_STAGES = frozenset({"queue", "decode", "tail"})  # the host tells of these itself


class Tracer(Protocol):
    """Notes what became of traced requests; called from the threads that ask."""

    def wants(self) -> bool:
        """Whether the next request is to be traced."""

    def finished(self, answer: Answer) -> None:
        """A traced request has just ended with this answer."""

    def failed(self, trace_id: bytes, seconds: float, error: Exception) -> None:
        """A traced request has just ended without an answer, after so long."""

    def close(self) -> None:
        """Send what waits."""


class Stage(msgspec.Struct, frozen=True):
    """One stage of a request; nanoseconds since the request began."""

    name: str
    start_ns: int
    end_ns: int


def root_span_id(trace_id: bytes) -> int:
    """Id of the span that stands for the whole request: the first 8 bytes of its trace id's sha256, big-endian."""
    return int.from_bytes(hashlib.sha256(trace_id).digest()[:8], "big") or 1


def lay_out(breakdown: Breakdown) -> list[Stage]:
    """The stages that took any time, one after the other in the order in which they happen.

    What no stage accounts for lies at the end, so a stage begins at most that much later than shown.
    """
    stages, at_ns = [], 0
    for name in breakdown.__struct_fields__:
        duration_ns = round(1e6 * getattr(breakdown, name))
        if name == "total_ms" or duration_ns <= 0:
            continue
        stages.append(Stage(name.removesuffix("_ms"), at_ns, at_ns + duration_ns))
        at_ns += duration_ns
    return stages
