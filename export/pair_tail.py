"""The tail of a trained pair in the form that its engine opens."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from torch import nn

from edge_runtime.manifest import TensorSpec
from export.convert import load_step
from export.cut_check import open_onnx_runner, open_tflite_runner
from export.head_graph import LATENT
from export.tail_graph import LOGITS, tail_to_onnx
from export.trained_manifest import Half, TrainedPairOptions, pair_engine
from export.verify import dequantize


@dataclass(frozen=True)
class MadeTail:
    """A tail's file, its engine, and its output as the engine gives it."""

    data: bytes
    half: Half
    logits: TensorSpec

    def run_real(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Latents to logits as real numbers."""
        return [dequantize(self.half.run(arrays)[0], self.logits)]


def make_tail(tail: nn.Module, latents: Sequence[np.ndarray], options: TrainedPairOptions) -> MadeTail:
    """Convert a tail for its engine.

    Args:
        tail: `split.latents.IntegerTail` on a CPU, or a module with the same parts that takes other layouts.
        latents: int8, of calibration pictures, as the tail takes them.
        options: Which engine, which precision.

    Raises:
        ConversionError: An operator that cannot be exported, or a precision that the engine does not have.
        MissingDependencyError: LiteRT's converters are not installed.
    """
    engine = pair_engine(options.tail_engine)
    if options.tail_engine == "litert":
        data: bytes = load_step("export.litert_tail").tail_to_litert(tail, latents, options.tail_precision)
        described = load_step("export.tflite_model").read_tflite(data, where="the tail")
        logits = msgspec.structs.replace(described.outputs[0], layout=None)
        return MadeTail(data, Half(engine, open_tflite_runner(data, [LATENT], [LOGITS])), logits)
    data = tail_to_onnx(tail, latents, options.tail_precision)
    run = open_onnx_runner(data, [LATENT], [LOGITS], engine.optimisation, engine.threads)
    shape = run([latents[0]])[0].shape
    return MadeTail(data, Half(engine, run), TensorSpec(name=LOGITS, engine_name=LOGITS, dtype="float32", shape=shape))
