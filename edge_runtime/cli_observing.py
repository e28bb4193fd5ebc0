"""Options of `edge-agent run` by which people see what a device does: logs, traces, comparisons, samples."""

import argparse
import logging
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge_runtime.sample_options import SampleOptions
    from edge_runtime.tracing import Tracer


def add_observing(run: argparse.ArgumentParser) -> None:
    """Add them to the command."""
    run.add_argument(
        "--shadow", type=float, default=0.0, metavar="SHARE", help="of the tail's answers to compare with --whole"
    )
    run.add_argument(
        "--traces", metavar="TARGET", help="spans of requests: otlp:http://host:4318/v1/traces or file:PATH"
    )
    run.add_argument(
        "--samples-below",
        type=float,
        metavar="SCORE",
        help="send pictures whose best class has a lower probability; none when not given",
    )
    run.add_argument("--samples-per-day", type=int, default=100)
    run.add_argument("--samples-mb-per-day", type=float, default=20.0)
    run.add_argument("--trace-share", type=float, default=0.01, metavar="SHARE", help="of the requests to trace")


def set_up_logging_of(level: str) -> None:
    """Log to standard error: text, or JSON where the environment says HEADTAIL_LOG=json."""
    if os.environ.get("HEADTAIL_LOG") == "json":
        from edge_runtime.json_log import set_up_logging

        set_up_logging("edge-agent", logging.getLevelName(level.upper()))
    else:
        logging.basicConfig(level=level.upper(), format="%(levelname)s %(name)s: %(message)s")


def samples_of(arguments: argparse.Namespace) -> "SampleOptions | None":
    """What may be sent of pictures that the model was unsure about; null unless that was asked for."""
    if arguments.samples_below is None:
        return None
    from edge_runtime.sample_options import SampleOptions

    limit = int(1e6 * arguments.samples_mb_per_day)
    return SampleOptions(arguments.samples_below, arguments.samples_per_day, limit)


def open_tracer_of(arguments: argparse.Namespace) -> "Tracer | None":
    """The tracer that was asked for.

    Raises:
        TraceTargetError: It cannot be opened.
    """
    if arguments.traces is None:
        return None
    from edge_runtime.trace_target import open_tracer

    name = f"{arguments.tenant}/{arguments.device}"
    return open_tracer(
        arguments.traces, "edge-agent", share=arguments.trace_share, attributes={"service.instance.id": name}
    )
