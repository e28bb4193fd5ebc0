"""All files of an export folder, as bytes: sources, build files, proof program, golden vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from device_profiles.version import __version__
from export.mcu.emit_frame import FrameCode, frame_sources, host_frame
from export.mcu.emit_network import NetworkCode, comment_text, make_environment
from export.mcu.errors import ScheduleError
from export.mcu.machines import MACHINES, Limits, Machine, place
from export.mcu.oracle import Truth
from export.mcu.report import STACK_BYTES
from split.patch_plan import InputMode, Plan

HERE = Path(__file__).parent
MODE_TEXT = {
    InputMode.RESIDENT: "in the arena, intact during the run",
    InputMode.OVERWRITTEN: "in the arena, overwritten during the run",
    InputMode.PULLED: "read row by row through a function of yours",
    InputMode.EXTERNAL: "anywhere in memory at an address that 4 divides, passed by address",
}


@dataclass(frozen=True)
class FolderRequest:
    """What a folder is made of.

    Attributes:
        code: The network's two files.
        plan: Its schedule.
        name: Free text for titles.
        source: Where the network came from.
        limits: The board.
        truths: Golden vectors, at least one.
        reference: The engine that they come from.
        frame: Of a head: the files that write its frame, and what a golden frame is made with.
    """

    code: NetworkCode
    plan: Plan
    name: str
    source: str
    limits: Limits
    truths: Sequence[Truth]
    reference: str = "TensorFlow Lite Micro"
    frame: FrameCode | None = None


def make_folder(request: FolderRequest) -> dict[str, bytes]:
    """Write an export folder, report and picture left out.

    Returns:
        Content by relative path.

    Raises:
        ScheduleError: No simulated machine has memories as large as the board's.
    """
    files = {f"src/{path.name}": path.read_bytes() for path in library_sources()}
    prefix = request.code.prefix
    files[f"src/{prefix}.c"] = request.code.source.encode("ascii")
    files[f"src/{prefix}.h"] = request.code.header.encode("ascii")
    if request.frame is not None:
        files |= _frame_files(request.frame, request.truths)
    files |= _proof_files(request)
    for i, truth in enumerate(request.truths):
        inputs = iter(truth.inputs)
        outputs = iter(truth.outputs)
        for port in request.code.ports:
            data = next(inputs) if port.role == "input" else next(outputs)
            files[f"golden/{i:02d}_{port.function}.bin"] = data.tobytes()
    return files | _build_files(request)


def _frame_files(frame: FrameCode, truths: Sequence[Truth]) -> dict[str, bytes]:
    """What a head has besides its network: coder, frame writer, tables, and the host's own frames of the golden inputs."""
    files = {f"src/{path.name}": path.read_bytes() for path in frame_sources()}
    files |= {f"src/{name}": text.encode("ascii") for name, text in frame.files.items()}
    return files | {f"golden/{i:02d}_frame.bin": host_frame(frame, one.outputs) for i, one in enumerate(truths)}


def library_sources() -> list[Path]:
    """The hand-written C of every export: kernels and step loop."""
    return sorted(p for folder in ("kernels", "runtime") for p in (HERE / folder).iterdir() if p.suffix in (".c", ".h"))


def usable_machines(limits: Limits) -> list[Machine]:
    """Machines whose memories hold the board's."""
    found = []
    for machine in MACHINES.values():
        try:
            place(machine, limits)
        except ScheduleError:
            continue
        found.append(machine)
    if not found:
        place(MACHINES["mps2-an386"], limits)  # raises with the figures
    return found


def default_machine(limits: Limits) -> str:
    """The machine that ``make qemu`` takes: the simulated Cortex-M4 when it is large enough."""
    names = [machine.name for machine in usable_machines(limits)]
    return "mps2-an386" if "mps2-an386" in names else names[0]


def _proof_files(request: FolderRequest) -> dict[str, bytes]:
    environment, code, limits = make_environment(), request.code, request.limits
    first = next(port for port in code.ports if port.role == "input")
    proof = environment.get_template("proof.c.j2").render(
        prefix=code.prefix,
        guard=code.prefix.upper(),
        ports=code.ports,
        mode=code.mode.value,
        row_bytes=first.width * first.channels,
        first_input=first.function,
        cases=len(request.truths),
        reference=request.reference,
        has_frame=request.frame is not None,
        given={
            InputMode.PULLED: f", give_row, {first.function}_bytes",
            InputMode.EXTERNAL: f", {first.function}_bytes",
        }.get(code.mode, ""),
        path_room=max(len(port.function) for port in code.ports) + 4,
    )
    files = {f"proof/proof_{code.prefix}.c": proof.encode("ascii")}
    files |= {
        f"proof/{p.name}": p.read_bytes() for p in sorted((HERE / "harness").iterdir()) if p.suffix in (".c", ".h")
    }
    for machine in usable_machines(limits):
        flash, sram = place(machine, limits)
        text = environment.get_template("board.ld.j2").render(
            machine=machine.name,
            prefix=code.prefix,
            board=comment_text(limits.board),
            vectors=machine.vectors,
            flash_start=flash.start,
            flash_bytes=flash.size_bytes,
            sram_start=sram.start,
            sram_bytes=sram.size_bytes,
            own_start=machine.own.start,
            own_bytes=machine.own.size_bytes,
            stack_bytes=STACK_BYTES,
        )
        files[f"proof/{machine.name}.ld"] = text.encode("ascii")
    return files


@dataclass(frozen=True)
class _MachineLine:
    """A machine as the Makefile shows it; one tick of SysTick takes ``picoseconds``, one instruction 1000."""

    name: str
    flags: tuple[str, ...]
    picoseconds: int


def _build_files(request: FolderRequest) -> dict[str, bytes]:
    environment, code, limits = make_environment(), request.code, request.limits
    machines = usable_machines(limits)
    default = default_machine(limits)
    context = {
        "prefix": code.prefix,
        "title": comment_text(request.name),
        "source": comment_text(request.source),
        "version": __version__,
        "board": comment_text(limits.board),
        "arena_bytes": max(request.plan.arena_bytes, 4),
        "frame_bytes": request.frame.buffer_bytes if request.frame else 0,
        "latent_bytes": request.frame.latent_bytes if request.frame else 0,
        "constants_bytes": code.constant_bytes,
        "schedule": ", ".join(dict.fromkeys(segment.kind.value for segment in request.plan.segments)),
        "mode_text": MODE_TEXT[code.mode],
        "example": _example(code) if request.frame is None else _frame_example(code),
        "reference": request.reference,
        "machines": [_MachineLine(m.name, m.flags, 10**12 // m.clock_hz) for m in machines],
        "machine_names": ", ".join(m.name for m in machines),
        "default_machine": default,
        "default_core": MACHINES[default].core,
    }
    templates = {
        "Makefile": "Makefile.j2",
        "CMakeLists.txt": "CMakeLists.txt.j2",
        "README.md": "README.md.j2",
        "library.properties": "library.properties.j2",
        "library.json": "library.json.j2",
        "zephyr/module.yml": "module.yml.j2",
    }
    return {path: environment.get_template(name).render(context).encode() for path, name in templates.items()}


def _frame_example(code: NetworkCode) -> str:
    """A few lines of C that make a frame."""
    given = {InputMode.PULLED: ", camera_row, NULL", InputMode.EXTERNAL: ", picture"}.get(code.mode, "")
    buffer, size = f"{code.prefix}_frame_buffer", f"{code.prefix.upper()}_FRAME_BYTES"
    inputs = [port for port in code.ports if port.role == "input" and port.offset >= 0]
    fills = [
        f"fill({code.prefix}_{port.function}({code.prefix}_arena), {code.prefix.upper()}_{port.macro}_BYTES);"
        for port in inputs
    ]
    call = f"if ({code.prefix}_frame({code.prefix}_arena{given}, {buffer}, {size}, &frame) == 0) {{"
    return "\n".join(["ht_head_bytes frame;", *fills, call, "  send(frame.data, frame.size);", "}"])


def _example(code: NetworkCode) -> str:
    """A few lines of C that call the network."""
    run = f"{code.prefix}_run({code.prefix}_arena"
    inputs = [port for port in code.ports if port.role == "input" and port.offset >= 0]
    lines = [
        f"fill({code.prefix}_{port.function}({code.prefix}_arena), {code.prefix.upper()}_{port.macro}_BYTES);"
        for port in inputs
    ]
    if code.mode is InputMode.PULLED:
        lines.append(f"int status = {run}, camera_row, NULL); /* int camera_row(void *user, int32_t y, int8_t *row) */")
    elif code.mode is InputMode.EXTERNAL:
        lines.append(f"int status = {run}, frame);")
    else:
        lines.append(f"int status = {run});")
    lines += [
        f"const int8_t *{port.function} = {code.prefix}_{port.function}({code.prefix}_arena);"
        for port in code.ports
        if port.role == "output"
    ]
    return "\n".join(lines)
