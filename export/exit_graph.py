"""Put a trained exit behind a head: one ONNX file with the int8 latents and the exit's logits as outputs."""

import copy

import onnx
import torch
from onnx import compose, helper

from export.onnx_model import check_model, parse
from export.source import ModelSource
from export.to_onnx import torch_to_onnx
from split.early_exit import ExitClassifier
from split.fold import fold

EXIT = "exit"
_INPUT, _PREFIX = "exit_latent", "exit_"


def add_exit(head: bytes, leaving: ExitClassifier) -> bytes:
    """A head whose second output, `exit`, are the logits of an exit; the latents stay as they are, bit for bit.

    Args:
        head: An ONNX head with one int8 output.
        leaving: Trained on this head's integers; it is not changed.

    Raises:
        ConversionError: The exit cannot be exported.
    """
    model = parse(head)
    (latent,) = model.graph.output
    shape = [one.dim_value for one in latent.type.tensor_type.shape.dim]
    source = ModelSource(
        module=_deployed(leaving), example=(torch.zeros(*shape),), input_names=(_INPUT,), output_names=(EXIT,)
    )
    behind = compose.add_prefix(parse(torch_to_onnx(source)), _PREFIX, rename_inputs=False, rename_outputs=False)
    behind.ir_version = model.ir_version
    real = helper.make_node("Cast", [latent.name], [_INPUT], to=onnx.TensorProto.FLOAT)
    graph = model.graph
    graph.node.extend([real, *behind.graph.node])
    graph.initializer.extend(behind.graph.initializer)
    graph.output.append(behind.graph.output[0])
    check_model(model, where="the head with its exit")
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _deployed(leaving: ExitClassifier) -> torch.nn.Module:
    return fold(copy.deepcopy(leaving).cpu()).eval()
