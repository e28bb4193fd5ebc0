"""The tail of a trained bottleneck as ONNX: integers in, logits out; as fp32, fp16 or with int8 weights and activations."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import nn

from export.errors import ConversionError
from export.head_graph import LATENT
from export.onnx_model import check_model, parse
from export.quantize import halve_onnx, prepare_for_quantisation, quantize_onnx
from export.source import ModelSource
from export.to_onnx import torch_to_onnx

TailPrecision = Literal["fp32", "fp16", "int8"]
LOGITS = "logits"
_REAL = "real_latent"


class _BehindTheGrid(nn.Module):
    """The tail from real latents on."""

    def __init__(self, tail: nn.Module) -> None:
        super().__init__()
        self.decoder, self.tail = tail.decoder, tail.tail

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.tail(self.decoder(latent))[0]
        return logits


def tail_to_onnx(tail: nn.Module, latents: Sequence[np.ndarray], precision: TailPrecision) -> bytes:
    """The tail as an ONNX file: int8 latents, (1, channels, h, w), to logits, float32 (1, classes).

    Args:
        tail: `split.latents.IntegerTail` on a CPU, or a module with the same parts.
        latents: Of calibration pictures; the first one is the example, all of them choose the ranges for int8.
        precision: Of weights and, for int8, activations.

    Raises:
        ConversionError: An operator that the exporter or the quantiser does not know.
    """
    example = torch.from_numpy(latents[0])
    if precision != "int8":
        source = ModelSource(module=tail, example=(example,), input_names=(LATENT,), output_names=(LOGITS,))
        whole = torch_to_onnx(source)
        return whole if precision == "fp32" else halve_onnx(whole)
    real = example.to(torch.float32) * tail.step + tail.offset
    source = ModelSource(module=_BehindTheGrid(tail), example=(real,), input_names=(_REAL,), output_names=(LOGITS,))
    step, offset = tail.step.numpy(), tail.offset.numpy()
    samples = [[one.astype(np.float32) * step + offset] for one in latents]
    prepared = prepare_for_quantisation(torch_to_onnx(source))
    return _begin_with_integers(quantize_onnx(prepared, (_REAL,), samples, scheme="u8s8"), step, offset)


def _begin_with_integers(quantised: bytes, step: np.ndarray, offset: np.ndarray) -> bytes:
    """Put the latent's own grid in place of the quantiser's 8 bits at the input: nothing is rounded there."""
    model = parse(quantised)
    graph = model.graph
    shape = [one.dim_value for one in graph.input[0].type.tensor_type.shape.dim]
    quantise = _only_reader(graph, _REAL, "QuantizeLinear")
    dequantise = _only_reader(graph, quantise.output[0], "DequantizeLinear")
    for node in (quantise, dequantise):
        graph.node.remove(node)
    graph.initializer.extend(
        [numpy_helper.from_array(step, "latent_step"), numpy_helper.from_array(offset, "latent_offset")]
    )
    nodes = [
        helper.make_node("Cast", [LATENT], ["latent_real"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Mul", ["latent_real", "latent_step"], ["latent_scaled"]),
        helper.make_node("Add", ["latent_scaled", "latent_offset"], [dequantise.output[0]]),
    ]
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *rest])
    del graph.input[:]
    graph.input.append(helper.make_tensor_value_info(LATENT, onnx.TensorProto.INT8, shape))
    check_model(model, where="the tail")
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _only_reader(graph: Any, name: str, kind: str) -> Any:  # noqa: ANN401 - GraphProto in, NodeProto out
    readers = [node for node in graph.node if name in node.input]
    if len(readers) != 1 or readers[0].op_type != kind:
        raise ConversionError(
            f"Wanted one {kind} behind {name!r}, found {[node.op_type for node in readers]}. Use --tail-precision fp32."
        )
    return readers[0]
