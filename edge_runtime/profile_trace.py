"""What ONNX Runtime's profiler recorded: runs, and the kernels in each."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from device_profiles.errors import EdgeError

MAX_TRACE_BYTES = 1 << 28
_SUFFIX = "_kernel_time"


class TraceError(EdgeError):
    """The engine's profile is not what this version reads."""


@dataclass(frozen=True)
class Call:
    """One kernel in one run."""

    name: str
    op: str
    us: int
    inputs: tuple[tuple[int, ...], ...]
    outputs: tuple[tuple[int, ...], ...]
    activation_bytes: int
    output_bytes: int
    parameter_bytes: int
    arena_peak_bytes: int
    arena_held_bytes: int


@dataclass(frozen=True)
class Trace:
    """All runs that the engine recorded: what it calls one run in microseconds, and the kernels in order."""

    whole_us: tuple[int, ...]
    runs: tuple[tuple[Call, ...], ...]

    def keep(self, indices: Sequence[int]) -> "Trace":
        """Only the runs of these indices."""
        return Trace(tuple(self.whole_us[i] for i in indices), tuple(self.runs[i] for i in indices))


def read_trace(path: Path) -> Trace:
    """Read ONNX Runtime's profile.

    Raises:
        TraceError: Too large, not JSON, or runs that differ in their kernels.
    """
    if path.stat().st_size > MAX_TRACE_BYTES:
        raise TraceError(f"Wanted a profile of at most {MAX_TRACE_BYTES} B, found more in {path}. Use fewer runs.")
    try:
        events: list[dict[str, Any]] = json.loads(path.read_bytes())
        return parse_events(events)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TraceError(f"Wanted a profile of ONNX Runtime, found: {error!r}, in {path}.") from error


def parse_events(events: Sequence[dict[str, Any]]) -> Trace:
    """Group the engine's events into runs; a run ends with its `model_run` event.

    Raises:
        TraceError: Runs that differ in their kernels, or none at all.
    """
    whole: list[int] = []
    runs: list[tuple[Call, ...]] = []
    calls: list[Call] = []
    for event in events:
        name = event.get("name", "")
        if event.get("cat") == "Node" and name.endswith(_SUFFIX):
            calls.append(_parse_call(name.removesuffix(_SUFFIX), event))
        elif name == "model_run":
            whole.append(int(event["dur"]))
            runs.append(tuple(calls))
            calls = []
    if not runs or not runs[0]:
        raise TraceError("Wanted times of single kernels, found none in the engine's profile.")
    first = [(call.name, call.op) for call in runs[0]]
    if any([(call.name, call.op) for call in run] != first for run in runs):
        raise TraceError("Wanted the same kernels in every run, found other ones: the network branches on its data.")
    return Trace(tuple(whole), tuple(runs))


def _parse_call(name: str, event: dict[str, Any]) -> Call:
    args = event["args"]
    return Call(
        name=name,
        op=str(args["op_name"]),
        us=int(event["dur"]),
        inputs=_shapes(args.get("input_type_shape", [])),
        outputs=_shapes(args.get("output_type_shape", [])),
        activation_bytes=int(args.get("activation_size", 0)),
        output_bytes=int(args.get("output_size", 0)),
        parameter_bytes=int(args.get("parameter_size", 0)),
        arena_peak_bytes=int(args.get("mem_in_use_peak", 0)),
        arena_held_bytes=int(args.get("mem_arena_held", 0)),
    )


def _shapes(listed: Sequence[dict[str, list[int]]]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(int(size) for size in shape) for one in listed for shape in one.values())
