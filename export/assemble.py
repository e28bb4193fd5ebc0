"""Convert, run what was converted in the runtime itself, compare it with its source, and write the artefact."""

import re
from pathlib import Path

import msgspec

from device_profiles.version import __version__
from edge_runtime.artefact import Artefact, write_artefact
from edge_runtime.manifest import (
    SCHEMA_VERSION,
    Calibration,
    Engine,
    Manifest,
    ModelInfo,
    Postprocessing,
    TensorSpec,
    Tool,
)
from export.cache import tool_versions
from export.calibration import CalibrationData, decode_calibration, open_calibration
from export.convert import Converted, Job, convert, load_step
from export.measure import engine_here, library_version, measure
from export.request import Request

METHODS = {"onnx": "mean-square error, biases corrected", "tflite": "min-max"}  # how ranges are chosen, by file format
LABELS_FILE = "labels.txt"


def assemble(request: Request, folder: Path) -> Artefact:
    """Make the artefact of a request at `folder`; see `export.pipeline.export_model` for the errors."""
    calibrated: list[Calibration] = []

    def calibrate(specs: tuple[TensorSpec, ...]) -> CalibrationData:
        samples = request.calibration or open_calibration(None)
        found = decode_calibration(samples, specs, request.preprocessing, method=METHODS[request.route.format])
        calibrated.append(found.record)
        return found

    job = Job(
        source=request.source,
        route=request.route,
        cache=request.cache,
        preprocessing=request.preprocessing,
        calibrate=calibrate,
        calibration_key=_calibration_key(request),
        progress=request.progress,
    )
    converted = convert(job)
    if request.route.precision == "int8" and converted.fp32 is not None and not calibrated:
        calibrate(converted.source_inputs)  # the int8 file came from the cache; the record is still wanted
    manifest = _manifest(request, converted, calibrated[0] if calibrated else None)
    made = engine_files(request, converted)  # first: what has no C is refused by name, not by an engine
    request.progress("verify")
    checked = measure(request, converted, manifest)
    files: dict[str, bytes | Path] = {**made, **checked.golden_files}
    if request.labels:
        files[LABELS_FILE] = ("\n".join(request.labels) + "\n").encode()
    manifest = msgspec.structs.replace(manifest, quality=checked.quality, golden=checked.golden, bench=checked.bench)
    return write_artefact(folder, manifest, files)


def engine_files(request: Request, converted: Converted) -> dict[str, bytes]:
    """The files that the engine needs; for a microcontroller the generated C besides, from the same int8 file."""
    if request.route.engine == "tensorrt":
        engine: dict[str, bytes] = load_step("export.to_tensorrt").tensorrt_files(
            converted.data,
            board=request.board,
            precision=request.route.precision,
            file_name=request.route.file_name,
            where=request.source.text,
        )
        return engine
    files = {request.route.file_name: converted.data}
    return {**files, **mcu_files(request, converted)} if request.board.is_microcontroller else files


def mcu_files(request: Request, converted: Converted) -> dict[str, bytes]:
    """The C project of a microcontroller: sources, proof program, build files, memory picture, report."""
    to_c = load_step("export.mcu.to_c")
    choices = request.options.mcu
    options = to_c.McuOptions(
        name=c_name(request.source.name),
        source=Path(request.source.text).name,
        schedule=choices.schedule,
        input_mode=to_c.InputMode(choices.input_mode),
        max_ram_bytes=choices.max_ram_bytes,
        max_mac_factor=choices.max_macs_factor,
        optimise=choices.optimise,
        rounding=choices.rounding,
    )
    request.progress("generate C")
    files: dict[str, bytes] = dict(to_c.build_export(converted.data, request.board, options).files)
    return files


def c_name(name: str) -> str:
    """A model's name as part of C identifiers: letters, digits and underscores, a letter first."""
    cleaned = re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_").lower()
    return cleaned if cleaned[:1].isalpha() else f"model_{cleaned}"


def _manifest(request: Request, converted: Converted, calibration: Calibration | None) -> Manifest:
    """Everything that is known before the file has run."""
    source, route = request.source, request.route
    runner = engine_here(route.engine)
    ran = runner == route.engine
    built = library_version(runner) if ran else f"not run; checked on {runner} {library_version(runner)}"
    return Manifest(
        schema=SCHEMA_VERSION,
        tool=Tool(name="headtail", version=__version__, packages=tool_versions()),
        model=ModelInfo(
            name=source.name,
            source_sha256=source.sha256,
            task=source.model.task if source.model is not None else "classification",
        ),
        role="whole",
        target=request.board.id,
        precision=route.precision,
        engine=Engine(name=route.engine, built=built, tested=(built,) if ran else (), threads=request.options.threads),
        entry=route.file_name,
        inputs=converted.inputs,
        outputs=converted.outputs,
        files=(),
        preprocessing=request.preprocessing,
        postprocessing=_postprocessing(request, converted),
        calibration=calibration,
        licences=request.licences,
    )


def _postprocessing(request: Request, converted: Converted) -> Postprocessing:
    labels = LABELS_FILE if request.labels else None
    is_classifier = len(converted.outputs) == 1 and converted.outputs[0].semantic == "logits"
    return Postprocessing(kind="softmax-top-k" if is_classifier else "none", labels=labels)


def _calibration_key(request: Request) -> str:
    samples = request.calibration
    return "" if samples is None else f"{samples.sha256} {request.preprocessing}"
