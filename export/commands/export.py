"""`headtail export MODEL --target BOARD`: a model becomes an artefact, and what was measured is said."""

import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from edge_runtime.artefact import Artefact
from edge_runtime.manifest import EngineName, Licence, Precision, Preprocessing
from export.commands.output import print_json
from export.pipeline import export_model
from export.report import findings
from export.request import ExportOptions, McuChoices
from export.source import SourceError


def export(
    model: str,
    *,
    target: str,
    precision: Precision | None = None,
    calibration: Path | None = None,
    engine: EngineName | None = None,
    data: Path | None = None,
    label_key: str = "",
    out: Path | None = None,
    crop: str | None = None,
    resize_short: int | None = None,
    mean: str = "0",
    std: str = "1",
    interpolation: Literal["bilinear", "bicubic"] = "bilinear",
    labels: Path | None = None,
    licence: tuple[str, ...] = (),
    threads: int = 1,
    schedule: Literal["auto", "layer", "patch", "stream"] = "auto",
    input_mode: Literal["overwritten", "resident", "pulled", "external"] = "overwritten",
    max_ram: int | None = None,
    max_macs_factor: float = 1.0,
    optimise: Literal["ram", "speed"] = "ram",
    rounding: Literal["tflm", "litert"] = "tflm",
    json: bool = False,
) -> None:
    """Turn a model into an artefact for a board.

    MODEL is `module:function`, an .onnx or a .tflite file. The function takes no argument and returns
    (module, example input), (module, example input, Preprocessing) or an `export.source.ModelSource`; it is looked
    for in the current directory first. From torch there is a way to every board, from .onnx to ONNX engines, from
    .tflite to LiteRT and microcontrollers. A second identical export comes from the cache (HEADTAIL_CACHE).

    Args:
        model: What to export.
        target: The board, see `headtail devices`; "this" is the machine at hand.
        precision: fp32, fp16 or int8. Default: int8 for microcontrollers, with --calibration or of a quantised file, fp16 for GPUs, else fp32.
        calibration: Folder of pictures like those that the device will see, or an .npz of inputs or pictures; needed for int8.
        engine: Default: onnxruntime on Linux boards, tensorrt on Jetson, tflite-micro on microcontrollers.
        data: Folder of pictures in folders named by class id, or an .npz with `labels`: measure accuracy on it.
        label_key: Array of an .npz of --data that holds the class ids.
        out: Folder of the artefact. Default: build/MODEL-BOARD-PRECISION.
        crop: Input is a picture: size of the centre crop, "224" or "224x320". The module's own Preprocessing wins.
        resize_short: Resize the short side to this before the crop.
        mean: Subtracted from each pixel (0..255): one number, or three with commas.
        std: Divides after that: one number, or three with commas.
        interpolation: Of the resize.
        labels: Text file with one class name a line.
        licence: "SPDX-ID: attribution" of the weights; may be given several times.
        threads: Of the engine on the board.
        schedule: Microcontrollers: run layer by layer, in patches, in row streams, or whatever is best.
        input_mode: Microcontrollers: the frame is overwritten as it is read, kept, pulled by row, or the caller's.
        max_ram: Microcontrollers: largest arena in bytes. Default: what the board has.
        max_macs_factor: Microcontrollers: how much patches may compute twice, 1 for nothing.
        optimise: Microcontrollers: least RAM, or least instructions.
        rounding: Microcontrollers: whose FULLY_CONNECTED to equal.
        json: Print the artefact's folder, identifiers and findings as JSON.
    """
    options = ExportOptions(
        precision=precision,
        engine=engine,
        calibration=calibration,
        data=data,
        label_key=label_key,
        preprocessing=_preprocessing(crop, resize_short, mean, std, interpolation),
        labels=() if labels is None else _read_labels(labels),
        licences=tuple(_licence(text) for text in licence),
        threads=threads,
        mcu=McuChoices(
            schedule=schedule,
            input_mode=input_mode,
            max_ram_bytes=max_ram,
            max_macs_factor=max_macs_factor,
            optimise=optimise,
            rounding=rounding,
        ),
    )
    with _progress(enabled=not json) as say:
        artefact = export_model(model, target, options, out=out, progress=say)
    if json:
        _print_json(artefact)
    else:
        _print(artefact)


def _preprocessing(
    crop: str | None, resize_short: int | None, mean: str, std: str, interpolation: Literal["bilinear", "bicubic"]
) -> Preprocessing | None:
    if crop is None:
        if resize_short is not None or (mean, std) != ("0", "1"):
            raise SourceError(
                "Wanted --crop with --resize-short, --mean and --std, found none: how large is the input?"
            )
        return None
    sizes = crop.split("x")
    if len(sizes) > 2 or not all(one.isdigit() and int(one) for one in sizes):
        raise SourceError(f'Wanted --crop as "224" or "224x320" (height x width), found {crop!r}.')
    return Preprocessing(
        resize_short=resize_short,
        crop=(int(sizes[0]), int(sizes[-1])),
        interpolation=interpolation,
        mean=_three("--mean", mean),
        std=_three("--std", std),
    )


def _three(option: str, text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(one) for one in text.split(","))
    except ValueError as error:
        raise SourceError(f"Wanted one number or three with commas for {option}, found {text!r}.") from error
    if len(values) not in (1, 3) or (option == "--std" and 0.0 in values):
        raise SourceError(f"Wanted one number or three with commas for {option} (std not 0), found {text!r}.")
    return values * 3 if len(values) == 1 else values


def _licence(text: str) -> Licence:
    spdx, separator, attribution = text.partition(":")
    if not separator or not spdx.strip():
        raise SourceError(f'Wanted --licence "SPDX-ID: attribution", found {text!r}.')
    return Licence(subject="weights", spdx=spdx.strip(), attribution=attribution.strip())


def _read_labels(path: Path) -> tuple[str, ...]:
    if not path.is_file() or path.stat().st_size > 1 << 20:
        raise SourceError(f"Wanted a text file of at most 1 MiB with one label a line, found none at {path}.")
    return tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())


@contextmanager
def _progress(*, enabled: bool) -> Iterator[Callable[[str], None]]:
    """A spinner with the step's name on the terminal; it keeps its own copy of standard error while converters are silenced."""
    with os.fdopen(os.dup(2), "w") as stream:
        console = Console(file=stream)
        if not enabled or not console.is_terminal:
            yield lambda step: None
            return
        with console.status("export") as status:
            yield lambda step: status.update(f"export: {step}")


def _print_json(artefact: Artefact) -> None:
    document: dict[str, Any] = {
        "folder": str(artefact.folder),
        "id": artefact.id,
        "key": artefact.key,
        "findings": findings(artefact.manifest),
        "manifest": artefact.manifest,
    }
    print_json(document)


def _print(artefact: Artefact) -> None:
    console = Console(soft_wrap=True, highlight=False, markup=False)
    manifest = artefact.manifest
    size = sum(entry.size for entry in manifest.files if entry.path == manifest.entry)
    console.print(f"{artefact.folder}: {manifest.precision} for {manifest.engine.name} on {manifest.target}, {size} B")
    quality = manifest.quality
    if quality is not None:
        console.print(f"  against its reference on {quality.count} samples ({quality.data}): {_quality_text(quality)}")
    for row in manifest.bench:
        console.print(f"  {row.what}: {row.value} {row.unit} ({row.device})")
    for sentence in findings(manifest):
        console.print(f"  note: {sentence}")
    folder = shlex.quote(str(artefact.folder))
    if "Makefile" in manifest.files_by_path:
        console.print(f"  next: make -C {folder} qemu")
    console.print(f"  next: headtail inspect {folder}")


def _quality_text(quality: Any) -> str:  # noqa: ANN401 - Quality, whose fields may be null
    parts = [f"SQNR {quality.sqnr_db} dB"]
    if quality.agreement is not None:
        parts.append(f"top-1 agreement {quality.agreement:.2%}")
    if quality.this is not None:
        parts.append(f"top-1 {quality.this:.2%} (reference {quality.reference:.2%})")
    return ", ".join(parts)
