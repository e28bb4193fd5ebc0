"""Microcontroller exports of public networks: RAM, instructions, flash, equality, planner bounds, export time.

    python -m benchmarks.bench_mcu [PART...]      models, boards, large, planner, schedules, head; all without one

RAM is arena and stack of the run alone, softmax included. Instructions are counted by QEMU (-icount), not cycles.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import mcu_head
from benchmarks.data import data_path, imagenet_samples
from benchmarks.rows import RESULTS, circumstances, make_row, merge_rows, parse_measurement, read_rows, write_rows
from export.mcu.emit_network import emit_network
from export.mcu.graph import to_patch_graph
from export.mcu.machines import MACHINES
from export.mcu.native import NativeNetwork, build_library
from export.mcu.network import Network, lower
from export.mcu.oracle import Oracle
from export.mcu.proof import prove_tensors
from export.mcu.qemu import ProofRun, prove
from export.mcu.to_c import McuExport, McuOptions, build_export
from export.mcu.vectors import proof_inputs
from split.patch import InputMode, PlanRequest, plan

BOARD = "mps2-an386"
PEER = {"peer": "TensorFlow Lite Micro with CMSIS-NN", "peer_version": "tflite-micro 90b983c2, CMSIS-NN 99f736a6"}
PICTURES = 4
PULLED, OVERWRITTEN, EXTERNAL = InputMode.PULLED, InputMode.OVERWRITTEN, InputMode.EXTERNAL


@dataclass(frozen=True)
class Target:
    """One row of the table: a model, how it gets its frame, and the bars. Flash None: weights, tables and 12 kB."""

    id: str
    file: str
    mode: InputMode
    ram: int
    instructions: int
    flash: int | None
    peer: str


TARGETS = (
    Target("ic", "mlcommons-tiny/pretrainedResnet_quant", OVERWRITTEN, 17_000, 31_000_000, 95_000, "54 996 B, 29.87 M"),
    Target("kws", "mlcommons-tiny/kws_ref_model", OVERWRITTEN, 7_200, 8_500_000, 45_000, "22 820 B, 7.70 M"),
    Target("vww_row", "mlcommons-tiny/vww_96_int8", PULLED, 15_600, 26_500_000, 262_000, "100 708 B, 24.10 M"),
    Target("vww_ram", "mlcommons-tiny/vww_96_int8", OVERWRITTEN, 41_500, 26_500_000, 262_000, "100 708 B, 24.10 M"),
    Target("ad", "mlcommons-tiny/ad01_int8", OVERWRITTEN, 1_500, 600_000, None, "2 580 B, 0.583 M"),
    Target("person", "tflite-micro/person_detect", PULLED, 15_600, 25_000_000, None, "82 308 B, 22.93 M"),
    Target("mcunet", "tinyengine/vww", PULLED, 18_500, 49_000_000, None, "224 580 B, 48.94 M"),
)
LARGE = (  # id, file, half of TensorFlow Lite Micro's arena (2 614 064 B and 2 607 168 B on x86-64)
    ("mcunetv2_large", "tinyengine/mcunetv2_large", 1_307_032),
    ("mbv2_224", "tflite-micro/mobilenet_v2_quantized_1x3x224x224", 1_303_584),
)


@dataclass(frozen=True)
class RoomyBoard:
    """A board that never is the limit."""

    id: str = "bench"
    sram_bytes: int = 1 << 20
    flash_bytes: int = 3 << 20


@dataclass(frozen=True)
class LargeBoard:
    """For the 224-class networks."""

    id: str = "bench-large"
    sram_bytes: int = 4 << 20
    flash_bytes: int = 4_100_000


def model_bytes(file: str) -> bytes:
    """A model of HEADTAIL_DATA."""
    return data_path(f"models/{file}.tflite").read_bytes()


def picture_inputs(network: Network) -> list[tuple[np.ndarray, ...]]:
    """Photographs as int8 frames, for networks that take one picture."""
    shapes = [network.values[port.key].shape for port in network.inputs]
    if len(shapes) != 1 or shapes[0][2] not in (1, 3) or min(shapes[0][:2]) < 30:
        return []
    height, width, channels = shapes[0]
    found = []
    for encoded in imagenet_samples().pictures[:PICTURES]:
        picture = Image.open(io.BytesIO(encoded)).convert("L" if channels == 1 else "RGB").resize((width, height))
        found.append(((np.asarray(picture, np.int16) - 128).astype(np.int8).reshape(height, width, channels),))
    return found


def export(data: bytes, name: str, folder: Path, mode: InputMode, **options: Any) -> tuple[McuExport, float]:
    """Export into a folder; also how long it took."""
    begun = time.perf_counter()
    board = options.pop("board", RoomyBoard())
    made = build_export(data, board, McuOptions(name=name, source=f"{name}.tflite", input_mode=mode, **options))
    seconds = time.perf_counter() - begun
    for relative, content in made.files.items():
        (folder / relative).parent.mkdir(parents=True, exist_ok=True)
        (folder / relative).write_bytes(content)
    return made, seconds


def model_rows() -> Iterator[dict[str, Any]]:
    """RAM, instructions and flash of every model on the Cortex-M4, and the Cortex-M55 figures."""
    slowest, differing = 0.0, 0
    for target in TARGETS:
        with tempfile.TemporaryDirectory() as folder:
            made, seconds = export(model_bytes(target.file), target.id, Path(folder, "x"), target.mode)
            slowest = max(slowest, seconds)
            run = prove(Path(folder, "x"), machine=BOARD)
            differing += run.differing
            yield from _figures(target, made, run)
            if target.id in ("ic", "kws"):
                helium = prove(Path(folder, "x"), machine="mps3-an547")
                differing += helium.differing
                bar = {"ic": 5_200_000, "kws": 2_000_000}[target.id]
                what = f"{target.id} on a Cortex-M55 with Helium"
                yield _row(f"{target.id}_m55.insn", what, helium.instructions, "instructions", bar, "mps3-an547")
    yield _row("export_time.models", "slowest export of these models", round(slowest, 2), "s", 60)
    yield _row("equal.models", "output bytes that differ, models on their board", differing, "B", 0, BOARD, "==")


def _figures(target: Target, made: McuExport, run: ProofRun) -> Iterator[dict[str, Any]]:
    what = f"{target.id} ({target.mode.value} frame; peer: {target.peer})"
    yield (
        _row(
            f"{target.id}.ram",
            f"{what}: arena {run.arena_bytes} + stack {run.stack_bytes}",
            run.ram_bytes,
            "B",
            target.ram,
            BOARD,
        )
        | PEER
    )
    yield _row(f"{target.id}.insn", what, run.instructions, "instructions", target.instructions, BOARD) | PEER
    allowed = made.network.weight_bytes if target.id == "ad" else run.constant_bytes
    bar = target.flash or allowed + 12_000
    what += f": constants {run.constant_bytes} + code {run.flash_bytes - run.constant_bytes}"
    yield _row(f"{target.id}.flash", what, run.flash_bytes, "B", bar, BOARD) | PEER


def board_rows() -> Iterator[dict[str, Any]]:
    """Output bytes that differ on every simulated board."""
    differing, runs = 0, 0
    for target in TARGETS:
        if target.id == "vww_ram":
            continue
        with tempfile.TemporaryDirectory() as folder:
            export(model_bytes(target.file), target.id, Path(folder, "x"), target.mode)
            for machine in MACHINES:
                run = prove(Path(folder, "x"), machine=machine)
                differing += run.differing
                runs += len(run.cases)
    what = f"output bytes that differ, {len(TARGETS) - 1} models on {len(MACHINES)} boards, {runs} runs"
    yield _row("equal.boards", what, differing, "B", 0, "QEMU, " + ", ".join(MACHINES), "==")


def large_rows() -> Iterator[dict[str, Any]]:
    """The 224-class networks: RAM against TensorFlow Lite Micro's arena, every tensor equal."""
    slowest = 0.0
    for name, file, bar in LARGE:
        data = model_bytes(file)
        with tempfile.TemporaryDirectory() as folder:
            made, seconds = export(data, name, Path(folder, "x"), OVERWRITTEN, cases=1, board=LargeBoard())
            slowest = max(slowest, seconds)
            run = prove(Path(folder, "x"), machine=BOARD)
            library = build_library(Path(folder, "library"))
            inputs = proof_inputs(made.network, count=2)
            proof = prove_tensors(
                made.network, Oracle(data, made.network), inputs, library=library, folder=Path(folder, "proof")
            )
        wrong = run.differing + sum(one.elements for one in proof.differences)
        yield (
            _row(
                f"{name}.ram",
                f"{name}: arena and stack, frame overwritten; bar: half of TensorFlow Lite Micro's arena",
                run.ram_bytes,
                "B",
                bar,
                BOARD,
            )
            | PEER
        )
        yield _row(f"{name}.insn", name, run.instructions, "instructions", None, BOARD)
        yield _row(f"{name}.flash", name, run.flash_bytes, "B", None, BOARD)
        yield _row(
            f"equal.{name}",
            f"{name}: elements that differ of {proof.elements} in every tensor, and of the output on a board",
            wrong,
            "elements",
            0,
            None,
            "==",
        )
    yield _row("export_time.large", "slowest export of the 224-class networks", round(slowest, 2), "s", 60)


def planner_rows() -> Iterator[dict[str, Any]]:
    """MCUNet-VWW at 80 x 80 under MAC limits; the frame is not counted."""
    graph = to_patch_graph(lower(model_bytes("tinyengine/vww")), name="vww-5fps")
    for factor, bar in ((1.1, 32_800), (1.3, 17_800), (1.96, 12_000)):
        chosen = plan(graph, PlanRequest(input_mode=EXTERNAL, max_mac_factor=factor))
        what = f"MCUNet-VWW-5fps activations without frame at MAC factor <= {factor} (found {chosen.mac_factor:.3f})"
        name = f"msf_5fps.f{str(factor).replace('.', '_')}"
        yield _row(name, what, chosen.arena_bytes, "B", bar) | {
            "peer": "msf-CNN",
            "peer_version": "fd74a7c8, result.json",
        }


def schedule_rows() -> Iterator[dict[str, Any]]:
    """Every tensor of the layer-wise build, and the outputs of all schedules, on this machine; photographs included."""
    tensors, outputs, elements, runs = 0, 0, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        library = build_library(Path(folder, "library"))
        for file in sorted({target.file for target in TARGETS}):
            data = model_bytes(file)
            network = lower(data)
            oracle = Oracle(data, network)
            inputs = proof_inputs(network) + picture_inputs(network)
            place = Path(folder, file.replace("/", "-"))
            proof = prove_tensors(network, oracle, inputs, library=library, folder=place / "tensors")
            tensors += sum(one.elements for one in proof.differences)
            elements += proof.elements
            truths = [truth.outputs for truth in oracle.run_all(inputs)]
            for number, request in enumerate(_requests()):
                chosen = plan(to_patch_graph(network, name="bench"), request)
                code = emit_network(network, chosen, name="bench", source=file)
                native = NativeNetwork(network, chosen, code, library=library, folder=place / str(number))
                for one, truth in zip(inputs, truths, strict=True):
                    runs += 1
                    outputs += sum(int((a != b).sum()) for a, b in zip(native.run(one), truth, strict=True))
    yield _row(
        "equal.tensors",
        f"elements that differ of {elements}, every tensor, layer by layer",
        tensors,
        "elements",
        0,
        None,
        "==",
    )
    yield _row(
        "equal.schedules",
        f"output elements that differ over {runs} runs of all schedules and frame modes",
        outputs,
        "elements",
        0,
        None,
        "==",
    )


def _requests() -> Iterator[PlanRequest]:
    for mode in InputMode:
        for schedule, factor in (("layer", 1.0), ("stream", 1.0), ("patch", 1.5), ("auto", 2.0)):
            yield PlanRequest(schedule=schedule, input_mode=mode, max_mac_factor=factor)


def _row(
    name: str, what: str, value: float, unit: str, bar: float | None, emulated: str | None = None, direction: str = "<="
) -> dict[str, Any]:
    return {
        "id": name, "what": what, "value": value, "unit": unit, "direction": "info" if bar is None else direction,
        "bar": bar, "emulated": f"qemu {emulated}" if emulated in MACHINES else emulated,
    }  # fmt: skip


PARTS = {
    "models": model_rows,
    "boards": board_rows,
    "large": large_rows,
    "planner": planner_rows,
    "schedules": schedule_rows,
    "head": mcu_head.rows,
}


def main() -> int:
    """Run parts, write their rows, print what does not hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="default: all")
    parts = parser.parse_args().parts or list(PARTS)
    path = RESULTS / "mcu.json"
    rows = read_rows(path)
    for part in parts:
        where = circumstances("make bench-mcu")
        for values in PARTS[part]():
            row = make_row(parse_measurement(part, values), where)
            rows = merge_rows(rows, [row])
            write_rows(path, rows)
            verdict = "info" if row.holds is None else ("ok" if row.holds else "FAILS")
            print(f"{verdict:<5} {row.id:<24} {row.value} {row.unit} (bar {row.bar})", flush=True)
    failing = [row.id for row in rows if row.holds is False]
    print(f"{len(rows)} rows, {len(failing)} do not hold{': ' + ', '.join(failing) if failing else ''}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
