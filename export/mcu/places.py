"""The place `qemu`: an export's proof program on a simulated Cortex-M, byte for byte against TensorFlow Lite Micro."""

from device_profiles import load_board
from edge_runtime.artefact import Artefact
from edge_runtime.places import Check, Report
from export.mcu.errors import ProofError
from export.mcu.folder import default_machine
from export.mcu.qemu import prove
from export.mcu.to_c import limits_of


class QemuPlace:
    """A simulated Cortex-M; without a name the one that is large enough for the artefact's board."""

    def __init__(self, machine: str = "") -> None:
        self.machine = machine

    def verify(self, artefact: Artefact) -> Report:
        """Build a copy of the artefact's C and run its golden inputs; see `Place.verify`.

        Counts are instructions: an emulator knows no time.

        Raises:
            ProofError: The artefact holds no C, or its proof program gives no result.
            ToolchainError: Compiler or emulator is missing.
        """
        if "Makefile" not in artefact.manifest.files_by_path:
            raise ProofError(
                f"Wanted an artefact with C for a microcontroller, found one for {artefact.manifest.target} without. "
                "Export it with --target and one of the boards of kind mcu (headtail devices)."
            )
        machine = self.machine or default_machine(limits_of(load_board(artefact.manifest.target)))
        run = prove(artefact.folder, machine=machine)
        checks = tuple(
            Check(
                inputs=(f"case {case.number}",),
                compare="exact",
                tolerance=0.0,
                worst=float(case.differing),
                passed=case.differing == 0 and case.hash == case.wanted,
                ms=None,
                instructions=run.instructions if case is run.cases[-1] else None,
            )
            for case in run.cases
        )
        engine = f"generated C: arena {run.arena_bytes} B, stack {run.stack_bytes} B, flash {run.flash_bytes} B"
        return Report(f"{machine} (emulated)", artefact.id, engine, None, checks)


def qemu() -> QemuPlace:
    """The entry point `qemu` of `headtail.places`."""
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
