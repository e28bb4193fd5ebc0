"""Builds and runs an export folder's proof program, on this machine or on a simulated Cortex-M."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from export.mcu.errors import ProofError, ToolchainError
from export.mcu.machines import find_machine

NEEDED = ("make", "arm-none-eabi-gcc", "arm-none-eabi-size", "qemu-system-arm")
CASE = re.compile(
    r"case (\d+): hash ([0-9a-f]{8}), (?:TensorFlow Lite Micro|LiteRT) ([0-9a-f]{8}), differing bytes (\d+)"
)
FIGURES = re.compile(r"arena (\d+) stack (\d+) instructions (\d+)")
LAYER = re.compile(r"layer (\d+) instructions (\d+)")
FRAME = re.compile(r"^frame (\d+) buffer (\d+)$", re.MULTILINE)
FLASH = re.compile(r"^flash (\d+)$", re.MULTILINE)
CONSTANTS = re.compile(r"^of which constants (\d+)$", re.MULTILINE)


@dataclass(frozen=True)
class ProofCase:
    """One input: hashes of the outputs and the number of bytes that differ."""

    number: int
    hash: str
    wanted: str
    differing: int


@dataclass(frozen=True)
class ProofRun:
    """What the proof program printed.

    Attributes:
        place: ``host`` or the QEMU machine.
        cases: One for each golden input.
        arena_bytes: The static arena.
        stack_bytes: Deepest painted stack below the call of the run function; 0 on the host.
        instructions: Of the last case's run; 0 on the host.
        flash_bytes: Constants and code that the linker put into the board's flash; 0 on the host.
        constant_bytes: Of the flash: the network's weights and tables, those of the schedule included.
        frame_bytes: The largest frame of a head; 0 without one.
        buffer_bytes: The buffer that frames are written into; 0 without one.
        layers: Instructions per operator (only with profiling), 255 stands for input rows.
    """

    place: str
    cases: tuple[ProofCase, ...]
    arena_bytes: int
    stack_bytes: int
    instructions: int
    flash_bytes: int
    constant_bytes: int
    frame_bytes: int = 0
    buffer_bytes: int = 0
    layers: dict[int, int] = field(default_factory=dict)

    @property
    def ram_bytes(self) -> int:
        """Arena, stack, and a head's frame buffer."""
        return self.arena_bytes + self.stack_bytes + self.buffer_bytes

    @property
    def differing(self) -> int:
        """Bytes that differ over all cases."""
        return sum(case.differing for case in self.cases)


def check_toolchain() -> None:
    """Find the compiler and the emulator.

    Raises:
        ToolchainError: A program is missing; the message names the packages.
    """
    missing = [program for program in NEEDED if shutil.which(program) is None]
    if missing:
        raise ToolchainError(
            f"{', '.join(missing)} not found on the path; wanted the Arm toolchain and QEMU. "
            "Run scripts/setup-mcu, or install make, gcc-arm-none-eabi, libnewlib-arm-none-eabi and qemu-system-arm."
        )


def prove(folder: Path, *, machine: str = "", options: Sequence[str] = (), timeout_s: float = 600.0) -> ProofRun:
    """Build a copy of an export folder and run its proof program.

    Args:
        folder: A folder of ``make_folder``; it is only read.
        machine: A QEMU machine, or empty for this machine.
        options: Further ``make`` variables, such as ``OPT=-O2`` or ``EXTRA=-DHH_PROFILE``.
        timeout_s: For build and run together.

    Returns:
        The figures, also when bytes differ; the caller decides.

    Raises:
        ToolchainError: A program is missing.
        ProofError: The build or the run failed, ran too long or printed no result.
    """
    if machine:
        find_machine(machine)
        check_toolchain()
        if not (folder / "proof" / f"{machine}.ld").is_file():
            raise ProofError(f"{machine} has no memories as large as the board's; see MACHINES in {folder}/Makefile.")
    with tempfile.TemporaryDirectory(prefix="headtail-mcu-") as scratch:
        copy = Path(scratch, "export")
        shutil.copytree(folder, copy)
        command = ["make", "-C", str(copy), "qemu" if machine else "host", *options]
        if machine:
            command.append(f"MACHINE={machine}")
        return _parse(_run(command, timeout_s), machine or "host")


def _run(command: list[str], timeout_s: float) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False, errors="replace")
    except subprocess.TimeoutExpired as error:
        raise ProofError(
            f"{' '.join(command[:4])} took more than {timeout_s:.0f} s; a smaller model or another machine?"
        ) from error
    except FileNotFoundError as error:
        raise ToolchainError(f"{command[0]} is not installed; run scripts/setup-mcu.") from error
    text = done.stdout + done.stderr
    if FIGURES.search(text) is None:
        tail = " | ".join(line for line in text.strip().splitlines()[-12:])
        raise ProofError(f"no result from {' '.join(command[3:])} (exit {done.returncode}): {tail[-1500:]}")
    return text


def _parse(text: str, place: str) -> ProofRun:
    figures = FIGURES.search(text)
    assert figures is not None
    frame = FRAME.search(text)
    flash, constants = FLASH.search(text), CONSTANTS.search(text)
    cases = tuple(ProofCase(int(m[1]), m[2], m[3], int(m[4])) for m in CASE.finditer(text))
    if not cases:
        raise ProofError(f"the proof program on {place} ran no case; is golden/ complete?")
    return ProofRun(
        place,
        cases,
        int(figures[1]),
        int(figures[2]),
        int(figures[3]),
        int(flash[1]) if flash else 0,
        int(constants[1]) if constants else 0,
        int(frame[1]) if frame else 0,
        int(frame[2]) if frame else 0,
        {int(m[1]): int(m[2]) for m in LAYER.finditer(text)},
    )
