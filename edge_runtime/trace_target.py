"""Where traces go, as a command's option says it: `otlp:URL` or `file:PATH`. Loads the tracing library when it is wanted."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from device_profiles.errors import EdgeError

if TYPE_CHECKING:
    from edge_runtime.otel_tracing import OtelTracer


class TraceTargetError(EdgeError):
    """Traces cannot go where they were asked for."""


@dataclass(frozen=True)
class TraceTarget:
    """A collector's URL, or a file that gets one JSON object a span."""

    url: str | None = None
    file: Path | None = None


def parse_target(text: str) -> TraceTarget:
    """Read `otlp:http://host:4318/v1/traces`, `otlp:https://..` or `file:PATH`.

    Raises:
        TraceTargetError: Neither of them.
    """
    kind, _, rest = text.partition(":")
    if kind == "file" and rest:
        return TraceTarget(file=Path(rest))
    if kind == "otlp" and rest.startswith(("http://", "https://")):
        return TraceTarget(url=rest)
    raise TraceTargetError(
        f"Wanted traces to go to otlp:http://host:4318/v1/traces or file:PATH, found {text[:200]!r}."
    )


def open_tracer(
    text: str, service: str, *, share: float = 1.0, attributes: dict[str, str] | None = None
) -> "OtelTracer":
    """A tracer for a target.

    Raises:
        TraceTargetError: Not a target, or OpenTelemetry is not installed.
    """
    target = parse_target(text)
    try:
        from edge_runtime.otel_tracing import OtelTracer
    except ModuleNotFoundError as error:
        raise TraceTargetError(
            f"Wanted to trace to {text}, found no module {error.name!r}. Install it: pip install 'headtail[traces]'"
        ) from error
    return OtelTracer(target, service, share=share, attributes=attributes)
