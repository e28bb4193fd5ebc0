"""The unsplit quantised network of a pair: head and tail as one file, and whether the pair equals it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
import onnx
from onnx import compose

from edge_runtime.artefact import Artefact
from export.convert import load_step
from export.cut_check import Runner, open_onnx_runner, open_tflite_runner
from export.errors import ConversionError
from export.pair_runner import PairRunner

HEAD, TAIL = "head/", "tail/"
_LITERT_HEADS = ("litert", "tflite-micro")


@dataclass(frozen=True)
class Equality:
    """On how many inputs head, codec and tail gave the bytes of the unsplit network, and on which engine.

    Where the halves run on engines of different kinds there is no engine for the unsplit network: then `unsplit` is false, and
    what was compared is the tail behind frame and codec with the tail on the head's own integers.
    """

    equal: int
    count: int
    engine: str
    unsplit: bool = True

    @property
    def sentence(self) -> str:
        """What was found, for people."""
        on = f"on {self.equal} of {self.count} pictures ({self.engine})."
        if self.unsplit:
            return f"Head, codec and tail gave the bytes of the unsplit quantised network {on}"
        return f"The tail gave the same bytes from frames as from the head's own integers {on}"


def join_models(head: bytes, tail: bytes) -> bytes:
    """The unsplit network as one ONNX file: the tail's inputs are the head's first outputs; an exit stays an output.

    Raises:
        ConversionError: They do not fit together.
    """
    first = compose.add_prefix(onnx.ModelProto.FromString(head), HEAD)
    second = compose.add_prefix(onnx.ModelProto.FromString(tail), TAIL)
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

    Both sides run on one engine: its version, one optimisation level, one number of threads. A microcontroller's head runs on
    TensorFlow Lite Micro, what it is compared with on LiteRT's reference kernels, which are the same. With a head on LiteRT
    and a tail on onnxruntime, or the reverse, see `Equality`.

    Args:
        head: Of a pair of one latent.
        tail: One that accepts it.
        inputs: Inputs of the head, see `PairRunner.input_of`.

    Raises:
        PairError: Artefacts that are no pair.
        ConversionError: Files that do not fit together.
    """
    engines = head.manifest.engine, tail.manifest.engine
    kinds = tuple(engine.name for engine in engines)
    pair = PairRunner(head, tail, threads=engines[0].threads)
    try:
        if kinds == ("onnxruntime", "onnxruntime"):
            said = f"onnxruntime {engines[0].built}, level {engines[0].optimisation}"
            return Equality(*_counted(pair, _whole_onnx(head, tail), pair.run_tail, inputs), said)
        if kinds[0] in _LITERT_HEADS and kinds[1] == "litert":
            reference = kinds[0] == "tflite-micro"
            whole, run_tail = _whole_tflite(head, tail, reference=reference)
            said = f"LiteRT {version('ai-edge-litert')}" + (
                ", the kernels of TensorFlow Lite Micro" if reference else ""
            )
            return Equality(*_counted(pair, whole, run_tail, inputs), said)

        def after_head(arrays: list[np.ndarray]) -> list[np.ndarray]:
            return pair.run_tail(pair.latents(arrays[0]))

        said = f"head on {kinds[0]}, tail on {kinds[1]}"
        return Equality(*_counted(pair, after_head, pair.run_tail, inputs), said, unsplit=False)
    finally:
        pair.close()


def _counted(
    pair: PairRunner, whole: Callable[[list[np.ndarray]], list[np.ndarray]], tail: Runner, inputs: Iterable[np.ndarray]
) -> tuple[int, int]:
    equal = count = 0
    for tensor in inputs:
        found = tail(pair.decode(pair.frame(pair.latents(tensor))))
        wanted = whole([tensor])
        equal += all(a.tobytes() == b.tobytes() for a, b in zip(wanted, found, strict=True))
        count += 1
    return equal, count


def _whole_onnx(head: Artefact, tail: Artefact) -> Runner:
    joined = join_models(head.entry.read_bytes(), tail.entry.read_bytes())
    names = [f"{HEAD}{spec.engine_name}" for spec in head.manifest.inputs]
    outputs = [f"{TAIL}{spec.engine_name}" for spec in tail.manifest.outputs]
    engine = head.manifest.engine
    return open_onnx_runner(joined, names, outputs, engine.optimisation, engine.threads)


def _whole_tflite(head: Artefact, tail: Artefact, *, reference: bool) -> tuple[Runner, Runner]:
    """The unsplit network and the tail, both on the same kernels."""
    files = load_step("export.tflite_join")
    data = tail.entry.read_bytes()
    joined = files.join_tflite(head.entry.read_bytes(), data)
    inputs = [spec.engine_name for spec in head.manifest.inputs]
    latents, outputs = ([spec.engine_name for spec in specs] for specs in (tail.manifest.inputs, tail.manifest.outputs))
    whole = open_tflite_runner(
        joined,
        [files.HEAD + one for one in inputs],
        [files.TAIL + one for one in outputs],
        head.manifest.engine.threads,
        reference=reference,
    )
    return whole, open_tflite_runner(data, latents, outputs, tail.manifest.engine.threads, reference=reference)
