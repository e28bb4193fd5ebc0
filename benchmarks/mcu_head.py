"""Heads of split networks on a simulated Cortex-M4: frames against the host's, tails, RAM. A part of bench_mcu."""

import io
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.data import data_path, imagenet_samples
from edge_runtime.artefact import Artefact
from edge_runtime.codecs import codec_of, codecs_of
from edge_runtime.session import open_session
from edge_runtime.wire import decode_frame, decode_tensors, encode_tensors, limits_of
from export.cut_mcu import tflm_runner
from export.cut_pair import cut_network, list_cuts
from export.mcu.qemu import prove

BOARD, MACHINE = "stm32f746g-disco", "mps2-an386"
MORE_THAN_LATENT = 1500  # bytes of RAM that a head may need beside its plan and the latent


@dataclass(frozen=True)
class HeadTarget:
    """A model of HEADTAIL_DATA, cut at a row of `headtail split --list`."""

    id: str
    file: str
    row: int
    pictures: bool  # photographs; else random inputs


TARGETS = (
    HeadTarget("vww", "mlcommons-tiny/vww_96_int8", 11, True),
    HeadTarget("ic", "mlcommons-tiny/pretrainedResnet_quant", 9, True),
    HeadTarget("kws", "mlcommons-tiny/kws_ref_model", 8, False),
)


@dataclass
class _Sums:
    """Over all models."""

    frame_bytes_wrong: int = 0
    outputs_wrong: int = 0
    over: int = 0  # bytes of RAM beside plan and latent, at most
    asked: int = 0
    agreed: int = 0


def rows() -> Iterator[dict[str, Any]]:
    """Figures for each model, then the sums."""
    sums = _Sums()
    for target in TARGETS:
        yield from _one(target, sums)
    what = "bytes of frames and latents that differ between the Cortex-M4 and the host"
    yield _row("mcu_head.frames", what, sums.frame_bytes_wrong, "B", "==", 0, emulated=f"qemu {MACHINE}")
    what = f"inputs of {sums.asked} where head and tail.tflite differ from the unsplit network, all on tflite-micro"
    yield _row("mcu_head.tail", what, sums.outputs_wrong, "inputs", "==", 0)
    what = f"inputs of {sums.asked} with the unsplit network's top-1 (tflite-micro) when the tail runs on LiteRT"
    yield _row("mcu_head.litert_tail", what, round(sums.agreed / sums.asked, 4), "ratio", "info")
    what = (
        f"RAM beside plan and latent (frame header, stack), the most of {len(TARGETS)} heads; wanted {MORE_THAN_LATENT}"
    )
    yield _row("mcu_head.ram", what, sums.over, "B", "info", emulated=f"qemu {MACHINE}")


def _one(target: HeadTarget, sums: _Sums) -> Iterator[dict[str, Any]]:
    model = data_path(f"models/{target.file}.tflite")
    cuts = list_cuts(model)
    shape = {"vww": (96, 96, 3), "ic": (32, 32, 3), "kws": (49, 10, 1)}[target.id]
    calibration, inputs = _inputs(shape, pictures=target.pictures)
    with tempfile.TemporaryDirectory() as name:
        np.savez(Path(name, "calibration.npz"), inputs=calibration)
        head, tail = cut_network(
            model, cuts.cuts[target.row].names, out=name, target=BOARD, calibration=Path(name, "calibration.npz")
        )
        latent = sum(spec.nbytes for spec in head.manifest.outputs)
        run = prove(head.folder, machine=MACHINE)
        sums.frame_bytes_wrong += run.differing
        sums.over = max(sums.over, run.ram_bytes - run.arena_bytes - latent)
        mean = _ask(model, head, tail, inputs, sums)
    emulated = f"qemu {MACHINE}"
    what = f"{target.id} head, {latent} B of latent: arena {run.arena_bytes} + frame buffer {run.buffer_bytes} + stack {run.stack_bytes}"
    yield _row(f"mcu_head.{target.id}.ram", what, run.ram_bytes, "B", "info", emulated=emulated)
    what = f"{target.id} head and frame: constants, tables and code"
    yield _row(f"mcu_head.{target.id}.flash", what, run.flash_bytes, "B", "info", emulated=emulated)
    what = f"{target.id} head, entropy coder and CRC together"
    yield _row(f"mcu_head.{target.id}.insn", what, run.instructions, "instructions", "info", emulated=emulated)
    kind = "photographs" if target.pictures else "random inputs"
    what = f"{target.id}: mean frame with header over {len(inputs)} {kind} (latent {latent} B)"
    yield _row(f"mcu_head.{target.id}.frame", what, round(mean, 1), "B", "info")


def _ask(model: Path, head: Artefact, tail: Artefact, inputs: np.ndarray, sums: _Sums) -> float:
    """Send every input through head, frame and tail; returns the mean frame size in bytes."""
    outputs = len(tail.manifest.outputs)
    whole, rest = tflm_runner(model.read_bytes(), outputs), tflm_runner(tail.entry.read_bytes(), outputs)
    first, other = open_session(head), open_session(tail)
    (code, codec), codecs, limits = codec_of(head), codecs_of(tail), limits_of(tail.manifest.inputs)
    sizes = []
    for one in inputs[:, None]:
        frame = b"".join(encode_tensors(first.run([one]), cut_id=bytes.fromhex(head.key), codec=codec, code=code))
        sizes.append(len(frame))
        latents = decode_tensors(decode_frame(frame, limits), codecs)
        wanted, found, host = whole([one])[0], rest(latents)[0], other.run(latents)[0]
        sums.asked += 1
        sums.outputs_wrong += wanted.tobytes() != found.tobytes()
        sums.agreed += int(wanted.argmax() == host.argmax())
    return float(np.mean(sizes))


def _inputs(shape: tuple[int, int, int], *, pictures: bool) -> tuple[np.ndarray, np.ndarray]:
    """int8 samples for the tables, and other ones to ask with; shape (count, height, width, channels)."""
    if not pictures:
        found = np.random.default_rng(0).normal(0, 40, (96, *shape)).round()
        stored = np.clip(found, -128, 127).astype(np.int8)
        return stored[:32], stored[32:]
    samples = imagenet_samples()
    size = (shape[1], shape[0])
    small = [
        np.asarray(Image.open(io.BytesIO(samples.pictures[index])).convert("RGB").resize(size), np.int16) - 128
        for index in (*samples.calibration()[:50], *samples.evaluation()[:100])
    ]
    stored = np.stack(small).astype(np.int8)
    count = len(samples.calibration()[:50])
    return stored[:count], stored[count:]


def _row(
    name: str, what: str, value: float, unit: str, direction: str, bar: float | None = None, emulated: str | None = None
) -> dict[str, Any]:
    return {
        "id": name,
        "what": what,
        "value": value,
        "unit": unit,
        "direction": direction,
        "bar": bar,
        "emulated": emulated,
    }
