"""The int8 head of a trained bottleneck for LiteRT and for microcontrollers: its output is the latent's own grid.

Scale 1 and zero point 0 there, so that an integer means what it meant in training, and is rounded once. Operators that have
no int8 form stay real, where the engine allows that: the quotient of a GDN, the choice of a codebook's word.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import torch
from torch import fx, nn
from torch.nn import functional

from edge_runtime.manifest import TensorSpec
from export.cut_litert import load_tflite
from export.head_graph import IMAGE, LATENT, fold_head, trained_ranges
from export.source import ModelSource
from export.tflite_join import rename_ends
from export.tflite_model import read_tflite
from export.to_litert import Range, quantize_tflite, torch_to_tflite
from export.verify import quantize
from split.codebook import FIRST_WORD, NearestWord
from split.cut_graph import CutGraph
from split.gdn import FoldedGDN1
from split.latents import HIGH, LOW, IntegerHead
from split.positions import KeepPlaces

_CONVOLUTIONS = ("CONV_2D", "DEPTHWISE_CONV_2D")
_MOVES = ("RESHAPE", "TRANSPOSE")


@dataclass(frozen=True)
class LiteRtHead:
    """A .tflite file with the input `image` and the output `latent`, channels last."""

    data: bytes
    image: TensorSpec

    def stored(self, picture: np.ndarray) -> np.ndarray:
        """The input for a normalised picture, float (1, 3, height, width)."""
        return quantize(np.ascontiguousarray(picture.transpose(0, 2, 3, 1)), self.image)


def head_to_litert(head: IntegerHead, pictures: Sequence[np.ndarray], *, floats: bool) -> LiteRtHead:
    """The head as an int8 .tflite file whose output is int8.

    Args:
        head: From a trained bottleneck.
        pictures: Normalised calibration pictures, float (1, 3, height, width) each.
        floats: Whether operators without an int8 form may stay real.

    Raises:
        ConversionError: An operator that the converter or the quantiser does not know.
    """
    encoder = _for_litert(head)
    source = ModelSource(module=encoder, example=(torch.from_numpy(pictures[0]),), input_names=(IMAGE,))
    fp32 = torch_to_tflite(source, channels_last_outputs=True)
    moved = [[np.ascontiguousarray(one.transpose(0, 2, 3, 1))] for one in pictures]
    chooses = any(isinstance(one, KeepPlaces) for one in head.encoder.modules())
    ranges = _known_ranges(load_tflite(fp32).graph, trained_ranges(head), chooses=chooses)
    data = rename_ends(quantize_tflite(fp32, moved, ranges=ranges, floats=floats), (IMAGE,), (LATENT,))
    spec = read_tflite(data, where="the head").inputs[0]
    return LiteRtHead(data, msgspec.structs.replace(spec, name=IMAGE, layout="nhwc", semantic="image"))


def has_gdn(head: IntegerHead) -> bool:
    """Whether there is a quotient in it, which has no int8 form."""
    return any(isinstance(one, FoldedGDN1) for one in head.encoder.modules())


def has_codebook(head: IntegerHead) -> bool:
    """Whether it ends in the choice of a word, which has no int8 form."""
    return any(isinstance(one, NearestWord) for one in head.encoder.modules())


def _for_litert(head: IntegerHead) -> nn.Module:
    """The encoder in layers that the converter gets right; each is the same function as the one it stands for."""
    encoder = fold_head(head)
    parts = [one for part in encoder for one in (part if isinstance(part, nn.Sequential) else [part])]
    if any(isinstance(one, NearestWord | KeepPlaces) for one in parts[-2:-1]):
        parts.pop()  # both give integers or steps already: the grid behind them multiplies by 1
    found: list[nn.Module] = []
    for layer in parts:
        if isinstance(layer, fx.GraphModule):
            found.append(_pad_with_zeros(layer))
        elif isinstance(layer, nn.MaxPool2d) and found and isinstance(found[-1], nn.ReLU):
            found.append(_zero_padded(layer))
        elif isinstance(layer, FoldedGDN1):
            found.append(_Quotient(layer))
        elif isinstance(layer, NearestWord):
            found.append(_Word(layer))
        elif isinstance(layer, KeepPlaces):
            found.append(_ChosenPlaces(layer))
        else:
            found.append(layer)
    return nn.Sequential(*found).eval()


def _pad_with_zeros(front: fx.GraphModule) -> fx.GraphModule:
    """A network's own first layers with zeros around what their poolings see, where that changes nothing."""
    modules = dict(front.named_modules())
    behind: dict[str, list[bool]] = {}  # of each pooling, whether a ReLU made what it sees, each time that it runs
    for node in front.graph.nodes:
        if node.op == "call_module" and isinstance(modules[str(node.target)], nn.MaxPool2d):
            behind.setdefault(str(node.target), []).append(_is_rectified(node.all_input_nodes[0], modules))
    for name in (name for name, rectified in behind.items() if all(rectified)):
        front.set_submodule(name, _zero_padded(modules[name]))
    return front


def _is_rectified(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a ReLU made it."""
    if node.op == "call_module":
        return isinstance(modules[str(node.target)], nn.ReLU | nn.ReLU6)
    return node.target in (torch.relu, functional.relu, functional.relu6, "relu")


def _zero_padded(pool: nn.Module) -> nn.Module:
    """The same behind a ReLU: a maximum with zeros around is one with nothing around, and kernels pad with zeros alone."""
    assert isinstance(pool, nn.MaxPool2d)
    height, width = pool.padding if isinstance(pool.padding, tuple) else (pool.padding, pool.padding)
    if pool.ceil_mode or not (height or width):
        return pool
    pad = nn.ZeroPad2d((width, width, height, height))
    return nn.Sequential(pad, nn.MaxPool2d(pool.kernel_size, pool.stride, dilation=pool.dilation))


def _known_ranges(graph: CutGraph, trained: Sequence[Range], *, chooses: bool) -> dict[str, Range]:
    """The latent's own grid from the output back to where it is made, and the ranges that training for int8 left.

    Args:
        graph: A chain: the float head.
        trained: Of the picture, then of each activation; empty where training left none.
        chooses: Whether the last convolution only takes places of the latent.
    """
    makers = {name: node for node in graph.nodes for name in node.outputs}
    ranges: dict[str, Range] = {}
    name = graph.outputs[0]
    while graph.tensors[name].dtype == "float32":  # words are integers already
        ranges[name] = (float(LOW), float(HIGH))
        node = makers[name]
        if node.op not in _MOVES and not (chooses and node.op in _CONVOLUTIONS):
            break
        chooses = chooses and node.op in _MOVES
        name = node.inputs[0]
    if not trained:
        return ranges
    acts = [name for name in _activations(graph) if name not in ranges]
    known = dict(zip([graph.inputs[0], *acts], trained, strict=False))  # behind them: a codebook's latent and scores
    for node in graph.nodes:
        if node.op == "PAD" and node.inputs[0] in known:
            known[node.outputs[0]] = known[node.inputs[0]]
    return ranges | known


def _activations(graph: CutGraph) -> list[str]:
    """What each convolution gives behind its activation: a ReLU is part of the operator, a PReLU is one of its own."""
    behind = {node.inputs[0]: node.outputs[0] for node in graph.nodes if node.op == "PRELU"}
    made = [node.outputs[0] for node in graph.nodes if node.op in _CONVOLUTIONS]
    return [behind.get(name, name) for name in made]


class _Quotient(nn.Module):
    """A folded GDN that divides: the converter leaves a reciprocal out, without a word."""

    def __init__(self, layer: FoldedGDN1) -> None:
        super().__init__()
        self.norm, self.inverse = layer.norm, layer.inverse

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The quotient, or the product for the inverse."""
        norm = self.norm(torch.abs(x))
        return x * norm if self.inverse else x / norm


class _Word(nn.Module):
    """The choice of a word as an integer, which no quantiser rounds again."""

    def __init__(self, layer: NearestWord) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """int8 (batch, books, h, w)."""
        return (self.layer.numbers(x).to(torch.int32) + FIRST_WORD).to(torch.int8)


class _ChosenPlaces(nn.Module):
    """The kept places as a 1x1 convolution over the places, whose weights are 0 and 1: every engine has one."""

    def __init__(self, layer: KeepPlaces) -> None:
        super().__init__()
        self.choose = nn.Conv2d(layer.count, len(layer.places), 1, bias=False)
        self.choose.weight.data = nn.functional.one_hot(layer.places, layer.count).float()[:, :, None, None]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, channels, h, w) to (batch, channels, kept, 1)."""
        return self.choose(x.flatten(2).transpose(1, 2)[..., None]).transpose(1, 2)
