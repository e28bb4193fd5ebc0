"""Traces as OpenTelemetry spans, sent to a collector (OTLP over HTTP) or written to a file. Needs `headtail[traces]`."""

import logging
import random
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import IdGenerator, RandomIdGenerator
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from edge_runtime.answer import Answer
from edge_runtime.trace_target import TraceTarget, TraceTargetError
from edge_runtime.tracing import HOST_STAGES, lay_out, root_span_id

log = logging.getLogger(__name__)


class OtelTracer:
    """Makes the spans of requests, on a device or on the host.

    Args:
        target: Where spans go.
        service: Name of this program in them.
        share: Of a device's requests that are traced; a host traces what a device asks it to.
        attributes: Of the program, such as the device's name.

    Raises:
        TraceTargetError: The file cannot be written, or the exporter is not installed.
    """

    def __init__(
        self, target: TraceTarget, service: str, *, share: float = 1.0, attributes: dict[str, str] | None = None
    ) -> None:
        self._share = share
        self._ids = _ChosenIds()
        resource = Resource.create({"service.name": service, **(attributes or {})})
        self._provider = TracerProvider(resource=resource, id_generator=self._ids, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(_exporter(target)))
        self._tracer = self._provider.get_tracer("headtail")

    def wants(self) -> bool:
        """Whether the next request is to be traced."""
        return self._share >= 1 or random.random() < self._share

    def finished(self, answer: Answer) -> None:
        """A traced request has just ended: one span for it, and one for each stage on this side."""
        if answer.trace_id is None:
            return
        begun_ns = time.time_ns() - round(1e6 * answer.breakdown.total_ms)
        attributes: dict[str, str | int] = {"headtail.source": answer.source, "headtail.bytes_sent": answer.bytes_sent}
        if answer.why_local is not None:
            attributes["headtail.why_local"] = answer.why_local[:500]
        if answer.plan_id is not None:
            attributes["headtail.plan"] = answer.plan_id
        root = self._root(answer.trace_id, begun_ns, attributes)
        context = trace.set_span_in_context(root)
        for stage in lay_out(answer.breakdown):
            if stage.name not in HOST_STAGES:
                span = self._tracer.start_span(stage.name, context, start_time=begun_ns + stage.start_ns)
                span.end(begun_ns + stage.end_ns)
        root.end(begun_ns + round(1e6 * answer.breakdown.total_ms))

    def failed(self, trace_id: bytes, seconds: float, error: Exception) -> None:
        """A traced request has just ended without an answer."""
        now_ns = time.time_ns()
        root = self._root(trace_id, now_ns - round(1e9 * seconds), {"headtail.source": "error"})
        root.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {error}"[:500]))
        root.end(now_ns)

    def served(self, trace_id: bytes, model: str, times: Sequence[float]) -> None:
        """The host's part of a request, below the device's span.

        Args:
            trace_id: The request's id.
            model: Its name.
            times: When it was received, taken, decoded and had run (perf_counter).
        """
        offset_ns = time.time_ns() - time.perf_counter_ns()
        points = [offset_ns + round(1e9 * at) for at in times]
        parent = SpanContext(
            int.from_bytes(trace_id, "big"), root_span_id(trace_id), is_remote=True, trace_flags=TraceFlags(1)
        )
        context = trace.set_span_in_context(NonRecordingSpan(parent))
        serve = self._tracer.start_span(
            "serve", context, SpanKind.SERVER, {"headtail.model": model[:500]}, start_time=points[0]
        )
        inside = trace.set_span_in_context(serve)
        for name, start_ns, end_ns in zip(("queue", "decode", "tail"), points, points[1:], strict=False):
            self._tracer.start_span(name, inside, start_time=start_ns).end(end_ns)
        serve.end(points[-1])

    def close(self) -> None:
        """Send what waits."""
        self._provider.shutdown()

    def _root(self, trace_id: bytes, begun_ns: int, attributes: dict[str, str | int]) -> trace.Span:
        with self._ids.chosen(int.from_bytes(trace_id, "big"), root_span_id(trace_id)):
            return self._tracer.start_span("request", Context(), SpanKind.CLIENT, attributes, start_time=begun_ns)


class _ChosenIds(IdGenerator):
    """Random ids, but for the next span of this thread where they were chosen."""

    def __init__(self) -> None:
        self._random = RandomIdGenerator()
        self._chosen = threading.local()

    def chosen(self, trace_id: int, span_id: int) -> "_Choice":
        """A block in which a new span gets these."""
        return _Choice(self._chosen, (trace_id, span_id))

    def generate_trace_id(self) -> int:
        ids = getattr(self._chosen, "ids", None)
        return self._random.generate_trace_id() if ids is None else int(ids[0])

    def generate_span_id(self) -> int:
        ids = getattr(self._chosen, "ids", None)
        return self._random.generate_span_id() if ids is None else int(ids[1])


class _Choice:
    def __init__(self, where: threading.local, ids: tuple[int, int]) -> None:
        self._where, self._ids = where, ids

    def __enter__(self) -> None:
        self._where.ids = self._ids

    def __exit__(self, *_: object) -> None:
        self._where.ids = None


class FileExporter(SpanExporter):
    """Appends one JSON object a span to a file.

    Raises:
        TraceTargetError: It cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._stream = path.open("a", encoding="utf-8")
        except OSError as error:
            raise TraceTargetError(f"Wanted to write traces to {path}, found: {error}. Choose another file.") from error

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Write them."""
        try:
            self._stream.write("".join([span.to_json(indent=None) + "\n" for span in spans]))
            self._stream.flush()
        except (OSError, ValueError) as error:
            log.warning("traces were not written: %s", error)
            return SpanExportResult.FAILURE
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Close the file."""
        self._stream.close()


def _exporter(target: TraceTarget) -> SpanExporter:
    if target.file is not None:
        return FileExporter(target.file)
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ModuleNotFoundError as error:
        raise TraceTargetError(
            f"Wanted to send traces to {target.url}, found no module {error.name!r}. pip install 'headtail[traces]'"
        ) from error
    return OTLPSpanExporter(endpoint=target.url)
