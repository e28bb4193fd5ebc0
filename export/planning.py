"""Plan a network over two places, from Python as from the command: times of both, every candidate, the choice, the table."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from device_profiles.fit import resolve_board
from device_profiles.link import Link, parse_link
from device_profiles.load import load_board
from device_profiles.measurement import ProfileMismatchError
from device_profiles.plan_table import Objective, PlanTable
from device_profiles.schema import DeviceProfile
from edge_runtime.artefact import Artefact
from edge_runtime.profile_energy import stated_energy
from export.cut_source import CutSource, open_cut_source
from export.plan_inputs import MeasuredHere, PlaceTimes, pictures, place_times
from export.plan_memory import device_memory
from split.plan import Goal, Plan, PlanError, Power, make_plan
from split.plan_heads import Candidate, cut_candidates, peak_bytes
from split.plan_problem import RAW_INT8, make_problem
from split.plan_sweep import Stretch, break_even, make_table
from split.plan_variant_file import PlaceFactors, VariantFile, parse_variants
from split.plan_variants import Picture, bottleneck_candidate, local_candidate, picture_candidate
from split.predict import Calibration, parse_calibration

Parsed = TypeVar("Parsed")


@dataclass(frozen=True)
class PlanOptions:
    """What is planned for.

    Attributes:
        link: "20mbit/15ms", or a `Link`.
        device: Board id of the head; "this" is measured now.
        board_file: A board file instead of `device`.
        host: Board id of the tail; "this" is measured now.
        device_profile: What `headtail profile --out` wrote on the device; `host_profile` the same on the host.
        device_calibration: What `headtail calibrate --out` wrote for the device; `host_calibration` for the host.
        power: Of the device, "idle=2.7,active=4.1,tx=5.0" in watts, as the user states it.
        deadline_ms: On the p95.
        accuracy: Of the whole network, 0 to 1, when its manifest does not say.
        min_accuracy: Leaves out what is below it, or not known.
        variants: Measured bottlenecks, coders and accuracies on pictures (`headtail eval --variants`).
        objective: What is least: latency (p50), p95, energy or uplink (bytes); or the most accuracy.
        message_ms: Cost of the broker and framing for each message; `byte_ms` for each byte. With a `Link`: ignored.
        image: Picture for the JPEG and WebP rivals.
        on_step: Told what is done next.
    """

    link: str | Link
    device: str | None = None
    board_file: Path | None = None
    host: str = "this"
    device_profile: Path | None = None
    host_profile: Path | None = None
    device_calibration: Path | None = None
    host_calibration: Path | None = None
    power: str | None = None
    deadline_ms: float | None = None
    accuracy: float | None = None
    min_accuracy: float | None = None
    variants: Path | None = None
    objective: Objective = "latency"
    message_ms: float = 0.5
    byte_ms: float = 0.0
    image: Path | None = None
    on_step: Callable[[str], None] = lambda _text: None


@dataclass(frozen=True)
class NetworkPlan:
    """The plan, and what it was made from."""

    plan: Plan
    source: CutSource
    boards: tuple[DeviceProfile, DeviceProfile]
    link: Link
    goal: Goal
    candidates: tuple[Candidate, ...]
    stretches: tuple[Stretch, ...]
    power: Power | None
    remarks: tuple[str, ...]

    def table(self) -> PlanTable:
        """What a device looks up at run time.

        Raises:
            PlanError: As `split.plan_sweep.make_table`.
        """
        names = (self.source.name, self.boards[0].id, self.boards[1].id)
        return make_table(self.candidates, self.link, self.goal, names=names, power=self.power)


def plan_network(model: Path | str, options: PlanOptions) -> NetworkPlan:
    """Choose between the whole model on the device, every cut, every variant, and the picture sent to the host.

    Args:
        model: An artefact of a whole int8 network.
        options: See there.

    Raises:
        PlanError: No candidate keeps the constraints; the message counts the reasons.
        EdgeError: A board, link, profile, calibration or variant file is not valid or does not belong to the plan.

    Example:
        found = plan_network("build/whole", PlanOptions(link="20mbit/15ms", device="rpi-4b"))
        print(found.plan.reason)
    """
    over = options.link if isinstance(options.link, Link) else parse_link(
        options.link, per_message_ms=options.message_ms, per_byte_ms=options.byte_ms
    )  # fmt: skip
    source = open_cut_source(Path(model))
    boards = (resolve_board(options.device, options.board_file), load_board(options.host))
    calibration = _parse(options.device_calibration, parse_calibration)
    others = _parse(options.variants, parse_variants) or VariantFile()
    times = _times(source, boards, options, calibration)
    rivals = pictures(
        source,
        slower=max(times[0].whole.p50_ms / times[1].whole.p50_ms, 1.0),
        picture=options.image,
        qualities=others.qualities(),
    )
    memory = device_memory(source, times[0], calibration)
    if options.accuracy is not None and not 0 <= options.accuracy <= 1:
        raise PlanError(f"Wanted an accuracy of 0 to 1, found {options.accuracy}.")
    known = (options.accuracy, others.accuracy, _accuracy(source))
    accuracy = next((one for one in known if one is not None), None)
    candidates, remarks = list_candidates(source, times, boards, over, _Given(rivals, others, accuracy))
    candidates = [memory.of(one) for one in candidates]
    goal = make_goal(boards[0], options.objective, options.deadline_ms, options.min_accuracy)
    power = times[0].power if options.power is None else _stated(options.power)
    found = make_plan(candidates, over, goal, power)
    return NetworkPlan(
        plan=found,
        source=source,
        boards=boards,
        link=over,
        goal=goal,
        candidates=tuple(candidates),
        stretches=break_even(candidates, over, goal, power=power),
        power=power,
        remarks=tuple(dict.fromkeys((*times[0].remarks, *times[1].remarks, *memory.remarks, *remarks, *found.remarks))),
    )


def _times(
    source: CutSource,
    boards: tuple[DeviceProfile, DeviceProfile],
    options: PlanOptions,
    device_calibration: Calibration | None,
) -> tuple[PlaceTimes, PlaceTimes]:
    """Of the device and of the host; a machine that is both is measured once."""
    host_calibration = _parse(options.host_calibration, parse_calibration)
    here = MeasuredHere(source, options.on_step)
    names = (options.device if options.board_file is None else None, options.host)
    given = ((options.device_profile, device_calibration), (options.host_profile, host_calibration))
    head, tail = (
        place_times(source, board, here=here if name == "this" else None, profile=profile, calibration=calibration)
        for board, name, (profile, calibration) in zip(boards, names, given, strict=True)
    )
    return head, tail


@dataclass(frozen=True)
class _Given:
    """What else there is beside the cuts of the network itself."""

    pictures: list[Picture]
    variants: VariantFile
    accuracy: float | None


def list_candidates(
    source: CutSource,
    times: tuple[PlaceTimes, PlaceTimes],
    boards: tuple[DeviceProfile, DeviceProfile],
    link: Link,
    given: _Given,
) -> tuple[list[Candidate], list[str]]:
    """Everything that could be done, and what has to be said of the list."""
    others, accuracy = given.variants, given.accuracy
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
    sent = [replace(one, accuracy=others.picture_accuracy(one.codec, one.quality)) for one in given.pictures]
    key = source.artefact.key if source.artefact is not None else None
    rivals = [picture_candidate(one, tail.whole, answer, artefact=key) for one in sent]
    device, host = variant_factors(others, times, boards)
    rivals += [bottleneck_candidate(one.bottleneck(device=device, host=host), answer) for one in others.bottlenecks]
    return [local, *listed.candidates, *rivals], _candidate_remarks(listed.exact, sent, others)


def variant_factors(
    others: VariantFile, times: tuple[PlaceTimes, PlaceTimes], boards: tuple[DeviceProfile, DeviceProfile]
) -> tuple[PlaceFactors, PlaceFactors]:
    """Of heads and of tails: times count as measured there, else as the whole network goes; so does a p95 that is not known.

    Raises:
        ProfileMismatchError: They were measured on neither board.
    """
    device, host = (one.id for one in boards)
    if others.measured_on not in (None, device, host):
        raise ProfileMismatchError(
            f"Wanted variants that were measured on {device} or {host}, found {others.measured_on}. Measure them again there."
        )
    head, tail = (one.whole for one in times)
    slower = head.p50_ms / tail.p50_ms
    return (
        PlaceFactors(1.0 if others.measured_on in (None, device) else slower, head.p95_ms / head.p50_ms),
        PlaceFactors(1.0 if others.measured_on in (None, host) else 1 / slower, tail.p95_ms / tail.p50_ms),
    )


def make_goal(board: DeviceProfile, objective: Objective, deadline_ms: float | None, floor: float | None) -> Goal:
    """The user's wishes with the limits of the board."""
    small = board.is_microcontroller
    return Goal(
        objective=objective,
        deadline_ms=deadline_ms,
        min_accuracy=floor,
        flash_bytes=board.flash_bytes if small else None,
        ram_bytes=board.sram_bytes if small else board.ram_bytes,
        weights_in_ram=not small,
    )


def _candidate_remarks(exact: bool, sent: list[Picture], others: VariantFile) -> list[str]:
    remarks = []
    if not exact:
        remarks.append(
            "Many branches: a selection of the heads was compared, the minimum cut over this link among them."
        )
    if sent:
        remarks.append("Encoding of pictures was measured here, and scaled to the device as the whole network is.")
    if any(one.accuracy is None for one in sent):
        remarks.append(
            "The accuracy on JPEG and WebP pictures is not known: with --min-accuracy they are left out, with --objective accuracy last."
        )
    if others.measured_on is not None:
        remarks.append(
            f"Variants were measured on {others.measured_on}; on another board they are scaled as the whole is."
        )
    if not others.encoders and not others.bottlenecks:
        remarks.append(
            "Crossing tensors are counted raw: an entropy coder or a trained bottleneck (--variants) sends less."
        )
    return remarks


def _accuracy(source: CutSource) -> float | None:
    artefact: Artefact | None = source.artefact
    quality = artefact.manifest.quality if artefact else None
    return quality.this if quality and quality.metric == "top-1" else None


def _stated(text: str) -> Power:
    stated = stated_energy(text, None)
    return Power(stated.idle_w, stated.active_w, stated.tx_w, origin="stated")


def _parse(path: Path | None, parse: Callable[[bytes], Parsed]) -> Parsed | None:
    return None if path is None else read_file(path, parse)


def read_file(path: Path, parse: Callable[[bytes], Parsed]) -> Parsed:
    """Read and decode a file.

    Raises:
        PlanError: It cannot be read.
    """
    try:
        return parse(path.read_bytes())
    except OSError as error:
        raise PlanError(f"Wanted a file, found {error.strerror} at {path}.") from error
