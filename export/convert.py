"""Run a route: from a source to the bytes of the file that the engine opens, and to the float file beside it.

Every step is kept in the cache by what went into it, so two boards share what they have in common. Converters are
imported by the step that needs them, and only when the cache does not have its result.
"""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from device_profiles.errors import MissingDependencyError
from edge_runtime.manifest import Preprocessing, TensorSpec
from export.cache import Cache, cache_key
from export.calibration import CalibrationData
from export.errors import UnsupportedRouteError
from export.quiet import quiet
from export.routes import Route
from export.source import ModelSource, Source, SourceError, read_source

Progress = Callable[[str], None]

_EXTRAS = {
    "litert_torch": "export-litert",
    "ai_edge_quantizer": "export-litert",
    "ai_edge_litert": "export-mcu",  # the smaller of the two that bring it
    "tflite_micro": "export-mcu",
    "jinja2": "export-mcu",
}


@dataclass(frozen=True)
class Converted:
    """The files of a route, and how the source and the engine name and lay out the tensors."""

    data: bytes  # what the engine opens
    fp32: bytes | None  # the float file that it was derived from; null when the source is quantised already
    source_inputs: tuple[TensorSpec, ...]  # as the source takes them, float32 where they are quantised
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    fp32_inputs: tuple[TensorSpec, ...] = ()
    fp32_outputs: tuple[TensorSpec, ...] = ()
    prepared: bytes | None = None  # the optimised float ONNX that was quantised
    output_step: float | None = None  # real value of one integer step of the first output


@dataclass(frozen=True)
class Job:
    """What the steps of one export share."""

    source: Source
    route: Route
    cache: Cache
    preprocessing: Preprocessing | None
    calibrate: Callable[[tuple[TensorSpec, ...]], CalibrationData]
    calibration_key: str  # of the calibration data, before decoding
    progress: Progress = field(default=lambda _: None)

    @property
    def model(self) -> ModelSource:
        """The loaded module."""
        if self.source.model is None:
            raise SourceError(f"Wanted a loaded module, found only its name {self.source.text!r}.")
        return self.source.model


def load_step(name: str) -> Any:  # noqa: ANN401 - a module
    """Import a converter module.

    Raises:
        MissingDependencyError: Naming the extra that brings its library.
    """
    try:
        with quiet():
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        library = (error.name or "?").split(".")[0]
        if library in ("export", "edge_runtime"):
            raise
        extra = _EXTRAS.get(library, "export")
        raise MissingDependencyError(
            f"Wanted {library} for this export, found no such module. Install it: pip install 'headtail[{extra}]'."
        ) from error


def convert(job: Job) -> Converted:
    """Run the steps of the job's route.

    Raises:
        SourceError: The file or module cannot be used.
        UnsupportedRouteError: The file is quantised already and something else was asked for.
        CalibrationError: int8 without usable data.
        ConversionError: A converter failed.
        MissingDependencyError: A converter is not installed.
    """
    return _convert_onnx(job) if job.route.format == "onnx" else _convert_tflite(job)


def _convert_onnx(job: Job) -> Converted:
    files = load_step("export.onnx_model")
    if job.source.kind == "torch":
        fp32 = _cached(job, "onnx fp32", lambda: load_step("export.to_onnx").torch_to_onnx(job.model))
        model = files.parse(fp32)
    else:
        model = files.read_onnx(read_source(job.source), where=job.source.text)
        fp32 = model.SerializeToString(deterministic=True)
    image = job.preprocessing is not None
    inputs = describe(files.tensor_specs(files.graph_inputs(model), where=job.source.text), image=image)
    outputs = describe(files.tensor_specs(model.graph.output, where=job.source.text), task=_task(job))
    if files.is_quantised(model):
        _check_ready(job)
        return Converted(fp32, None, inputs, inputs, outputs, output_step=files.output_step(model))
    prepared, data = None, fp32
    if job.route.precision == "fp16":
        data = _cached(job, "onnx fp16", lambda: load_step("export.quantize").halve_onnx(fp32))
    elif job.route.scheme is not None:
        scheme = job.route.scheme
        prepared = _cached(job, "onnx prepared", lambda: load_step("export.quantize").prepare_for_quantisation(fp32))
        ready, names = prepared, tuple(spec.engine_name for spec in inputs)

        def quantize() -> bytes:
            samples = job.calibrate(inputs).samples
            result: bytes = load_step("export.quantize").quantize_onnx(ready, names, samples, scheme=scheme)
            return result

        data = _cached(job, f"onnx {scheme}", quantize, job.calibration_key)
    step = files.output_step(files.parse(data)) if job.route.scheme else None
    return Converted(data, fp32, inputs, inputs, outputs, inputs, outputs, prepared, step)


def _convert_tflite(job: Job) -> Converted:
    if job.source.kind == "torch":
        fp32 = _cached(job, "tflite fp32", lambda: load_step("export.to_litert").torch_to_tflite(job.model))
        onnx_style = load_step("export.to_onnx")
        names = onnx_style.input_names(job.model), onnx_style.output_names(job.model)
    else:
        fp32 = read_source(job.source)
        names = (), ()
    files = load_step("export.tflite_model")
    found = files.read_tflite(fp32, where=job.source.text)
    image = job.preprocessing is not None
    fp32_inputs = describe(_renamed(found.inputs, names[0]), image=image, tflite=True)
    fp32_outputs = describe(_renamed(found.outputs, names[1]), task=_task(job))
    source_inputs = _source_inputs(job, fp32_inputs)
    if found.is_quantised:
        _check_ready(job)
        return Converted(fp32, None, source_inputs, fp32_inputs, fp32_outputs, output_step=_step(fp32_outputs))
    if job.route.precision == "fp32":
        return Converted(fp32, fp32, source_inputs, fp32_inputs, fp32_outputs, fp32_inputs, fp32_outputs)

    def quantize() -> bytes:
        verify = load_step("export.verify")
        moved = [
            verify.to_engine(arrays, source_inputs, fp32_inputs) for arrays in job.calibrate(source_inputs).samples
        ]
        result: bytes = load_step("export.to_litert").quantize_tflite(fp32, moved)
        return result

    data = _cached(job, "tflite int8", quantize, job.calibration_key)
    whole = files.read_tflite(data, where="the int8 conversion")
    inputs = describe(_renamed(whole.inputs, names[0]), image=image, tflite=True)
    outputs = describe(_renamed(whole.outputs, names[1]), task=_task(job))
    return Converted(data, fp32, source_inputs, inputs, outputs, fp32_inputs, fp32_outputs, None, _step(outputs))


def describe(
    specs: Sequence[TensorSpec], *, image: bool = False, task: str | None = None, tflite: bool = False
) -> tuple[TensorSpec, ...]:
    """Add layouts and meanings: rank 4 is NCHW (NHWC in a .tflite input), (batch, classes) of a classifier is logits."""
    described = []
    for spec in specs:
        layout = None
        if len(spec.shape) == 4:
            layout = "nhwc" if tflite else "nchw"
        semantic = "tensor"
        if image and len(specs) == 1:
            semantic = "image"
        elif task == "classification" and len(spec.shape) == 2:
            semantic = "logits"
        described.append(msgspec.structs.replace(spec, layout=layout, semantic=semantic))
    return tuple(described)


def _renamed(specs: tuple[TensorSpec, ...], names: tuple[str, ...]) -> tuple[TensorSpec, ...]:
    """Give the user's names to tensors that the converter called something generic."""
    if len(names) != len(specs):
        return specs
    return tuple(msgspec.structs.replace(spec, name=name) for spec, name in zip(specs, names, strict=True))


def _source_inputs(job: Job, engine: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    """How the source takes its inputs: a module in its own (channel-first) order, real numbers everywhere."""
    specs = []
    for index, spec in enumerate(engine):
        shape, layout = spec.shape, spec.layout
        if job.source.kind == "torch":
            shape = tuple(int(size) for size in job.model.example[index].shape)
            layout = "nchw" if len(shape) == 4 else layout
        dtype = "float32" if spec.quantisation is not None else spec.dtype
        specs.append(msgspec.structs.replace(spec, shape=shape, layout=layout, dtype=dtype, quantisation=None))
    return tuple(specs)


def _task(job: Job) -> str:
    return job.source.model.task if job.source.model is not None else "classification"


def _step(outputs: tuple[TensorSpec, ...]) -> float | None:
    found = outputs[0].quantisation
    return None if found is None else found.scale


def holds_integers(source: Source) -> bool:
    """Whether a file is quantised already: it can only stay what it is.

    Raises:
        SourceError: It cannot be read.
        MissingDependencyError: The library that reads it is not installed.
    """
    if source.kind == "torch":
        return False
    if source.kind == "tflite":
        return bool(load_step("export.tflite_model").read_tflite(read_source(source), where=source.text).is_quantised)
    return bool(load_step("export.onnx_model").looks_quantised(read_source(source)))


def _check_ready(job: Job) -> None:
    """A file that is quantised already can only stay what it is."""
    if job.route.precision != "int8":
        raise UnsupportedRouteError(
            f"Wanted a float model for {job.route.precision}, found {job.source.text} quantised already. "
            "Export the float model, or pass --precision int8."
        )


def _cached(job: Job, step: str, make: Callable[[], bytes], *more: str) -> bytes:
    """One step through the cache."""

    def run() -> bytes:
        job.progress(step)
        return make()

    return job.cache.blob(cache_key("step", step, job.source.sha256, *more), run)


def random_inputs(specs: Sequence[TensorSpec], count: int, *, image: bool) -> list[list[np.ndarray]]:
    """Inputs that look like nothing in particular, seeded: normal for floats (0..255 pictures are normalised alike)."""
    generator = np.random.default_rng(0)
    samples = []
    for _ in range(count):
        arrays: list[np.ndarray] = []
        for spec in specs:
            if not spec.dtype.startswith("float"):
                values = generator.integers(0, 2, spec.shape).astype(spec.dtype)
            elif image:
                values = generator.uniform(-1.0, 1.0, spec.shape).astype(spec.dtype)
            else:
                values = generator.standard_normal(spec.shape).astype(spec.dtype)
            arrays.append(values)
        samples.append(arrays)
    return samples
