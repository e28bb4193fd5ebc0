"""What every rank did in one step, as a Chrome trace (chrome://tracing, https://ui.perfetto.dev)."""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec

from orchestrator.tensor_parallel.errors import OutputError, PeerError

Doing = Literal["compute", "load", "communicate", "wait"]
LIMIT_BYTES = 4 << 20
_LANES: dict[Doing, int] = {"compute": 0, "wait": 0, "communicate": 0, "load": 1}  # loading is a thread of its own


class Span(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """From when to when, in seconds since the step began on this rank."""

    doing: Doing
    name: str
    start_s: float
    stop_s: float


class Recorder:
    """Spans of the last step of a rank; used by computing and by loading at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._began = time.perf_counter()
        self._spans: list[Span] = []

    def begin(self) -> None:
        """Forget the last step."""
        with self._lock:
            self._began, self._spans = time.perf_counter(), []

    def add(self, doing: Doing, name: str, start: float, stop: float) -> None:
        """Add one span; times of `time.perf_counter`."""
        with self._lock:
            self._spans.append(Span(doing, name, max(0.0, start - self._began), max(0.0, stop - self._began)))

    @contextmanager
    def doing(self, what: Doing, name: str) -> Iterator[None]:
        """Add what the block takes."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(what, name, start, time.perf_counter())

    def spans(self) -> tuple[Span, ...]:
        """Those of the last step, in order of their start."""
        with self._lock:
            return tuple(sorted(self._spans, key=lambda span: span.start_s))


def pack_spans(spans: Sequence[Span]) -> bytes:
    """A message."""
    return msgspec.json.encode(spans)


def unpack_spans(data: bytes | bytearray, peer: str) -> tuple[Span, ...]:
    """Spans of a message.

    Raises:
        PeerError: They are not.
    """
    try:
        return msgspec.json.decode(data, type=tuple[Span, ...])
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise PeerError(f"Wanted what {peer} did in the last step, found {error}.") from error


def write_trace(path: Path, ranks: Mapping[str, Sequence[Span]]) -> None:
    """Write a Chrome trace: a process for each rank, loading on a line of its own. Steps begin when each rank got its input.

    Raises:
        OutputError: The file cannot be written.
    """
    events: list[dict[str, object]] = []
    for number, (name, spans) in enumerate(ranks.items()):
        events.append({"ph": "M", "pid": number, "name": "process_name", "args": {"name": f"rank {number}: {name}"}})
        for lane, title in enumerate(("compute", "load")):
            events.append({"ph": "M", "pid": number, "tid": lane, "name": "thread_name", "args": {"name": title}})
        for span in spans:
            start, length = 1e6 * span.start_s, 1e6 * (span.stop_s - span.start_s)
            events.append(
                {"ph": "X", "pid": number, "tid": _LANES[span.doing], "cat": span.doing, "name": span.name, "ts": start, "dur": length}
            )  # fmt: skip
    try:
        path.write_bytes(msgspec.json.encode({"traceEvents": events, "displayTimeUnit": "ms"}))
    except OSError as error:
        raise OutputError(f"Wanted to write the trace, found {error}. Give another --out.") from error
