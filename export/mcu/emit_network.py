"""Writes one network as a ``.c`` and a ``.h`` file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from device_profiles.version import __version__
from export.mcu.c_text import c_name
from export.mcu.emit_plan import emit_plan
from export.mcu.errors import ScheduleError
from export.mcu.graph import tensor_places
from export.mcu.network import Network, Port
from split.patch_plan import InputMode, Plan

TEMPLATES = Path(__file__).parent / "templates"
AXES = ("height", "width", "channels")


@dataclass(frozen=True)
class PortCode:
    """One input or output as the header shows it; ``offset`` is -1 when it is not in the arena."""

    role: str
    label: str
    macro: str
    function: str
    height: int
    width: int
    channels: int
    order: str
    scale: str
    scale_literal: str
    zero_point: int
    size_bytes: int
    offset: int
    overwritten: bool


@dataclass(frozen=True)
class NetworkCode:
    """Both files, and what a caller must know of them."""

    prefix: str
    source: str
    header: str
    ports: tuple[PortCode, ...]
    mode: InputMode
    constant_bytes: int


def make_environment() -> jinja2.Environment:
    """The template environment of the generator: an undefined name is an error."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), undefined=jinja2.StrictUndefined, keep_trailing_newline=True,
        autoescape=False,  # the output is C, and every free text goes through `comment_text`
    )  # fmt: skip


def comment_text(text: str) -> str:
    """A free text as it may stand in a C comment or a README: printable ASCII, no comment marks, no backslashes."""
    kept = "".join(ch if ch.isascii() and ch.isprintable() and ch not in '\\"*/<>' else "_" for ch in text)
    return kept[:80]


def emit_network(network: Network, plan: Plan, *, name: str, source: str) -> NetworkCode:
    """Write a network under a plan.

    Args:
        network: A lowered network.
        plan: A plan of ``to_patch_graph(network)``.
        name: The model's name; functions are called ``ht_<name>_...``.
        source: Where the network came from, for the head comment.

    Returns:
        Text of ``ht_<name>.c`` and ``ht_<name>.h``.

    Raises:
        ScheduleError: The plan does not fit the network or the step format, or an output would lie outside of the arena.
        UnsupportedOpError: A size that the kernels can not hold.
    """
    prefix = f"ht_{c_name(name)}"
    ports = tuple(describe_ports(network, plan))
    environment = make_environment()
    row_bytes = plan.graph.tensors[plan.graph.inputs[0]].row_bytes
    context: dict[str, Any] = {
        "prefix": prefix,
        "guard": prefix.upper(),
        "title": comment_text(name),
        "version": __version__,
        "source": comment_text(source),
        "schedule": ", ".join(dict.fromkeys(segment.kind.value for segment in plan.segments)),
        "ports": ports,
        "arena_bytes": max(plan.arena_bytes, 4),
        "mode": plan.input_mode.value,
        "row_bytes": row_bytes,
        "plan": emit_plan(network, plan),
    }
    return NetworkCode(
        prefix,
        environment.get_template("network.c.j2").render(context),
        environment.get_template("network.h.j2").render(context),
        ports,
        plan.input_mode,
        context["plan"].constant_bytes,
    )


def describe_ports(network: Network, plan: Plan) -> list[PortCode]:
    """Where inputs lie before and outputs after a run.

    Raises:
        ScheduleError: An output is the input that never enters the arena.
    """
    places = tensor_places(network)
    described = []
    groups = (("input", network.inputs, plan.segments[0]), ("output", network.outputs, plan.segments[-1]))
    for role, ports, segment in groups:
        for number, port in enumerate(ports):
            tensor = places[port.key]
            outside = role == "input" and number == 0 and plan.input_mode in (InputMode.PULLED, InputMode.EXTERNAL)
            offset = -1 if outside else segment.buffer(tensor).offset
            if role == "output" and offset < 0:
                raise ScheduleError(
                    f"wanted output {port.name[:80]!r} in the arena, found that it is the first input, which lies in the "
                    f"caller's memory under --input-mode {plan.input_mode.value}. Take --input-mode resident, or "
                    "leave this output out of the model: the caller has it already."
                )
            suffix = "" if len(ports) == 1 else f"_{number}"
            over = number == 0 and plan.input_mode is not InputMode.RESIDENT
            described.append(_describe(network, port, (role, suffix), offset, overwritten=over))
    return described


def _describe(network: Network, port: Port, names: tuple[str, str], offset: int, *, overwritten: bool) -> PortCode:
    role, suffix = names
    value = network.values[port.key]
    literal = f"{float(port.quant.scale):.9g}"
    return PortCode(
        role=role,
        label=comment_text(port.name),
        macro=f"{role}{suffix}".upper(),
        function=f"{role}{suffix}",
        height=value.height,
        width=value.width,
        channels=value.channels,
        order=_order(port),
        scale=literal,
        scale_literal=f"{literal if '.' in literal or 'e' in literal else literal + '.0'}f",
        zero_point=port.quant.zero_point,
        size_bytes=value.size_bytes,
        offset=offset,
        overwritten=overwritten,
    )


def _order(port: Port) -> str:
    """How the memory relates to the file's own order of dimensions."""
    if port.view.in_memory_order:
        return "height, width, channels"
    walked = ", ".join(AXES[axis] for axis in port.view.order)
    return f"height, width, channels; the model file has it as {walked}"
