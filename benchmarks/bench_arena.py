"""The arena of generated C: what the planner says against the symbol in the linker's map, byte for byte."""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.bench_mcu import TARGETS, export, model_bytes
from device_profiles.errors import EdgeError

_SYMBOL = re.compile(r"^\s*\.bss\.(?P<name>\w+_arena)\s*\n?\s+0x[0-9a-f]+\s+0x(?P<size>[0-9a-f]+)", re.MULTILINE)


class MapError(EdgeError):
    """The linker's map does not name the arena."""


def rows() -> list[dict[str, Any]]:
    """Row arena: bytes by which plan and map differ, over all models."""
    differing, sizes = 0, []
    for target in TARGETS:
        with tempfile.TemporaryDirectory() as folder:
            made, _ = export(model_bytes(target.file), target.id, Path(folder, "x"), target.mode)
            linked = mapped_bytes(Path(folder, "x"))
        planned = made.plan.arena_bytes
        differing += abs(planned - linked)
        sizes.append(f"{target.id} {planned}")
    what = f"planned arena against the linker map, bytes that differ over {len(sizes)} models ({', '.join(sizes)})"
    return [{"id": "arena", "what": what, "value": differing, "unit": "B", "direction": "==", "bar": 0}]


def mapped_bytes(folder: Path) -> int:
    """Size of the arena in the map of a partial link of the network's sources for a Cortex-M7.

    Raises:
        MapError: No such symbol.
    """
    flags = ["-mcpu=cortex-m7", "-mthumb", "-std=c99", "-O2", "-fdata-sections", "-fno-common", f"-I{folder / 'src'}"]
    objects = []
    for source in sorted((folder / "src").glob("*.c")):
        objects.append(str(folder / f"{source.stem}.o"))
        subprocess.run(["arm-none-eabi-gcc", *flags, "-c", source, "-o", objects[-1]], check=True)
    listing = folder / "map"
    link = ["arm-none-eabi-gcc", "-mcpu=cortex-m7", "-mthumb", "-nostdlib", "-r", f"-Wl,-Map={listing}"]
    subprocess.run([*link, *objects, "-o", str(folder / "all.o")], check=True)
    found = _SYMBOL.search(listing.read_text())
    if found is None:
        raise MapError(f"Wanted the arena in {listing}, found no such symbol.")
    return int(found["size"], 16)


if __name__ == "__main__":
    for row in rows():
        print(row)
