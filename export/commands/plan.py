"""`headtail plan`: all on the device, cut here, or send the picture: which is best over this link."""

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from device_profiles.fit import resolve_board
from device_profiles.link import Link, parse_link
from device_profiles.load import load_board
from device_profiles.plan_table import dump_plan_table
from device_profiles.schema import DeviceProfile
from export.cut_source import CutSource, open_cut_source
from export.plan_inputs import PlaceTimes, pictures, place_times
from split.plan import Goal, Objective, Plan, PlanError, Priced, make_plan, prune
from split.plan_heads import Candidate, cut_candidates, peak_bytes
from split.plan_problem import RAW_INT8, make_problem
from split.plan_sweep import Stretch, break_even, make_table
from split.plan_variant_file import VariantFile, parse_variants
from split.plan_variants import Picture, bottleneck_candidate, local_candidate, picture_candidate
from split.predict import parse_calibration


def plan(
    model: Path,
    /,
    *,
    link: str,
    device: str | None = None,
    board_file: Path | None = None,
    host: str = "this",
    device_profile: Path | None = None,
    host_profile: Path | None = None,
    device_calibration: Path | None = None,
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
        model: An artefact of a whole int8 network.
        link: "20mbit/15ms", "20mbit:5mbit/15ms" with another rate down, "20mbit/15ms~4ms" with jitter (p95 - p50).
        device: Board of the head; "this" is measured now.
        board_file: A board file of your own instead.
        host: Board of the tail; "this" is measured now.
        device_profile: What `headtail profile --out` wrote on the device.
        host_profile: The same on the host.
        device_calibration: A calibration of the device (see docs/planning.md), used without a profile of this model.
        deadline: On the p95: "80ms".
        accuracy: Of the whole network, 0 to 1, when its manifest does not say.
        min_accuracy: Leave out what is below it, or not known, 0 to 1.
        variants: JSON with measured bottlenecks, coders and accuracies on pictures, see docs/planning.md.
        objective: What to minimise: latency (p50), p95, energy or uplink (bytes).
        message_ms: Cost of the broker and framing for each message.
        byte_ms: Cost of serialising and the broker for each byte.
        image: Picture for the JPEG and WebP rivals.
        out: Write plan.json, the table that a device looks up at run time.
        chart: Write the break-even chart, .png or .svg.
        json: Print JSON instead of tables.
    """
    over = parse_link(link, per_message_ms=message_ms, per_byte_ms=byte_ms)
    source = open_cut_source(model)
    boards = (resolve_board(device, board_file), load_board(host))
    with Console(stderr=True).status("planning") as status:
        calibration = None if device_calibration is None else parse_calibration(_read(device_calibration))
        head = place_times(
            source,
            boards[0],
            here=device == "this",
            profile=device_profile,
            on_step=status.update,
            calibration=calibration,
        )
        same = device == host == "this" and not (device_profile or host_profile or calibration)
        tail = head if same else place_times(
            source, boards[1], here=host == "this", profile=host_profile, on_step=status.update
        )  # fmt: skip
        others = VariantFile() if variants is None else parse_variants(_read(variants))
        rivals = pictures(source, slower=max(head.whole.p50_ms / tail.whole.p50_ms, 1.0), picture=image)
    whole_accuracy = _accuracy(source) if accuracy is None else accuracy
    candidates, remarks = _candidates(source, (head, tail), over, rivals, others, whole_accuracy)
    goal = _goal(boards[0], objective, _milliseconds(deadline), min_accuracy)
    found = make_plan(candidates, over, goal, head.power)
    stretches = break_even(candidates, over, goal, power=head.power)
    if out is not None:
        names = (source.name, boards[0].id, boards[1].id)
        out.write_bytes(dump_plan_table(make_table(candidates, over, goal, names=names, power=head.power)))
    if chart is not None:
        from export.plan_chart import draw

        draw(prune(candidates, goal), over, chart, title=f"{source.name}: {boards[0].id} and {boards[1].id}")
    command = _command(model, found.chosen.candidate, boards)
    report = _report(found, stretches, command, (*head.remarks, *tail.remarks, *remarks, *found.remarks))
    if json:
        sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
    else:
        _print(report, found, f"{source.name}: head on {boards[0].id}, tail on {boards[1].id}, {over}")


def _candidates(
    source: CutSource, times: tuple[PlaceTimes, PlaceTimes], link: Link, given: list[Picture], others: VariantFile,
    accuracy: float | None,
) -> tuple[list[Candidate], list[str]]:  # fmt: skip
    graph, (head, tail) = source.graph, times
    encoders = (RAW_INT8, *(one.encoder() for one in others.encoders))
    problem = make_problem(graph, head.costs, tail.costs, encoders=encoders)
    listed = cut_candidates(problem, accuracy=accuracy, links=(link,))
    everything = graph.reach_back(graph.outputs)[0]
    local = local_candidate(
        head.whole,
        accuracy=accuracy,
        weight_bytes=graph.constant_bytes_of(everything),
        peak_bytes=peak_bytes(problem, everything, graph.outputs),
    )
    answer = problem.down_bytes
    sent = [replace(one, accuracy=others.picture_accuracy(one.codec, one.quality)) for one in given]
    key = source.artefact.key if source.artefact is not None else None
    rivals = [picture_candidate(one, tail.whole, answer, artefact=key) for one in sent]
    rivals += [bottleneck_candidate(one.bottleneck(), answer) for one in others.bottlenecks]
    return [local, *listed.candidates, *rivals], _candidate_remarks(listed.exact, sent, others)


def _accuracy(source: CutSource) -> float | None:
    quality = source.artefact.manifest.quality if source.artefact else None
    return quality.this if quality and quality.metric == "top-1" else None


def _candidate_remarks(exact: bool, sent: list[Picture], others: VariantFile) -> list[str]:
    remarks = []
    if not exact:
        remarks.append(
            "Many branches: a selection of the heads was compared, the minimum cut over this link among them."
        )
    if sent:
        remarks.append("Encoding of pictures was measured here, and scaled to the device as the whole network is.")
    if any(one.accuracy is None for one in sent):
        remarks.append("The accuracy on JPEG and WebP pictures is not known: with --min-accuracy they are left out.")
    if not others.encoders and not others.bottlenecks:
        remarks.append(
            "Crossing tensors are counted raw: an entropy coder or a trained bottleneck (--variants) sends less."
        )
    return remarks


def _goal(board: DeviceProfile, objective: Objective, deadline_ms: float | None, min_accuracy: float | None) -> Goal:
    small = board.is_microcontroller
    return Goal(
        objective=objective,
        deadline_ms=deadline_ms,
        min_accuracy=min_accuracy,
        flash_bytes=board.flash_bytes if small else None,
        ram_bytes=board.sram_bytes if small else board.ram_bytes,
        weights_in_ram=not small,
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise PlanError(f"Wanted a file, found {error.strerror} at {path}.") from error


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


def _report(found: Plan, stretches: tuple[Stretch, ...], command: str, remarks: tuple[str, ...]) -> dict[str, Any]:
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
            for one in stretches
        ],
        "left_out": found.left_out,
        "remarks": list(dict.fromkeys(remarks)),
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
        "accuracy": priced.candidate.accuracy,
    }


def _print(report: dict[str, Any], found: Plan, title: str) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    table = Table(title=title, title_justify="left")
    table.add_column("plan", overflow="fold")
    for name in ("p50 ms", "p95 ms", "device ms", "host ms", "up kB", "energy mJ"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in found.front:
        choice = one.candidate.choice
        table.add_row(
            ("* " if one is found.chosen else "") + choice.name, f"{one.p50_ms:.1f}", f"{one.p95_ms:.1f}",
            f"{choice.device_ms:.1f}", f"{choice.host_ms:.1f}", f"{one.uplink_bytes / 1e3:.1f}",
            "-" if one.energy_mj is None else f"{one.energy_mj:.0f}",
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
