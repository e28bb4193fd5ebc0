"""Does a model fit a board: flash, memory, engine and operators, with the gap in bytes.

Three answers for each part and for the whole: fits, does not fit, unknown. Unknown is never taken for a fit.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import msgspec

from device_profiles.errors import BoardError, FitError
from device_profiles.load import load_board, load_board_file
from device_profiles.schema import DeviceProfile

Verdict = Literal["fits", "does not fit", "unknown"]

# Engine name of a manifest -> words in a board's `runtimes` that stand for it.
_ENGINE_WORDS = {
    "onnxruntime": ("onnxruntime",),
    "litert": ("ai-edge-litert", "litert", "tflite"),
    "tflite-runtime": ("tflite-runtime", "tflite"),
    "tensorrt": ("tensorrt",),
    "tflite-micro": ("tflite-micro",),
    "generated-c": ("c (", "generated", "cmsis"),
}


class Needs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an artefact needs of a board. Sizes in bytes; null is not known."""

    name: str
    engine: str
    flash_bytes: int | None = None  # code and weights where they are stored
    ram_bytes: int | None = None  # at run time: arena, stack; on Linux weights and the engine too
    ops: tuple[str, ...] = ()


class PartFit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One part of the answer. `gap_bytes` > 0 is missing, < 0 is left over; null where it is no size or unknown."""

    part: Literal["board", "engine", "flash", "memory", "operators"]
    verdict: Verdict
    need_bytes: int | None = None
    have_bytes: int | None = None
    gap_bytes: int | None = None
    why: str


class Fit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whether an artefact fits a board."""

    name: str
    board: str
    parts: tuple[PartFit, ...]

    @property
    def verdict(self) -> Verdict:
        """The worst part: one that does not fit decides, then one that is unknown."""
        verdicts = {part.verdict for part in self.parts}
        return "does not fit" if "does not fit" in verdicts else "unknown" if "unknown" in verdicts else "fits"

    @property
    def fits(self) -> bool:
        """True only when every part is known to fit."""
        return self.verdict == "fits"


def check_fit(needs: Needs, board: DeviceProfile, *, supported_ops: Iterable[str] | None = None) -> Fit:
    """Compare needs with a board, part by part.

    Args:
        needs: Of the artefact; sizes >= 0.
        board: A microcontroller is judged by SRAM and flash, anything else by RAM (its storage is not in the file).
        supported_ops: Operators of the engine on that board; null is not known, and then unknown if any are needed.

    Raises:
        FitError: A size is negative.
    """
    for size in (needs.flash_bytes, needs.ram_bytes):
        if size is not None and size < 0:
            raise FitError(f"Wanted sizes >= 0 B, found {size} B for {needs.name}.")
    parts = [_engine(needs.engine, board)]
    if not board.usable:
        parts.append(PartFit(part="board", verdict="does not fit", why=board.notes or f"{board.id} runs no model"))
    if board.is_microcontroller:
        parts.append(_size("flash", needs.flash_bytes, board.flash_bytes, f"flash of {board.id}"))
        parts.append(_size("memory", needs.ram_bytes, board.sram_bytes, f"SRAM of {board.id}"))
    else:
        parts.append(_size("memory", needs.ram_bytes, board.ram_bytes, f"RAM of {board.id}"))
    parts.append(_operators(needs.ops, supported_ops))
    return Fit(name=needs.name, board=board.id, parts=tuple(parts))


def require_fit(fit: Fit) -> Fit:
    """Return the fit, or say what is missing.

    Raises:
        FitError: Something does not fit or is unknown; every such part is named, with its gap.
    """
    if fit.fits:
        return fit
    problems = "; ".join(f"{part.part}: {part.why}" for part in fit.parts if part.verdict != "fits")
    raise FitError(
        f"Wanted {fit.name} to fit {fit.board}, found that it {_VERB[fit.verdict]} ({problems}). "
        "Choose a larger board, a smaller model, or complete the board file (--board-file)."
    )


def resolve_board(board: str | None, board_file: Path | None) -> DeviceProfile:
    """The board of an id, or of a file of the user's own (`--board-file`).

    Raises:
        BoardError: Neither or both are given, not known, or not valid.
    """
    if board_file is not None and board is not None:
        raise BoardError(f"Wanted a board or --board-file, found both: {board!r} and {board_file}.")
    if board_file is not None:
        if not board_file.is_file():
            raise BoardError(f"Wanted a board file, found none at {board_file}.")
        return load_board_file(board_file)
    if board is None:
        raise BoardError("Wanted a board, found none. Name one of `headtail devices`, or a file with --board-file.")
    return load_board(board)


_VERB: dict[Verdict, str] = {"does not fit": "does not", "unknown": "is unknown whether it does", "fits": "does"}


def _engine(engine: str, board: DeviceProfile) -> PartFit:
    if not board.runtimes:
        return PartFit(part="engine", verdict="unknown", why=f"the runtimes of {board.id} are not known")
    words = _ENGINE_WORDS.get(engine, (engine,))
    for runtime in board.runtimes:
        if any(word in runtime.lower() for word in words) and (
            engine == "tflite-micro" or "tflite-micro" not in runtime.lower()
        ):
            return PartFit(part="engine", verdict="fits", why=f"{runtime} on {board.id}")
    return PartFit(
        part="engine", verdict="does not fit", why=f"{engine} is not among {', '.join(board.runtimes)} of {board.id}"
    )


def _size(part: Literal["flash", "memory"], need: int | None, have: int | None, what: str) -> PartFit:
    if need is None or have is None:
        missing = "what the artefact needs" if need is None else what
        return PartFit(
            part=part, verdict="unknown", need_bytes=need, have_bytes=have, why=f"{missing} ({part}) is not known"
        )
    gap = need - have
    why = f"needs {need} B, {what} is {have} B: {abs(gap)} B {'over' if gap > 0 else 'left'}"
    verdict: Verdict = "does not fit" if gap > 0 else "fits"
    return PartFit(part=part, verdict=verdict, need_bytes=need, have_bytes=have, gap_bytes=gap, why=why)


def _operators(ops: tuple[str, ...], supported: Iterable[str] | None) -> PartFit:
    if not ops:
        return PartFit(part="operators", verdict="fits", why="no operators are listed as needed")
    if supported is None:
        return PartFit(part="operators", verdict="unknown", why="the engine's operators are not known")
    missing = sorted(set(ops) - set(supported))
    if missing:
        return PartFit(part="operators", verdict="does not fit", why=f"not supported: {', '.join(missing)}")
    return PartFit(part="operators", verdict="fits", why=f"all {len(set(ops))} kinds are supported")
