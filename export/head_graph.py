"""The int8 head of a trained bottleneck: encoder, grid folded into its last convolution, then round, clip, cast.

Everything but the last step is quantised as `export.quantize` does it, on the ranges that a head trained for int8 brings, or
on those of calibration pictures. The last convolution's output stays real and is
rounded once, on the latent's own grid: 8 bits of its own before that would round it twice.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import fx, nn
from torch.nn import functional

from export.errors import ConversionError
from export.onnx_model import check_model, parse
from export.quantize import prepare_for_quantisation, quantize_onnx
from export.source import ModelSource
from export.to_onnx import torch_to_onnx
from split.latents import HIGH, LOW, IntegerHead
from split.units import ActivationRange, DeployedConv

IMAGE, LATENT = "image", "latent"
_ACTIVATIONS = ("Relu", "PRelu")
_STEPS = "steps"  # the latent in steps of its grid, before it is rounded


def fold_head(head: IntegerHead) -> nn.Module:
    """The encoder with the grid inside: pictures to latents in steps, real numbers that are still to be rounded.

    Args:
        head: From a trained bottleneck; its GDN parameters are folded already.

    Returns:
        A module with convolutions in place of lone batch normalisations, which both quantisers know.
    """
    encoder = _plain(copy.deepcopy(head.encoder).cpu().eval())
    step, offset = head.step.detach().cpu().reshape(-1), head.offset.detach().cpu().reshape(-1)
    last = encoder[-1] if isinstance(encoder, nn.Sequential) and len(encoder) else None
    if isinstance(last, nn.Conv2d):
        _scale_outputs(last, 1 / step, -offset / step)
        return encoder
    return nn.Sequential(encoder, _channelwise(1 / step, -offset / step))


def trained_ranges(head: IntegerHead) -> tuple[tuple[float, float], ...]:
    """Ranges that training for int8 left: of the picture, then of each activation; empty for a head without."""
    found = [one for one in head.encoder.modules() if isinstance(one, ActivationRange)]
    if not found or not all(one.quantises and float(one.low) < float(one.high) for one in found):
        return ()
    return tuple((float(one.low), float(one.high)) for one in found)


def head_to_onnx(
    encoder: nn.Module,
    example: torch.Tensor,
    samples: Sequence[Sequence[np.ndarray]],
    ranges: Sequence[tuple[float, float]] = (),
) -> bytes:
    """The head as an int8 ONNX file (u8s8) whose output is int8.

    Args:
        encoder: From `fold_head`.
        example: One normalised picture, (1, 3, height, width).
        samples: Calibration pictures, [array of the example's shape] each.
        ranges: From `trained_ranges`; the pictures choose them where there are none.

    Raises:
        ConversionError: An operator that the exporter or the quantiser does not know.
    """
    source = ModelSource(module=encoder, example=(example,), input_names=(IMAGE,), output_names=(_STEPS,))
    prepared = prepare_for_quantisation(torch_to_onnx(source))
    named = _named_ranges(prepared, ranges) if ranges else None
    quantised = quantize_onnx(prepared, (IMAGE,), [list(one) for one in samples], scheme="u8s8", trained=named)
    return end_in_integers(quantised)


def _named_ranges(prepared: bytes, ranges: Sequence[tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """The picture's range, then those of the activations in the order of the graph, which is a chain."""
    graph = parse(prepared).graph
    names = [IMAGE, *(node.output[0] for node in graph.node if node.op_type in _ACTIVATIONS)]
    if len(names) != len(ranges):
        raise ConversionError(
            f"Wanted one trained range for the picture and for each activation, found {len(ranges)} ranges for {len(names)} "
            f"tensors: {names}. Please report it with the network."
        )
    return dict(zip(names, ranges, strict=True))


def end_in_integers(quantised: bytes) -> bytes:
    """Take the output's quantise-dequantise pair off, and put round, clip and cast to int8 there.

    Args:
        quantised: A QDQ model with one real output.
    """
    model = parse(quantised)
    graph = model.graph
    output = graph.output[0].name
    makers = {name: node for node in graph.node for name in node.output}
    real = output
    if makers[output].op_type == "DequantizeLinear":
        quantise = makers.get(makers[output].input[0])
        if quantise is None or quantise.op_type != "QuantizeLinear":
            raise ConversionError(f"Wanted a real tensor before the output {output!r}, found integers. Train again.")
        real = quantise.input[0]
        for node in (makers[output], quantise):
            graph.node.remove(node)
    shape = [one.dim_value for one in graph.output[0].type.tensor_type.shape.dim]
    graph.initializer.extend(
        numpy_helper.from_array(np.float32(value), name) for name, value in (("latent_low", LOW), ("latent_high", HIGH))
    )
    graph.node.extend(
        [
            helper.make_node("Round", [real], ["latent_rounded"]),
            helper.make_node("Clip", ["latent_rounded", "latent_low", "latent_high"], ["latent_clipped"]),
            helper.make_node("Cast", ["latent_clipped"], [LATENT], to=onnx.TensorProto.INT8),
        ]
    )
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(LATENT, onnx.TensorProto.INT8, shape))
    check_model(model, where="the head")
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _plain(module: nn.Module) -> nn.Module:
    """Layers that both quantisers know, in one sequence: without what simulated int8 in training, and without norms.

    A batch normalisation goes into the convolution before it, or, where there is none, into one of its own.
    """
    if not isinstance(module, nn.Sequential):
        return module
    parts: list[nn.Module] = []
    for child in _layers(module):
        if not isinstance(child, nn.BatchNorm2d):
            parts.append(_without_lone_norms(child) if isinstance(child, fx.GraphModule) else child)
            continue
        scale, shift = _of_norm(child)
        if parts and isinstance(parts[-1], nn.Conv2d):
            _scale_outputs(parts[-1], scale, shift)
        else:
            parts.append(_channelwise(scale, shift))
    return nn.Sequential(*parts)


def _without_lone_norms(front: fx.GraphModule) -> fx.GraphModule:
    """A network's own first layers with a convolution in place of each norm that stands behind none (DenseNet's do)."""
    modules = dict(front.named_modules())
    for node in front.graph.nodes:
        norm = modules.get(str(node.target)) if node.op == "call_module" else None
        if not isinstance(norm, nn.BatchNorm2d) or not (norm.affine and norm.track_running_stats):
            continue
        if not _is_convolution(node.all_input_nodes[0], modules):
            front.set_submodule(str(node.target), _channelwise(*_of_norm(norm)))
    return front


def _is_convolution(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return isinstance(modules[str(node.target)], nn.Conv2d)
    return node.target in (torch.conv2d, functional.conv2d)


def _of_norm(norm: nn.BatchNorm2d) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and shift of each channel, in evaluation."""
    assert norm.running_var is not None
    assert norm.running_mean is not None
    scale = norm.weight.detach() / torch.sqrt(norm.running_var + norm.eps)
    return scale, norm.bias.detach() - scale * norm.running_mean


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """The layers of nested sequences, in order."""
    if isinstance(module, nn.Sequential):
        for child in module:
            yield from _layers(child)
    elif isinstance(module, DeployedConv):
        yield module.conv
        yield from _layers(module.act)
    elif not isinstance(module, ActivationRange | nn.Identity):
        yield module


def _scale_outputs(layer: nn.Conv2d, scale: torch.Tensor, shift: torch.Tensor) -> None:
    """Y becomes scale * y + shift, channel by channel."""
    bias = layer.bias.detach() if layer.bias is not None else torch.zeros_like(shift)
    layer.weight = nn.Parameter(layer.weight.detach() * scale[:, None, None, None], requires_grad=False)
    layer.bias = nn.Parameter(bias * scale + shift, requires_grad=False)


def _channelwise(scale: torch.Tensor, shift: torch.Tensor) -> nn.Conv2d:
    layer = nn.Conv2d(len(scale), len(scale), 1, groups=len(scale))
    layer.weight = nn.Parameter(scale.reshape(-1, 1, 1, 1).clone(), requires_grad=False)
    layer.bias = nn.Parameter(shift.clone(), requires_grad=False)
    return layer.eval()
