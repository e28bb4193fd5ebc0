"""`headtail fit`: does an artefact fit a board, part by part, with the gap in bytes."""

from dataclasses import dataclass
from pathlib import Path

import msgspec
from rich.table import Table

from device_profiles.errors import EdgeError
from device_profiles.fit import Fit, Needs, check_fit, resolve_board
from device_profiles.measurement import Profile, ProfileMismatchError, load_profile
from device_profiles.schema import DeviceProfile
from edge_runtime.artefact import Artefact, open_artefact
from edge_runtime.session import open_session
from export.commands.output import print_json, wide_console
from export.cut_source import CutSource, open_cut_source
from export.mcu.report import CODE_BYTES, REPORT_NAME, STACK_BYTES, McuReport
from export.planning import read_file
from split.graph_work import work_of
from split.predict import parse_calibration


def fit(
    artefact: Path,
    /,
    *,
    board: str | None = None,
    board_file: Path | None = None,
    profile: Path | None = None,
    calibration: Path | None = None,
    json: bool = False,
) -> None:
    """Say whether an artefact fits a board: engine, operators, flash, memory, and how many bytes are missing.

    A size that is not known gives "unknown", never "fits".

    Args:
        artefact: A folder or .zip.
        board: One of `headtail devices`.
        board_file: A board file of your own instead.
        profile: What `headtail profile --out` wrote on the board: its measured peak memory is used.
        calibration: Of the board (`headtail calibrate --out`): predicts the peak memory where there is no profile.
        json: Print JSON instead of a table.
    """
    opened, there = open_artefact(artefact), resolve_board(board, board_file)
    measured = None if profile is None else load_profile(profile)
    sizes = _sizes(opened, there, measured, calibration)
    ops = _operators(opened)
    needs = Needs(
        name=opened.manifest.model.name,
        engine=opened.manifest.engine.name,
        flash_bytes=sizes.flash,
        ram_bytes=sizes.ram,
        ops=ops,
    )
    found = check_fit(needs, there, supported_ops=ops if _runs_here(opened) else None)
    if json:
        report = {"fit": found, "verdict": found.verdict, "memory": sizes.how}
        print_json(report)
    else:
        _print(found, sizes.how)


@dataclass(frozen=True)
class _Sizes:
    """Bytes at run time and where weights are stored, null for not known, and how the former is known."""

    ram: int | None
    how: str
    flash: int | None = None


def _sizes(artefact: Artefact, board: DeviceProfile, profile: Profile | None, calibration: Path | None) -> _Sizes:
    """The profile's peak if there is one, else the calibration's, else what the artefact says itself."""
    if profile is not None:
        return _measured(artefact, board, profile)
    if calibration is not None:
        return _predicted(artefact, board, calibration)
    if board.is_microcontroller and _holds_c(artefact):
        report = msgspec.json.decode(artefact.path(REPORT_NAME).read_bytes(), type=McuReport)
        how = f"the export's own plan, with {STACK_BYTES} B for the stack and {CODE_BYTES} B for code (--profile of an emulated run is exact)"
        return _Sizes(report.ram_bytes, how, report.flash_bytes)
    return _Sizes(None, "not known: give --profile or --calibration")


def _holds_c(artefact: Artefact) -> bool:
    return artefact.manifest.engine.name == "tflite-micro" and REPORT_NAME in artefact.manifest.files_by_path


def _measured(artefact: Artefact, board: DeviceProfile, profile: Profile) -> _Sizes:
    manifest, memory = artefact.manifest, profile.memory
    hashes = (manifest.files_by_path[manifest.entry].sha256, manifest.model.source_sha256)
    counted = profile.unit == "instructions"  # an emulator: its bytes are those of every board with this code
    if profile.model_sha256 not in hashes or (profile.board != board.id and not counted):
        raise ProfileMismatchError(
            f"Wanted a profile of the file {hashes[0][:12]} on {board.id}, found one of {profile.model_sha256[:12]} on "
            f"{profile.board}. Profile this artefact on that board: edge-agent profile ARTEFACT --out FILE."
        )
    if memory.sram_peak is not None:
        return _Sizes(memory.sram_peak, "arena and stack of an emulated run", memory.flash)
    if memory.rss_bare is None or memory.rss_peak is None:
        return _Sizes(None, "the profile holds no peak")
    return _Sizes(memory.rss_bare + memory.rss_peak, "measured peak of the process")


def _predicted(artefact: Artefact, board: DeviceProfile, calibration: Path) -> _Sizes:
    known, precision = read_file(calibration, parse_calibration), artefact.manifest.precision
    if (known.board, known.precision) != (board.id, precision):
        raise ProfileMismatchError(
            f"Wanted a calibration of {board.id} in {precision}, found one of {known.board} in {known.precision}."
        )
    if known.memory is None:
        return _Sizes(None, "the calibration holds no memory: calibrate again")
    graph = open_cut_source(artefact.folder).graph
    work = [one.bytes for one in work_of(graph, precision=precision) if one is not None]
    weights = graph.constant_bytes_of(graph.reach_back(graph.outputs)[0])
    peak = known.memory.peak(weights=weights, largest_kernel=max(work, default=0))
    return _Sizes(peak, f"predicted peak of the process, from {known.memory.samples} networks on the board")


def _operators(artefact: Artefact) -> tuple[str, ...]:
    try:
        source: CutSource = open_cut_source(artefact.folder)
    except EdgeError:
        return ()  # a file that holds no graph, such as generated C: its operators were checked when it was made
    return tuple(sorted({node.op for node in source.graph.nodes}))


def _runs_here(artefact: Artefact) -> bool:
    """Whether the engine, which has the same operators on every processor, opens the network on this machine."""
    if _holds_c(artefact):
        return True  # an operator without C is refused when it is made
    try:
        open_session(artefact, threads=1).close()
    except EdgeError:
        return False
    return True


def _print(found: Fit, how: str) -> None:
    console = wide_console()
    table = Table(title=f"{found.name} on {found.board}: {found.verdict}", title_justify="left")
    for name in ("part", "verdict", "needs B", "has B", "gap B", "why"):
        table.add_column(name, justify="right" if name.endswith(" B") else "left", overflow="fold")
    for one in found.parts:
        sizes = ("-" if size is None else str(size) for size in (one.need_bytes, one.have_bytes, one.gap_bytes))
        table.add_row(one.part, one.verdict, *sizes, one.why)
    console.print(table)
    console.print(f"Memory: {how}.", highlight=False, markup=False)
