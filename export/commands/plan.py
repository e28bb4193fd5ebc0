"""`headtail plan`: all on the device, cut here, or send the picture: which is best over this link."""

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from device_profiles.plan_table import Objective, dump_plan_table
from device_profiles.schema import DeviceProfile
from export.commands.output import wide_console
from export.planning import NetworkPlan, PlanOptions, plan_network
from split.plan import PlanError, Priced, format_ms, prune
from split.plan_heads import Candidate


def plan(
    artefact: Path,
    /,
    *,
    link: str,
    device: str | None = None,
    board_file: Path | None = None,
    host: str = "this",
    device_profile: Path | None = None,
    host_profile: Path | None = None,
    device_calibration: Path | None = None,
    host_calibration: Path | None = None,
    power: str | None = None,
    deadline: str | None = None,
    accuracy: float | None = None,
    min_accuracy: float | None = None,
    variants: Path | None = None,
    objective: Objective = "latency",
    message_ms: float = 0.5,
    byte_ms: float = 0.0,
    image: Path | None = None,
    out: Path | None = None,
    chart: Path | None = None,
    json: bool = False,
) -> None:
    """Choose between the whole model on the device, every cut, and the picture sent to the host.

    Args:
        artefact: Of a whole int8 network.
        link: "20mbit/15ms", "20mbit:5mbit/15ms" with another rate down, "20mbit/15ms~4ms" with jitter (p95 - p50).
        device: Board of the head; "this" is measured now.
        board_file: A board file of your own instead.
        host: Board of the tail; "this" is measured now, another one is predicted.
        device_profile: What `headtail profile --out` wrote on the device.
        host_profile: The same on the host.
        device_calibration: A calibration of the device (see docs/planning.md), used without a profile of this model.
        host_calibration: The same of the host.
        power: Of the device in watts, as you state it: "idle=2.7,active=4.1,tx=5.0".
        deadline: On the p95: "80ms".
        accuracy: Of the whole network, 0 to 1, when its manifest does not say.
        min_accuracy: Leave out what is below it, or not known, 0 to 1.
        variants: Measured bottlenecks, coders and accuracies on pictures: what `headtail eval --variants` writes.
        objective: What to minimise: latency (p50), p95, energy or uplink (bytes); or accuracy, the most of it, within the deadline.
        message_ms: Cost of the broker and framing for each message.
        byte_ms: Cost of serialising and the broker for each byte.
        image: Picture for the JPEG and WebP rivals.
        out: Write plan.json, the table that a device looks up at run time.
        chart: Write the break-even chart, .png or .svg.
        json: Print JSON instead of tables.
    """
    options = PlanOptions(
        link=link, device=device, board_file=board_file, host=host, device_profile=device_profile,
        host_profile=host_profile, device_calibration=device_calibration, host_calibration=host_calibration,
        power=power, deadline_ms=_milliseconds(deadline), accuracy=accuracy, min_accuracy=min_accuracy,
        variants=variants, objective=objective, message_ms=message_ms, byte_ms=byte_ms, image=image,
    )  # fmt: skip
    with Console(stderr=True).status("planning") as status:
        found = plan_network(artefact, replace(options, on_step=status.update))
    if out is not None:
        out.write_bytes(dump_plan_table(found.table()))
    if chart is not None:
        from export.plan_chart import draw

        boards = found.boards
        title = f"{found.source.name}: {boards[0].id} and {boards[1].id}"
        draw(prune(found.candidates, found.goal), found.link, chart, title=title)
    report = _report(found, _command(artefact, found.plan.chosen.candidate, found.boards))
    if json:
        sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
    else:
        _print(report, found)


def _milliseconds(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        value = float(text.removesuffix("ms"))
    except ValueError:
        value = -1.0
    if not 0 < value < 1e9:
        raise PlanError(f"Wanted a deadline such as 80ms, found {text!r}.")
    return value


def _command(model: Path, candidate: Candidate, boards: tuple[DeviceProfile, DeviceProfile]) -> str:
    if candidate.method == "raw":
        at = ",".join(candidate.tensors)
        words = ["headtail", "split", str(model), "--at", at, "--target", boards[0].id, "--tail-target", boards[1].id]
    elif candidate.build and candidate.method in ("bottleneck", "early-exit"):
        words = list(candidate.build)
    elif candidate.choice.kind == "split":
        words = ["headtail", "split", str(model), "--method", "bottlefit|entropic"]
    elif candidate.choice.kind == "remote":
        words = ["headtail", "tail", "serve", str(model)]
    else:
        words = ["headtail", "deploy", str(model), "--to", "DEVICE"]
    return shlex.join(words)


def _report(network: NetworkPlan, command: str) -> dict[str, Any]:
    found = network.plan
    return {
        "reason": found.reason,
        "splits": found.splits,
        "plan_id": found.chosen.candidate.choice.plan_id,
        "command": command,
        "chosen": _priced(found.chosen),
        "front": [_priced(one) for one in found.front],
        "break_even": [
            {"from_mbit": one.from_rate * 8e-6, "to_mbit": one.to_rate * 8e-6,
             "best": one.best.choice.name if one.best else None}
            for one in network.stretches
        ],
        "left_out": found.left_out,
        "remarks": list(network.remarks),
    }  # fmt: skip


def _priced(priced: Priced) -> dict[str, Any]:
    return {
        "name": priced.candidate.choice.name,
        "kind": priced.candidate.choice.kind,
        "p50_ms": priced.p50_ms,
        "p95_ms": priced.p95_ms,
        "energy_mj": priced.energy_mj,
        "uplink_bytes": priced.uplink_bytes,
        "device_ms": priced.candidate.choice.device_ms,
        "host_ms": priced.candidate.choice.host_ms,
        "weight_bytes": priced.candidate.weight_bytes,
        "peak_bytes": priced.candidate.peak_bytes,
        "rss_bytes": priced.candidate.rss_bytes,
        "accuracy": priced.candidate.accuracy,
    }


def _print(report: dict[str, Any], network: NetworkPlan) -> None:
    found, boards = network.plan, network.boards
    title = f"{network.source.name}: head on {boards[0].id}, tail on {boards[1].id}, {network.link}"
    console = wide_console()
    table = Table(title=title, title_justify="left")
    table.add_column("plan", overflow="fold")
    for name in ("p50 ms", "p95 ms", "device ms", "host ms", "up kB", "energy mJ", "memory MB", "accuracy"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in found.front:
        choice = one.candidate.choice
        table.add_row(
            ("* " if one is found.chosen else "") + choice.name, _ms(one.p50_ms), _ms(one.p95_ms), _ms(choice.device_ms),
            _ms(choice.host_ms), f"{one.uplink_bytes / 1e3:.1f}", "-" if one.energy_mj is None else f"{one.energy_mj:.3g}",
            _memory(one.candidate), "-" if one.candidate.accuracy is None else f"{one.candidate.accuracy:.1%}",
        )  # fmt: skip
    console.print(table)
    console.print(report["reason"], highlight=False, soft_wrap=True, markup=False)
    for one in report["break_even"]:
        line = f"  {one['from_mbit']:8.2f} to {one['to_mbit']:8.2f} Mbit/s: {one['best'] or 'nothing keeps the constraints'}"
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    console.print(f"Build it: {report['command']}", highlight=False, soft_wrap=True, markup=False)
    for why, count in report["left_out"].items():
        console.print(f"Left out: {count} that {why}.", highlight=False, markup=False)
    for remark in report["remarks"]:
        console.print(remark, highlight=False, soft_wrap=True, markup=False)


def _ms(ms: float) -> str:
    return format_ms(ms).removesuffix(" ms")


def _memory(candidate: Candidate) -> str:
    """Peak of the device's process; where that is not known, weights and activations as a lower bound."""
    if candidate.rss_bytes is not None:
        return f"{candidate.rss_bytes / 1e6:.3g}"
    if candidate.weight_bytes is None or candidate.peak_bytes is None:
        return "-"
    size = candidate.weight_bytes + candidate.peak_bytes
    return f">= {size / 1e6:.3g}" if size else "-"
