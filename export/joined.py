"""The unsplit quantised network of a pair: head and tail as one ONNX file, and whether the pair equals it."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import compose

from edge_runtime.artefact import Artefact
from export.cut_check import open_onnx_runner
from export.errors import ConversionError
from export.pair_runner import PairError, PairRunner


@dataclass(frozen=True)
class Equality:
    """On how many inputs head, codec and tail gave the bytes of the unsplit network, and on which engine."""

    equal: int
    count: int
    engine: str


def join_models(head: bytes, tail: bytes) -> bytes:
    """The unsplit network as one ONNX file: the tail's inputs are the head's first outputs; an exit stays an output.

    Raises:
        ConversionError: They do not fit together.
    """
    first = compose.add_prefix(onnx.ModelProto.FromString(head), "head/")
    second = compose.add_prefix(onnx.ModelProto.FromString(tail), "tail/")
    outputs, wanted = ([one.name for one in part] for part in (first.graph.output, second.graph.input))
    wires = list(zip(outputs[: len(wanted)], wanted, strict=True))
    try:
        joined = compose.merge_models(first, second, io_map=wires)
    except ValueError as error:
        raise ConversionError(f"Wanted a head and its tail, found: {error}.") from error
    data: bytes = joined.SerializeToString(deterministic=True)
    return data


def count_equal(head: Artefact, tail: Artefact, inputs: Iterable[np.ndarray]) -> Equality:
    """Run every input through head, frame and tail, and through the unsplit network; compare the outputs bit for bit.

    Both sides run on onnxruntime with the head's options: its version, one optimisation level, its number of threads.

    Args:
        head: On onnxruntime.
        tail: On onnxruntime.
        inputs: Inputs of the head, see `PairRunner.input_of`.

    Raises:
        PairError: Another engine, or artefacts that are no pair.
    """
    engines = head.manifest.engine, tail.manifest.engine
    if any(one.name != "onnxruntime" for one in engines):
        raise PairError(f"Wanted a pair on onnxruntime, found {engines[0].name} and {engines[1].name}.")
    joined = join_models(head.entry.read_bytes(), tail.entry.read_bytes())
    names = [f"head/{spec.engine_name}" for spec in head.manifest.inputs]
    outputs = [f"tail/{spec.engine_name}" for spec in tail.manifest.outputs]
    whole = open_onnx_runner(joined, names, outputs, engines[0].optimisation, engines[0].threads)
    pair = PairRunner(head, tail, threads=engines[0].threads)
    equal = count = 0
    for tensor in inputs:
        found = pair.outputs(pair.frame(pair.latents(tensor)))
        wanted = whole([tensor])
        equal += all(a.tobytes() == b.tobytes() for a, b in zip(wanted, found, strict=True))
        count += 1
    pair.close()
    return Equality(equal, count, f"onnxruntime {engines[0].built}, level {engines[0].optimisation}")
