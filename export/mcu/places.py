"""Simulated Cortex-M boards as places of ``headtail verify --on``."""

from __future__ import annotations

import time

from edge_runtime.artefact import Artefact
from edge_runtime.places import Check, Report
from export.mcu.errors import ProofError
from export.mcu.qemu import ProofRun, prove


class QemuPlace:
    """A board in QEMU; an empty name means the export's own default, usually the Cortex-M4."""

    def __init__(self, machine: str = "") -> None:
        self.machine = machine

    def verify(self, artefact: Artefact) -> Report:
        """Build the artefact's C for the board, run its golden vectors there and compare every byte.

        Raises:
            ProofError: The artefact holds no generated C, or it does not build or run.
            ToolchainError: Compiler or emulator are not installed.
        """
        folder = artefact.folder
        if not (folder / "Makefile").is_file() or not (folder / "proof").is_dir():
            raise ProofError(
                f"{folder} holds no generated C for a microcontroller. Export for one: headtail export MODEL --target BOARD."
            )
        begun = time.perf_counter()
        run = prove(folder, machine=self.machine or default_machine_of(artefact))
        ms = 1000 * (time.perf_counter() - begun)
        return Report("qemu", artefact.id, _engine(run), 0.0, tuple(_check(run, i, ms) for i in range(len(run.cases))))


def default_machine_of(artefact: Artefact) -> str:
    """The machine that the export's Makefile takes by default.

    Raises:
        ProofError: The Makefile names none.
    """
    for line in (artefact.folder / "Makefile").read_text().splitlines():
        name, separator, value = line.partition("?=")
        if separator and name.strip() == "MACHINE":
            return value.strip()
    raise ProofError(f"{artefact.folder}/Makefile names no MACHINE; export again.")


def _engine(run: ProofRun) -> str:
    return (
        f"generated C on {run.place} (emulated): {run.ram_bytes} B RAM ({run.arena_bytes} arena + {run.stack_bytes} stack), "
        f"{run.flash_bytes} B flash, {run.instructions} instructions"
    )


def _check(run: ProofRun, number: int, ms: float) -> Check:
    """One golden vector; ``worst`` is the number of bytes that differ, ``ms`` the share of build and emulation."""
    case = run.cases[number]
    return Check(
        (f"golden/{case.number:02d}",), "exact", 0.0, float(case.differing), case.differing == 0, ms / len(run.cases)
    )


def qemu() -> QemuPlace:
    """The entry point ``qemu``: the default board."""
    return QemuPlace()


def qemu_m3() -> QemuPlace:
    """The entry point ``qemu-m3``."""
    return QemuPlace("mps2-an385")


def qemu_m4() -> QemuPlace:
    """The entry point ``qemu-m4``."""
    return QemuPlace("mps2-an386")


def qemu_m7() -> QemuPlace:
    """The entry point ``qemu-m7``."""
    return QemuPlace("mps2-an500")


def qemu_m33() -> QemuPlace:
    """The entry point ``qemu-m33``."""
    return QemuPlace("mps2-an505")


def qemu_m55() -> QemuPlace:
    """The entry point ``qemu-m55``."""
    return QemuPlace("mps3-an547")
