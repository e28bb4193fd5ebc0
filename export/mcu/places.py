"""The place `qemu`: an export's proof program on a simulated Cortex-M, byte for byte against TensorFlow Lite Micro."""

from datetime import datetime, timezone

import msgspec

from device_profiles import load_board
from device_profiles.measurement import EngineSettings, KernelTime, MemoryUse, Percentiles, Profile
from edge_runtime.artefact import Artefact
from edge_runtime.places import Check, Report
from edge_runtime.profile_process import ProfilerError
from edge_runtime.profiler import ProfileOptions
from export.mcu.errors import ProofError
from export.mcu.folder import default_machine
from export.mcu.qemu import prove
from export.mcu.report import REPORT_NAME, McuReport
from export.mcu.to_c import limits_of

_COUNTED = ("EXTRA=-DHH_PROFILE",)


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
        machine = self._machine_for(artefact)
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

    def profile(self, artefact: Artefact, options: ProfileOptions) -> Profile:
        """Count the instructions of one run, whole and by operator; see `Place.profile`. Nothing here is a time.

        Raises:
            ProofError: The artefact holds no C, or its proof program gives no result.
            ProfilerError: Options that only a real device can follow.
            ToolchainError: Compiler or emulator is missing.
        """
        if options.minutes or options.power or options.power_csv:
            raise ProfilerError(
                "Wanted an instruction count, found --minutes or --power: an emulator knows neither time nor power."
            )
        machine = self._machine_for(artefact)
        whole, split = (
            prove(artefact.folder, machine=machine),
            prove(artefact.folder, machine=machine, options=_COUNTED),
        )
        report = msgspec.json.decode(artefact.path(REPORT_NAME).read_bytes(), type=McuReport)
        names = [name for segment in report.segments for name in segment.operators]
        kernels = tuple(
            _kernel(names[index] if index < len(names) else "input rows", n) for index, n in split.layers.items()
        )
        manifest = artefact.manifest
        return Profile(
            board=f"qemu-{machine}",
            model=manifest.model.name,
            model_sha256=manifest.model.source_sha256,
            precision=manifest.precision,
            engine=EngineSettings(name="generated-c", version=manifest.tool.version),
            unit="instructions",
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            whole=_count(whole.instructions),
            whole_profiled=_count(split.instructions),
            kernels=kernels,
            memory=MemoryUse(
                weights=report.weight_bytes,
                arena_peak=whole.arena_bytes,
                sram_peak=whole.ram_bytes,
                stack_peak=whole.stack_bytes,
                flash=whole.flash_bytes,
            ),
            remarks=(f"emulated on {machine}: instructions, not cycles and not time",),
        )

    def _machine_for(self, artefact: Artefact) -> str:
        if "Makefile" not in artefact.manifest.files_by_path:
            raise ProofError(
                f"Wanted an artefact with C for a microcontroller, found one for {artefact.manifest.target} without. "
                "Export it with --target and one of the boards of kind mcu (headtail devices)."
            )
        return self.machine or default_machine(limits_of(load_board(artefact.manifest.target)))


def _count(instructions: int) -> Percentiles:
    """An exact count: the same in every run."""
    return Percentiles(p50=instructions, p90=instructions, p99=instructions, runs=1)


def _kernel(name: str, instructions: int) -> KernelTime:
    kind = name.rsplit("_", 1)[0]
    return KernelTime(name=name, nodes=(name,), kind=kind, macs=0, bytes=0, latency=_count(instructions))


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
