"""An int8 ``.tflite`` file becomes a folder of C for one microcontroller board."""

from __future__ import annotations

import importlib.util
import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import msgspec

from device_profiles.errors import FitError
from export.mcu.emit_frame import FrameCode, FrameRequest, emit_frame
from export.mcu.emit_network import NetworkCode, emit_network
from export.mcu.folder import FolderRequest, make_folder
from export.mcu.graph import to_patch_graph
from export.mcu.machines import Limits
from export.mcu.network import Network, lower, round_dense_once
from export.mcu.oracle import LitertOracle, Oracle, Truth
from export.mcu.report import CODE_BYTES, REPORT_NAME, STACK_BYTES, McuReport, make_report
from export.mcu.vectors import KINDS, proof_inputs
from split.patch import plan_and_front
from split.patch_plan import InputMode, Plan, PlanRequest

logger = logging.getLogger(__name__)


class Board(Protocol):
    """What must be known of a board (a ``DeviceProfile`` has it)."""

    @property
    def id(self) -> str:
        """Its name."""

    @property
    def sram_bytes(self) -> int | None:
        """RAM, None when unknown."""

    @property
    def flash_bytes(self) -> int | None:
        """Flash, None when unknown."""


@dataclass(frozen=True)
class McuOptions:
    """Choices of an export.

    Attributes:
        name: Of the model; the C functions are called ``ht_<name>_...``.
        source: Where the file came from, for comments.
        schedule: ``layer``, ``patch``, ``stream`` or ``auto``.
        input_mode: Where the first input lives.
        max_ram_bytes: Largest arena; None: what the board has.
        max_mac_factor: Most recomputation; 1.0: none.
        optimise: ``ram`` or ``speed``.
        rounding: Whose FULLY_CONNECTED to equal: ``tflm`` rounds twice, ``litert`` once.
        cases: Golden vectors.
        seed: Of the random ones.
        frame: Of the head of a split network: what its tail expects.
    """

    name: str
    source: str = "model.tflite"
    schedule: str = "auto"
    input_mode: InputMode = InputMode.OVERWRITTEN
    max_ram_bytes: int | None = None
    max_mac_factor: float | None = 1.0
    optimise: str = "ram"
    rounding: Literal["tflm", "litert"] = "tflm"
    cases: int = len(KINDS)
    seed: int = 0
    frame: FrameRequest | None = None


@dataclass(frozen=True, eq=False)
class McuExport:
    """An export in memory: the files and what they were made of."""

    files: Mapping[str, bytes]
    report: McuReport
    network: Network
    plan: Plan
    code: NetworkCode
    truths: tuple[Truth, ...]


def limits_of(board: Board) -> Limits:
    """The linker's limits.

    Raises:
        FitError: The board's RAM or flash is not known, so nothing can be said to fit.
    """
    if not board.sram_bytes or not board.flash_bytes:
        raise FitError(
            f"{board.id} has {board.sram_bytes} B of SRAM and {board.flash_bytes} B of flash on record; wanted both. "
            "Write a board file with these figures (docs/devices.md)."
        )
    return Limits(board.id, board.sram_bytes, board.flash_bytes)


def build_export(model: bytes, board: Board, options: McuOptions) -> McuExport:
    """Turn a model into the files of an export.

    Args:
        model: An int8 ``.tflite`` file, from any source.
        board: Its SRAM and flash are limits.
        options: See ``McuOptions``.

    Returns:
        Files by relative path, report included.

    Raises:
        ModelFileError: The file is damaged.
        UnsupportedOpError: An operator without exact C.
        FitError: It does not fit; the message names the missing bytes and the layer.
        ScheduleError: An input that is an output too is to stay in the caller's memory.
        PatchGraphError: A schedule that is unknown, or a factor that is no finite number.
        MissingDependencyError: The reference engine is not installed.
        ProofError: The reference engine refuses the model or crashes on it.
    """
    limits = limits_of(board)
    network = lower(model)
    if options.rounding == "litert":
        network = round_dense_once(network)
    graph = to_patch_graph(network, name=options.name)
    room = limits.sram_bytes - STACK_BYTES
    request = PlanRequest(
        schedule=options.schedule,
        input_mode=options.input_mode,
        max_ram_bytes=room if options.max_ram_bytes is None else min(room, options.max_ram_bytes),
        max_mac_factor=options.max_mac_factor,
        optimise=options.optimise,
    )
    chosen, front = plan_and_front(graph, request)
    code = emit_network(network, chosen, name=options.name, source=options.source)
    frame = emit_frame(network, code, options.frame) if options.frame else None
    flash = code.constant_bytes + CODE_BYTES + (frame.constant_bytes if frame else 0)
    if flash > limits.flash_bytes:
        raise FitError(
            f"{options.name} needs about {flash} B of flash but {limits.board} has {limits.flash_bytes} B "
            f"({flash - limits.flash_bytes} B over, of which weights {network.weight_bytes} B). Take a smaller network."
        )
    if frame is not None:
        check_frame_room(chosen, frame, limits, name=options.name)
    oracle = LitertOracle(model, network) if options.rounding == "litert" else Oracle(model, network)
    truths = oracle.run_all(proof_inputs(network, count=options.cases, seed=options.seed))
    files = make_folder(
        FolderRequest(code, chosen, options.name, options.source, limits, truths, reference=oracle.name, frame=frame)
    )
    report = make_report(network, chosen, code, limits, front, cases=len(truths), frame=frame)
    files |= draw_picture(chosen, limits)
    files[REPORT_NAME] = msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"
    return McuExport(files, report, network, chosen, code, truths)


def check_frame_room(chosen: Plan, frame: FrameCode, limits: Limits, *, name: str) -> None:
    """A head's frame lies beside its arena.

    Raises:
        FitError: There is no room for both and a stack.
    """
    needed = chosen.arena_bytes + frame.buffer_bytes + STACK_BYTES
    if needed > limits.sram_bytes:
        raise FitError(
            f"{name} needs {needed} B of SRAM (arena {chosen.arena_bytes}, frame {frame.buffer_bytes}, stack {STACK_BYTES}) "
            f"but {limits.board} has {limits.sram_bytes} B ({needed - limits.sram_bytes} B over). "
            "Cut where less crosses (headtail split MODEL --list)."
        )


def draw_picture(chosen: Plan, limits: Limits) -> dict[str, bytes]:
    """Memory over the schedule as SVG and PNG; nothing when matplotlib (extra ``report``) is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        logger.warning("no memory picture: matplotlib is not installed; pip install 'headtail[report]'")
        return {}
    from export.mcu.memory_picture import draw_memory

    with tempfile.TemporaryDirectory() as folder:
        lines = {limits.board: limits.sram_bytes} if limits.sram_bytes < 4 * chosen.arena_bytes else {}
        pictures = draw_memory(chosen, Path(folder, "memory"), limits=lines)
        return {path.name: path.read_bytes() for path in pictures}


def export_mcu(model: bytes, board: Board, out_dir: Path, options: McuOptions) -> McuReport:
    """Write an export folder; files of an earlier export in it are replaced.

    Raises:
        EdgeError: As ``build_export``.
    """
    export = build_export(model, board, options)
    for relative, content in export.files.items():
        target = out_dir / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return export.report
