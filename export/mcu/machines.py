"""The boards that QEMU simulates: cores, compiler flags, memories, instruction clocks."""

from __future__ import annotations

from dataclasses import dataclass

from export.mcu.errors import ScheduleError, ToolchainError

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True)
class Region:
    """A stretch of simulated memory."""

    start: int
    size_bytes: int


@dataclass(frozen=True)
class Machine:
    """One QEMU machine.

    Attributes:
        name: QEMU's name.
        core: For reports.
        flags: Compiler flags of the core.
        vectors: Where the core looks for its vector table (inside ``code[0]``).
        code: Memories that may stand for flash, tried in order.
        data: Memories that may stand for SRAM, tried in order.
        own: Where the proof program itself lies; 16 MiB or more.
        clock_hz: SysTick's clock: with ``-icount shift=0`` one instruction takes 1 ns.
    """

    name: str
    core: str
    flags: tuple[str, ...]
    vectors: int
    code: tuple[Region, ...]
    data: tuple[Region, ...]
    own: Region
    clock_hz: int

    def instructions(self, ticks: int) -> int:
        """Instructions that ``ticks`` of SysTick stand for (to one tick)."""
        return ticks * 1_000_000_000 // self.clock_hz


_M3 = ("-mcpu=cortex-m3", "-mthumb")
_M4 = ("-mcpu=cortex-m4", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16", "-mthumb")
_AN38X_CODE = (Region(KIB, 4 * MIB - KIB), Region(0x21000000, 8 * MIB))
_AN38X_DATA = (Region(0x20000000, 4 * MIB), Region(0x21800000, 4 * MIB))
_AN38X_OWN = Region(0x21C00000, 4 * MIB)
MACHINES = {
    machine.name: machine
    for machine in (
        Machine("mps2-an385", "Cortex-M3", _M3, 0, _AN38X_CODE, _AN38X_DATA, _AN38X_OWN, 25_000_000),
        Machine("mps2-an386", "Cortex-M4", _M4, 0, _AN38X_CODE, _AN38X_DATA, _AN38X_OWN, 25_000_000),
        Machine(
            "mps2-an500", "Cortex-M7", ("-mcpu=cortex-m7", "-mfloat-abi=hard", "-mfpu=fpv5-sp-d16", "-mthumb"), 0,
            code=(Region(KIB, 4 * MIB - KIB), Region(0x60000000, 8 * MIB)),
            data=(Region(0x20000000, 4 * MIB),), own=Region(0x60800000, 8 * MIB), clock_hz=25_000_000,
        ),
        Machine(
            "mps2-an505", "Cortex-M33", ("-mcpu=cortex-m33", "-mfloat-abi=hard", "-mfpu=fpv5-sp-d16", "-mthumb"),
            0x10000000, code=(Region(0x10000000 + KIB, 4 * MIB - KIB), Region(0x80000000, 8 * MIB)),
            data=(Region(0x38000000, 4 * MIB),), own=Region(0x80800000, 8 * MIB), clock_hz=20_000_000,
        ),
        Machine(
            "mps3-an547", "Cortex-M55", ("-mcpu=cortex-m55", "-mfloat-abi=hard", "-mthumb"), 0,
            code=(Region(KIB, 511 * KIB), Region(0x60000000, 16 * MIB)),
            data=(Region(0x20000000, 512 * KIB), Region(0x21000000, 4 * MIB)), own=Region(0x61000000, 64 * MIB),
            clock_hz=32_000_000,
        ),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """What the linker enforces.

    Attributes:
        board: The board's name.
        sram_bytes: Arena and stack must fit.
        flash_bytes: Weights, tables and code must fit.
    """

    board: str
    sram_bytes: int
    flash_bytes: int


def find_machine(name: str) -> Machine:
    """Look a machine up.

    Raises:
        ToolchainError: It is not one of ``MACHINES``.
    """
    if name not in MACHINES:
        raise ToolchainError(f"no QEMU machine {name!r}; known: {', '.join(MACHINES)}.")
    return MACHINES[name]


def place(machine: Machine, limits: Limits) -> tuple[Region, Region]:
    """Choose where the board's flash and SRAM lie in a machine.

    Returns:
        Flash and SRAM, of exactly the board's sizes.

    Raises:
        ScheduleError: No memory of the machine is large enough.
    """
    found = []
    for what, wanted, regions in (
        ("flash", limits.flash_bytes, machine.code),
        ("SRAM", limits.sram_bytes // 8 * 8, machine.data),
    ):
        fitting = [r for r in regions if r.size_bytes >= wanted]
        if not fitting:
            most = max(r.size_bytes for r in regions)
            raise ScheduleError(
                f"{machine.name} can simulate at most {most} B of {what}, but {limits.board} has {wanted} B."
            )
        found.append(Region(fitting[0].start, wanted))
    return found[0], found[1]
