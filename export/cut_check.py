"""Does head + tail equal the unsplit network, bit for bit, on the engine that is installed here?"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from device_profiles.errors import EdgeError
from edge_runtime.manifest import TensorSpec
from edge_runtime.session import EngineError
from export.cut_source import CutSource
from split.cuts import Cut

Arrays = list[np.ndarray]
Runner = Callable[[Sequence[np.ndarray]], Arrays]


class CutEqualityError(EdgeError):
    """Head + tail does not give the bytes of the unsplit network."""


def open_runner(source: CutSource, model: bytes, inputs: Sequence[str], outputs: Sequence[str]) -> Runner:
    """A function that runs one model file of this source's kind as the source's cuts are checked.

    Args:
        source: Names kind, optimisation level and threads.
        model: The bytes of the whole network, its head or its tail.
        inputs: Names of the inputs, in the order in which arrays will be given.
        outputs: Names of the outputs to return.
    """
    if source.kind == "onnx":
        return open_onnx_runner(model, inputs, outputs, source.level, source.engine.threads)
    return open_tflite_runner(model, inputs, outputs, source.engine.threads)


def sample_inputs(specs: Sequence[TensorSpec], *, count: int, seed: int = 0) -> list[Arrays]:
    """Random inputs: reals from a normal distribution, integers over their whole range; one list for each sample."""
    rng = np.random.default_rng(seed)
    return [[_sample(spec, rng) for spec in specs] for _ in range(count)]


def kept_inputs(source: CutSource, cut: Cut) -> list[int]:
    """Which of the network's inputs the head reads, by number."""
    read = set(source.graph.reach_back(cut.names)[1])
    return [index for index, spec in enumerate(source.inputs) if spec.engine_name in read]


def run_cut(
    source: CutSource, cut: Cut, pair: tuple[bytes, bytes], samples: Sequence[Arrays]
) -> list[tuple[Arrays, Arrays]]:
    """Run head and tail; returns (crossing tensors, outputs) for each sample."""
    keep = kept_inputs(source, cut)
    head = open_runner(source, pair[0], [source.inputs[index].engine_name for index in keep], cut.names)
    tail = open_runner(source, pair[1], cut.names, [spec.engine_name for spec in source.outputs])
    results = []
    for sample in samples:
        latents = head([sample[index] for index in keep])
        results.append((latents, tail(latents)))
    return results


def run_whole(source: CutSource, samples: Sequence[Arrays]) -> list[Arrays]:
    """The unsplit network's outputs."""
    names = [spec.engine_name for spec in source.outputs]
    whole = open_runner(source, source.path.read_bytes(), [spec.engine_name for spec in source.inputs], names)
    return [whole(sample) for sample in samples]


def count_equal(wanted: Sequence[Arrays], found: Sequence[tuple[Arrays, Arrays]]) -> int:
    """How many samples gave the same bytes in every output."""
    return sum(
        all(a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in zip(whole, outputs, strict=True))
        for whole, (_, outputs) in zip(wanted, found, strict=True)
    )


def check_cut(
    source: CutSource, cut: Cut, pair: tuple[bytes, bytes], samples: Sequence[Arrays]
) -> list[tuple[Arrays, Arrays]]:
    """Run head, tail and the whole; return the results of the pair when all bytes are equal.

    Raises:
        CutEqualityError: They are not; the message says on how many samples.
    """
    found = run_cut(source, cut, pair, samples)
    equal = count_equal(run_whole(source, samples), found)
    if equal != len(samples):
        raise CutEqualityError(
            f"Wanted head + tail equal to the unsplit network at {', '.join(cut.names)}, found {equal} of {len(samples)} "
            f"inputs equal on {source.checked_on} at level {source.level!r}. Choose another cut (--list)."
        )
    return found


def _sample(spec: TensorSpec, rng: np.random.Generator) -> np.ndarray:
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "f":
        return rng.normal(size=spec.shape).astype(dtype)
    if dtype.kind == "b":
        return rng.integers(0, 2, size=spec.shape).astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, size=spec.shape, dtype=dtype, endpoint=True)


def open_onnx_runner(
    model: bytes, inputs: Sequence[str], outputs: Sequence[str], optimisation: str, threads: int
) -> Runner:
    """As `open_runner`, for the bytes of an ONNX file."""
    import onnxruntime

    from edge_runtime.backends.onnxrt import session_options

    options = session_options(optimisation, threads)
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises classes of its own extension module that it does not export
        raise EngineError(
            f"Wanted a network that onnxruntime opens, found: {str(error)[:300]}. Export it again."
        ) from error

    def run(arrays: Sequence[np.ndarray]) -> Arrays:
        return list(session.run(list(outputs), dict(zip(inputs, arrays, strict=True))))

    return run


def open_tflite_runner(
    model: bytes, inputs: Sequence[str], outputs: Sequence[str], threads: int = 1, *, reference: bool = False
) -> Runner:
    """As `open_runner`, for the bytes of a .tflite file; on the reference kernels, which are a microcontroller's, if asked."""
    from edge_runtime.backends.litert import interpreter_class, kernel_options

    kind = interpreter_class("litert")[0]
    try:
        options = kernel_options(kind, reference=reference)
        interpreter: Any = kind(model_content=model, num_threads=threads, **options)
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise EngineError(
            f"Wanted a network that LiteRT opens, found: {str(error)[:300]}. Convert it again."
        ) from error
    input_ids = {detail["name"]: detail["index"] for detail in interpreter.get_input_details()}
    output_ids = {detail["name"]: detail["index"] for detail in interpreter.get_output_details()}

    def run(arrays: Sequence[np.ndarray]) -> Arrays:
        for name, array in zip(inputs, arrays, strict=True):
            interpreter.set_tensor(input_ids[name], array)
        interpreter.invoke()
        return [interpreter.get_tensor(output_ids[name]) for name in outputs]

    return run
