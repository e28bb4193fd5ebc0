"""Run a converted file in the runtime itself: how far it is from its source, how fast, and its golden vectors."""

import importlib.util
import platform
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import msgspec
import numpy as np

from edge_runtime.artefact import write_artefact
from edge_runtime.manifest import BenchRow, EngineName, Golden, Manifest, Postprocessing, Quality, TensorSpec
from edge_runtime.session import Session, open_session
from export import verify
from export.convert import Converted, load_step, random_inputs
from export.quiet import quiet
from export.report import INT8_SQNR_DB
from export.request import Request
from export.samples import DataError, SampleSet, labelled

GOLDEN_VECTORS = 2
_RANDOM_INPUTS = 4
_CALIBRATION_CHECKED = 64  # of the calibration samples, when there is no --data
_LARGEST_DATA = 10_000
# The engine that runs a file here, where the board's own does not exist.
_STAND_IN: dict[EngineName, EngineName] = {"tensorrt": "onnxruntime", "tflite-runtime": "litert"}
_FLOAT_ENGINE: dict[EngineName, EngineName] = {
    "tflite-micro": "litert"
}  # its own kernels are slow, its floats the same
_LIBRARY = {"onnxruntime": "onnxruntime", "litert": "ai-edge-litert", "tflite-micro": "ai-edge-litert"}
_TIMED = ("onnxruntime", "litert")  # engines that the board has and this machine too


@dataclass(frozen=True)
class Measured:
    """What was found out about the converted file."""

    quality: Quality | None
    golden: tuple[Golden, ...]
    golden_files: dict[str, bytes]
    bench: tuple[BenchRow, ...]


def engine_here(engine: EngineName) -> EngineName:
    """The engine that runs such a file on this machine."""
    return _STAND_IN.get(engine, engine)


def library_version(engine: EngineName) -> str:
    """The installed version of the library of an engine that runs here."""
    if engine == "tflite-micro" and importlib.util.find_spec("tflite_micro") is not None:
        return version("tflite-micro")
    return version(_LIBRARY[engine])


def measure(request: Request, converted: Converted, manifest: Manifest) -> Measured:
    """Run the file in the runtime, beside its reference.

    Raises:
        VerificationError: It computes something else than the source.
        EngineError: The engine refuses it.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        engine = engine_here(request.route.engine)
        staged = _as_engine(msgspec.structs.replace(manifest, postprocessing=Postprocessing()), engine)
        session = _open(folder / "this", staged, converted.data)
        fp32 = None
        if converted.fp32 is not None:
            plain = msgspec.structs.replace(staged, inputs=converted.fp32_inputs, outputs=converted.fp32_outputs)
            fp32 = _open(folder / "fp32", _as_engine(plain, _FLOAT_ENGINE.get(engine, engine)), converted.fp32)
        quality = _quality(request, converted, session, fp32)
        vectors = _samples(request, converted, most=GOLDEN_VECTORS)[:GOLDEN_VECTORS]
        golden, files = _golden(request, converted, session, vectors)
        bench: tuple[BenchRow, ...] = ()
        if fp32 is not None and request.route.precision != "fp32" and request.route.engine in _TIMED:
            inputs = [verify.to_engine(vectors[0], converted.source_inputs, one.inputs) for one in (fp32, session)]
            times = verify.time_both(fp32, session, inputs)
            bench = verify.bench_rows(*times, precision=request.route.precision, threads=request.options.threads)
        return Measured(quality, golden, files, bench)


def _open(folder: Path, manifest: Manifest, data: bytes) -> Session:
    with quiet():  # LiteRT says which delegate it uses
        return open_session(write_artefact(folder, manifest, {manifest.entry: data}))


def _as_engine(manifest: Manifest, engine: EngineName) -> Manifest:
    if engine == manifest.engine.name:
        return manifest
    here = msgspec.structs.replace(manifest.engine, name=engine, built="as installed", tested=())
    return msgspec.structs.replace(manifest, engine=here)


def _quality(request: Request, converted: Converted, session: Session, fp32: Session | None) -> Quality | None:
    """Compare with the module itself (fp32), or with the fp32 file on the same engine (the rest)."""
    candidate = verify.engine_runner(session, converted.source_inputs)
    name, precision = request.source.name, request.route.precision
    model = request.source.model
    if model is not None and fp32 is not None:
        run_torch = load_step("export.to_onnx").run_torch
        few = random_inputs(converted.source_inputs, 2, image=request.preprocessing is not None)
        float_runner = verify.engine_runner(fp32, converted.source_inputs)
        check = verify.compare(lambda arrays: run_torch(model, arrays), float_runner, few)
        verify.check_float(check, precision="fp32", name=name)
    reference = candidate if fp32 is None else verify.engine_runner(fp32, converted.source_inputs)
    if model is not None and precision == "fp32":
        reference = lambda arrays: run_torch(model, arrays)  # noqa: E731 - one expression
    data = _data(request)
    if fp32 is None and (data is None or data.labels is None):
        return None  # nothing to compare an already quantised file with
    samples: Sequence[list[np.ndarray]] | Iterator[list[np.ndarray]]
    if data is not None:
        indices = data.picked(_LARGEST_DATA)
        labels = _class_ids(data, indices, converted.outputs)
        samples = data.inputs(converted.source_inputs, request.preprocessing, indices)
    else:
        labels, samples = None, _samples(request, converted, most=_CALIBRATION_CHECKED)
    found = verify.compare(reference, candidate, samples, labels)
    verify.check_float(found, precision=precision, name=name)
    worst = _worst_layers(request, converted) if precision == "int8" and found.sqnr_db < INT8_SQNR_DB else ()
    used = data or request.calibration
    quality = verify.to_quality(
        found,
        data="random inputs" if used is None else Path(used.source).name,
        data_sha256=verify.EMPTY_SHA256 if used is None else used.sha256,
        worst=worst,
    )
    if fp32 is None:  # it was compared with itself; only the accuracy means something
        return msgspec.structs.replace(quality, reference=None, drop=None, agreement=None, sqnr_db=None)
    return quality


def _data(request: Request) -> SampleSet | None:
    """The data to measure on, with class ids by the model's labels."""
    return None if request.data is None else labelled(request.data, request.labels)


def _class_ids(data: SampleSet, indices: Sequence[int], outputs: Sequence[TensorSpec]) -> list[int] | None:
    """Of these samples; null where there are none. Accuracy is that of one row of logits: its ids must be in there."""
    if data.labels is None:
        return None
    shape, low, high = outputs[0].shape, int(data.labels.min()), int(data.labels.max())
    if len(shape) == 2 and shape[0] == 1 < shape[1] and not 0 <= low <= high < shape[1]:
        raise DataError(
            f"Wanted class ids of 0 to {shape[1] - 1}, one for each output of the network, found {low} to {high} in {data.source}. "
            "Give the network's own classes: another array of an .npz (--label-key), or folders named by them."
        )
    return [int(data.labels[index]) for index in indices]


def _samples(request: Request, converted: Converted, *, most: int) -> list[list[np.ndarray]]:
    """A few inputs: of the data, of the calibration data, or random ones."""
    used = request.data or request.calibration
    if used is None:
        return random_inputs(converted.source_inputs, _RANDOM_INPUTS, image=request.preprocessing is not None)
    return list(used.inputs(converted.source_inputs, request.preprocessing, used.picked(most)))


def _worst_layers(request: Request, converted: Converted) -> tuple[tuple[str, float], ...]:
    """The five activations with the lowest SQNR, in dB."""
    if converted.fp32 is None:
        return ()
    layers = load_step("export.layer_errors")
    few = _samples(request, converted, most=layers.MAX_SAMPLES)[: layers.MAX_SAMPLES]
    moved = [verify.to_engine(arrays, converted.source_inputs, converted.fp32_inputs) for arrays in few]
    if request.route.format == "onnx":
        names = [spec.engine_name for spec in converted.fp32_inputs]
        errors = layers.onnx_layer_errors(converted.prepared or converted.fp32, converted.data, names, moved)
    else:
        errors = layers.tflite_layer_errors(converted.fp32, converted.data, moved)
    return tuple((name, round(db, 2)) for name, db in errors[: layers.WORST])


def _golden(
    request: Request, converted: Converted, session: Session, vectors: list[list[np.ndarray]]
) -> tuple[tuple[Golden, ...], dict[str, bytes]]:
    """Inputs and outputs as raw little-endian files, and how closely they must be met."""
    files: dict[str, bytes] = {}
    golden = []
    for number, arrays in enumerate(vectors):
        stored = verify.to_engine(arrays, converted.source_inputs, session.inputs)
        outputs = session.run(stored)
        names: list[tuple[str, ...]] = []
        for kind, values in (("input", stored), ("output", outputs)):
            paths = tuple(f"golden/{kind}-{number}-{index}.bin" for index in range(len(values)))
            files.update(zip(paths, (_little_endian(value) for value in values), strict=True))
            names.append(paths)
        compare, tolerance = verify.golden_rule(request.route, outputs, converted.output_step)
        engine = engine_here(request.route.engine)
        golden.append(
            Golden(
                inputs=names[0],
                expected=names[1],
                compare=compare,
                tolerance=tolerance,
                produced_on=f"{engine} {library_version(engine)} {platform.machine()}",
            )
        )
    return tuple(golden), files


def _little_endian(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
