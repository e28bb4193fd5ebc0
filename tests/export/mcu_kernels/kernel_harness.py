"""Builds the kernel runner for each variant and runs batches of cases in it.

Case file: int32 count, then per case: int32 kind, int32 output bytes, then the operator's words and blocks in the order
in which runner.c reads them. A block is int32 length, bytes, zeros up to a multiple of 4; length -1 stands for NULL.
"""

import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np

HERE = Path(__file__).absolute().parent
KERNELS = HERE.parents[2] / "export" / "mcu" / "kernels"
WARNINGS = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-Wconversion"]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g"]


@dataclass(frozen=True)
class Variant:
    """A compiler, its flags and how to run the result."""

    name: str
    compiler: str
    flags: tuple[str, ...]
    machine: str = ""  # QEMU machine; "" runs on the host
    code: int = 0
    ram: int = 0x2000_0000


VARIANTS = {
    v.name: v
    for v in (
        Variant("native", "gcc", ("-O1", *SANITIZE)),
        Variant("clang", "clang", ("-O2",)),
        Variant("m3", "arm-none-eabi-gcc", ("-mcpu=cortex-m3", "-mthumb", "-O2"), "mps2-an385"),
        Variant(
            "m4",
            "arm-none-eabi-gcc",
            ("-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16", "-O2"),
            "mps2-an386",
        ),
        Variant(
            "m4-clang",
            "clang",
            (
                "--target=arm-none-eabi",
                "-mcpu=cortex-m4",
                "-mthumb",
                "-mfloat-abi=hard",
                "-mfpu=fpv4-sp-d16",
                "-O2",
                "-isystem/usr/lib/arm-none-eabi/include",
                "-fshort-enums",
            ),
            "mps2-an386",
        ),
        Variant(
            "m55-clang",
            "clang",
            (
                "--target=arm-none-eabi",
                "-mcpu=cortex-m55",
                "-mthumb",
                "-mfloat-abi=hard",
                "-O2",
                "-isystem/usr/lib/arm-none-eabi/include",
                "-fshort-enums",
            ),
            "mps3-an547",
            ram=0x2100_0000,
        ),
        Variant(
            "m7-portable", "arm-none-eabi-gcc", ("-mcpu=cortex-m7", "-mthumb", "-Os", "-DHT_PORTABLE"), "mps2-an500"
        ),
        Variant(
            "m33",
            "arm-none-eabi-gcc",
            ("-mcpu=cortex-m33", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv5-sp-d16", "-O3"),
            "mps2-an505",
            code=0x1000_0000,
            ram=0x3800_0000,
        ),
        Variant(
            "m55",
            "arm-none-eabi-gcc",
            ("-mcpu=cortex-m55", "-mthumb", "-mfloat-abi=hard", "-O2"),
            "mps3-an547",
            ram=0x2100_0000,
        ),
    )
}


@dataclass(frozen=True)
class Case:
    """One kernel call: ``payload`` as runner.c reads it, and the bytes that it must give."""

    name: str
    kind: int
    payload: bytes
    expected: bytes


def words(*values: int) -> bytes:
    """int32 words."""
    return struct.pack(f"<{len(values)}i", *(int(v) for v in values))


def block(data: bytes | np.ndarray | None) -> bytes:
    """A block; None is NULL."""
    if data is None:
        return words(-1)
    raw = data if isinstance(data, bytes) else np.ascontiguousarray(data).tobytes()
    return words(len(raw)) + raw + b"\0" * (-len(raw) % 4)


def build(variant: Variant, folder: Path, extra: tuple[str, ...] = ()) -> Path:
    """Compile kernels and runner; every kernel with the strict warnings."""
    binary = folder / f"runner_{variant.name}"
    sources = sorted(KERNELS.glob("*.c"))
    objects = []
    for source in [*sources, HERE / "runner.c", HERE / "board.c"]:
        target = folder / f"{variant.name}_{source.stem}.o"
        strict = WARNINGS if source in sources else ["-std=gnu99", "-w"]
        command = [
            variant.compiler,
            *variant.flags,
            *extra,
            *strict,
            f"-I{KERNELS}",
            "-c",
            str(source),
            "-o",
            str(target),
        ]
        subprocess.run(command, check=True)
        objects.append(str(target))
    cross = variant.machine != ""
    flags = [flag for flag in variant.flags if not flag.startswith(("--target", "-isystem"))]
    link = ["arm-none-eabi-gcc" if cross else variant.compiler, *flags, *objects, "-o", str(binary)]
    if variant.machine:
        script = (HERE / "board.ld").read_text()
        script = script.replace("HT_CODE", hex(variant.code)).replace("HT_RAM", hex(variant.ram))
        (folder / f"{variant.name}.ld").write_text(script)
        link += ["--specs=rdimon.specs", "-nostartfiles", "-T", str(folder / f"{variant.name}.ld"), "-lc", "-lrdimon"]
    subprocess.run(link, check=True)
    return binary


def run(variant: Variant, binary: Path, cases: list[Case]) -> list[tuple[bytes, int]]:
    """Outputs and SysTick ticks (0 natively) of each case."""
    folder = binary.parent
    file = words(len(cases)) + b"".join(words(c.kind, len(c.expected)) + c.payload for c in cases)
    (folder / "cases.bin").write_bytes(file)
    if variant.machine:
        command = ["qemu-system-arm", "-M", variant.machine, "-nographic", "-monitor", "none", "-serial", "none"]
        command += ["-semihosting-config", "enable=on,target=native", "-icount", "shift=0", "-kernel", str(binary)]
    else:
        command = [str(binary), "cases.bin", "outputs.bin"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240)
    if done.returncode != 0:
        raise AssertionError(f"{variant.name} runner: exit {done.returncode}\n{done.stdout}\n{done.stderr[-3000:]}")
    raw = (folder / "outputs.bin").read_bytes()
    results, at = [], 0
    for case in cases:
        ticks = struct.unpack_from("<I", raw, at)[0]
        results.append((raw[at + 4 : at + 4 + len(case.expected)], ticks & 0xFFFFFF))
        at += 4 + len(case.expected)
    return results


def differences(cases: list[Case], results: list[tuple[bytes, int]]) -> list[str]:
    """A line per case whose bytes differ."""
    lines = []
    for case, (got, _) in zip(cases, results, strict=True):
        if got != case.expected:
            a, b = np.frombuffer(got, np.int8), np.frombuffer(case.expected, np.int8)
            first = int(np.flatnonzero(a != b)[0])
            lines.append(
                f"{case.name}: {np.count_nonzero(a != b)} of {a.size} differ, first {first}: {a[first]} != {b[first]}"
            )
    return lines
