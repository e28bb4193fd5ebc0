"""Signs three packages, builds the updater for a simulated Cortex-M4 and cuts the power at every flash operation.

python examples/mcu_update/run.py [FOLDER]
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from export.mcu.emit_network import make_environment
from export.mcu.folder import HERE as MCU
from export.mcu.machines import Limits, find_machine, place

HERE = Path(__file__).resolve().parent
MODEL_BYTES = (3000, 3333, 1024)  # stand for the constants of a network


def linker_script(folder: Path, machine_name: str) -> Path:
    """The export's own script, for a board of 64 KiB RAM and 64 KiB flash."""
    machine = find_machine(machine_name)
    limits = Limits("update-demo", 64 * 1024, 64 * 1024)
    flash, sram = place(machine, limits)
    text = make_environment().get_template("board.ld.j2").render(
        machine=machine.name, prefix="update", board=limits.board, vectors=machine.vectors, flash_start=flash.start,
        flash_bytes=flash.size_bytes, sram_start=sram.start, sram_bytes=sram.size_bytes, own_start=machine.own.start,
        own_bytes=machine.own.size_bytes, stack_bytes=2048,
    )  # fmt: skip
    path = folder / "board.ld"
    path.write_text(text)
    return path


def run(folder: Path, machine_name: str = "mps2-an386") -> str:
    """What the updater printed; its exit status must be 0."""
    machine = find_machine(machine_name)
    secret = folder / "secret.key"
    secret.write_bytes(os.urandom(32))
    for counter, size in enumerate(MODEL_BYTES, start=1):
        model = folder / f"model{counter}.bin"
        model.write_bytes(bytes((counter * 37 + i * 11) & 255 for i in range(size)))
        sign = [sys.executable, str(HERE / "sign.py"), str(secret), str(counter), str(model)]
        subprocess.run([*sign, str(folder / f"package{counter}.bin")], check=True)
    flags = [*machine.flags, "-std=c99", "-O2", "-Wall", "-Wextra", "-Werror", "-ffunction-sections", "-fdata-sections"]
    include = [f"-I{MCU / 'harness'}", f"-I{HERE}", "-DHH_PICOSECONDS=0u"]
    objects = []
    for source in (HERE / "update.c", HERE / "proof_update.c", MCU / "harness" / "hh_board.c"):
        objects.append(str(folder / f"{source.stem}.o"))
        subprocess.run(["arm-none-eabi-gcc", *flags, *include, "-c", str(source), "-o", objects[-1]], check=True)
    script = linker_script(folder, machine_name)
    link = ["arm-none-eabi-gcc", *machine.flags, "-nostartfiles", "-Wl,--gc-sections", "-T", str(script), *objects]
    subprocess.run([*link, "-lc", "-lgcc", "-o", str(folder / "update.elf")], check=True)
    emulate = ["qemu-system-arm", "-M", machine_name, "-nographic", "-monitor", "none", "-serial", "none"]
    emulate += ["-semihosting-config", "enable=on,target=native", "-kernel", "update.elf"]
    done = subprocess.run(emulate, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    text = done.stdout + done.stderr
    if done.returncode != 0:
        sys.exit(f"the updater failed ({done.returncode}): {text}")
    return text


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        print(run(folder.resolve()), end="")
