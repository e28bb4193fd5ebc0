"""Put a bottleneck into a network: cut it behind a named layer, keep the rest as the tail.

The network is traced symbolically. A layer can be cut behind when its output is one image-like tensor through which
everything that comes later depends on the input: the bottleneck then stands in for the layer and all before it.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import fx, nn

from split.bottleneck import Bottleneck, BottleneckError, Coded
from split.tracing import NotingTracer, Shapes, cut_nodes, is_batch

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
MAX_NAMED = 12  # layers that an error lists


class LayerError(BottleneckError):
    """The layer that was asked for is not in the network, or no bottleneck can stand in for it."""


class NetworkError(BottleneckError):
    """A network that cannot be cut: it takes no picture, or cannot be traced."""


@dataclass(frozen=True)
class CutLayer:
    """A layer behind which a network can be cut.

    Attributes:
        name: As in `named_modules`.
        shape: Of its output: channels, height, width.
        stride: Input pixels for each pixel of the output, both directions; 0 where they do not divide evenly.
        front: The network's own first layers, which the bottleneck keeps; null where it replaces all of them.
    """

    name: str
    shape: tuple[int, int, int]
    stride: int
    front: "Front | None" = None


@dataclass(frozen=True)
class Front:
    """The first layers of a trained network.

    Attributes:
        layer: The last one of them.
        module: Pictures to its output; a copy, with the trained weights.
    """

    layer: CutLayer
    module: fx.GraphModule = field(repr=False, compare=False)


class Features(NamedTuple):
    """What a network computes: logits, and the outputs of the layers that a loss compares, the cut's first."""

    logits: torch.Tensor
    features: tuple[torch.Tensor, ...]
    saliency: torch.Tensor | None = (
        None  # of the cut's places, (batch, 1, height, width), mean 1; where it was asked for
    )


class StudentOutput(NamedTuple):
    """`Features` of a network with a bottleneck, and what its latent cost."""

    logits: torch.Tensor
    features: tuple[torch.Tensor, ...]
    coded: Coded


class SplitNetwork(nn.Module):
    """A bottleneck in front of the rest of a network.

    Attributes:
        bottleneck: In place of everything up to the cut.
        tail: From the cut's layer to (logits, outputs of the compared layers behind the cut).
        layer: Name of the cut's layer.
        compared: Names of the compared layers, the cut's first.
    """

    def __init__(self, bottleneck: Bottleneck, tail: fx.GraphModule, *, compared: tuple[str, ...]) -> None:
        super().__init__()
        self.bottleneck = bottleneck
        self.tail = tail
        self.layer = compared[0]
        self.compared = compared

    def train(self, mode: bool = True) -> "SplitNetwork":
        """Training mode, but for normalisations that keep their statistics."""
        super().train(mode)
        if self.bottleneck.fixed_norm:
            for part in (self.tail, *self.bottleneck.kept_layers()):
                for one in part.modules():
                    if isinstance(one, _NORMS):
                        one.eval()
        return self

    def forward(self, x: torch.Tensor) -> StudentOutput:
        """Pictures, (batch, 3, height, width), to logits and what training needs."""
        target, coded = self.bottleneck(x)
        logits, later = self.tail(target)
        return StudentOutput(logits, (target, *later), coded)


class Teacher(nn.Module):
    """The untouched network with its compared layers as outputs, frozen, in evaluation mode."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__()
        self.graph = graph.eval().requires_grad_(requires_grad=False)

    def train(self, mode: bool = True) -> "Teacher":
        """Stays in evaluation mode."""
        return super().train(mode=False) if mode else self

    def forward(self, x: torch.Tensor) -> Features:
        """Pictures to logits and the outputs of the compared layers."""
        logits, features = self.graph(x)
        return Features(logits, tuple(features))

    def with_saliency(self, x: torch.Tensor) -> Features:
        """The same, and how much the surest class depends on each place of the cut's layer.

        Source: Selvaraju et al. 2017, Grad-CAM (arXiv:1610.02391), eq. 1 and 2, half of it spread evenly.
        """
        with torch.enable_grad():
            logits, features = self.graph(x.detach().requires_grad_())
            (gradient,) = torch.autograd.grad(logits.amax(1).sum(), features[0])
        weights = gradient.float().mean((2, 3), keepdim=True)
        places = torch.relu((weights * features[0].detach().float()).sum(1, keepdim=True))
        share = places / places.mean((2, 3), keepdim=True).clamp(min=1e-12)
        flat = torch.where(places.amax((2, 3), keepdim=True) > 0, share, torch.ones_like(share))
        return Features(logits.detach(), tuple(one.detach() for one in features), (1 + flat) / 2)


@dataclass(frozen=True)
class Trace:
    """A traced network: its graph, and the layers behind which it can be cut, in the order of the network."""

    model: nn.Module
    graph: fx.Graph
    layers: Mapping[str, CutLayer]
    nodes: Mapping[str, fx.Node]


def trace_network(model: nn.Module, example: torch.Tensor) -> Trace:
    """Find the layers behind which a network can be cut.

    Args:
        model: Takes one batch of pictures, returns one tensor of logits.
        example: A batch of pictures, float, (batch, 3, height, width).

    Raises:
        NetworkError: No pictures, not traceable, or something else than one tensor comes out.
    """
    if example.ndim != 4 or example.shape[1] != 3 or not example.is_floating_point():
        raise NetworkError(
            f"Wanted a network of pictures, float (batch, 3, height, width), found an input {example.dtype} of shape "
            f"{tuple(example.shape)}. A learned bottleneck replaces layers that see a picture."
        )
    model.eval()
    tracer = NotingTracer()
    try:
        graph = tracer.trace(model)
    except Exception as error:
        raise NetworkError(
            f"Wanted a network whose forward can be traced (no branches on values), found {type(error).__name__}: {error}. "
            "Give a module without them, or the part of it that sees the picture."
        ) from error
    shapes = Shapes(fx.GraphModule(model, graph))
    shapes.look(example)
    if shapes.outputs != 1:
        raise NetworkError(f"Wanted a network with one input and one output tensor, found {shapes.outputs}. Wrap it.")
    nodes = cut_nodes(graph, tracer.made)
    layers = {}
    for name, node in nodes.items():
        shape = shapes.found.get(node.name, ())
        if len(shape) == 4 and shape[2] * shape[3] > 1:
            layers[name] = CutLayer(name, shape[1:], _stride(example.shape[2:], shape[2:]))
    return Trace(model, graph, layers, {name: nodes[name] for name in layers})


def inject(
    trace: Trace,
    layer: str,
    make: Callable[[CutLayer], Bottleneck],
    *,
    compared: tuple[str, ...] | None = None,
    size: tuple[int, int],
    front: str = "",
) -> tuple[SplitNetwork, Teacher]:
    """Replace a network up to a layer by a bottleneck.

    Args:
        trace: Of the trained network; its weights are copied into the student's tail.
        layer: The last layer that is replaced.
        make: Makes the bottleneck for that layer, with new weights.
        compared: Later layers whose outputs the feature loss compares; by default the last one at each resolution.
        size: Height and width of the pictures.
        front: The last of the network's first layers that the bottleneck keeps in its encoder; "" to replace all of them.

    Returns:
        The student, and the teacher with the same outputs.

    Raises:
        LayerError: No such layer, one behind the cut, or the bottleneck's output has another shape; the message names layers
            that fit.
        BottleneckError: The bottleneck's own options are wrong.
    """
    target = find_layer(trace, layer)
    if front:
        target = replace(target, front=first_layers(trace, front, before=layer))
    bottleneck = make(target)
    found = output_shape(bottleneck, size)
    if found != target.shape:
        fitting = [one.name for one in trace.layers.values() if one.stride == bottleneck.stride]
        raise LayerError(
            f"Wanted a layer whose output is {found[1]} x {found[2]} for a picture of {size[0]} x {size[1]} (stride "
            f"{bottleneck.stride}), found {_form(target.shape)} (channels, height, width) behind {layer!r}. "
            f"{_named(fitting) or 'Choose another stride or picture size.'}"
        )
    later = default_compared(trace, layer) if compared is None else compared
    for name in later:
        find_layer(trace, name)
    names = (layer, *later)
    tail = _tail_graph(trace, [trace.nodes[name] for name in names])
    whole = _whole_graph(trace, [trace.nodes[name] for name in names])
    return SplitNetwork(bottleneck, tail, compared=names), Teacher(whole)


def find_layer(trace: Trace, name: str) -> CutLayer:
    """A layer by name.

    Raises:
        LayerError: Not there, or it cannot be cut behind; the message names layers that can.
    """
    if name in trace.layers:
        return trace.layers[name]
    raise LayerError(
        f"Wanted a layer behind which the network can be cut, found {_absence(trace, name)}: {name!r}. {_named(list(trace.layers))}"
    )


def first_layers(trace: Trace, name: str, *, before: str) -> Front:
    """The layers up to one, which comes no later than the layer `before`, with a copy of their weights, to be trained on.

    Raises:
        LayerError: No such layer, one that comes later, or one of an uneven stride; the message names layers that fit.
    """
    order = {node: number for number, node in enumerate(trace.graph.nodes)}
    reach = order[trace.nodes[find_layer(trace, before).name]]
    early = [one.name for one in trace.layers.values() if order[trace.nodes[one.name]] <= reach]
    fitting = [one for one in early if trace.layers[one].stride]
    if name not in fitting:
        if name not in trace.layers:
            reason = _absence(trace, name)
        else:
            reason = "a layer of uneven stride" if name in early else "a layer behind it"
        raise LayerError(
            f"Wanted first layers that end before the cut at {before!r}, or there, found {reason}: {name!r}. {_named(fitting)}"
        )
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    for node in trace.graph.nodes:
        values[node] = graph.node_copy(node, values.__getitem__)
        if node is trace.nodes[name]:
            break
    graph.output(values[trace.nodes[name]])
    module = _module(trace, graph)
    module.requires_grad_(requires_grad=True)  # whoever trained the network may have frozen them
    return Front(trace.layers[name], module)


def check_front(layer: CutLayer, wanted: str) -> None:
    """Check that the first layers that a method's options name are those that it gets.

    Raises:
        BottleneckError: Others, or none.
    """
    found = layer.front.layer.name if layer.front else ""
    if found != wanted:
        raise BottleneckError(
            f"Wanted the first layers up to {wanted!r}, as the options say, found those up to {found!r} ('' for none). Give the option "
            "front and `inject`'s argument front the same name."
        )


def default_compared(trace: Trace, layer: str) -> tuple[str, ...]:
    """The last layer at each lower resolution behind a layer, not nested deeper than it (`layer3`, not `layer3.5.relu`)."""
    order = list(trace.graph.nodes)
    start = order.index(trace.nodes[layer])
    best: dict[tuple[int, int], tuple[int, int, str]] = {}
    for name, one in trace.layers.items():
        position = order.index(trace.nodes[name])
        inner = name.count(".") > layer.count(".") or not one.stride
        if inner or position <= start or one.shape[1] >= trace.layers[layer].shape[1]:
            continue
        key = (position, -name.count("."), name)
        best[one.shape[1:]] = max(best.get(one.shape[1:], key), key)
    return tuple(name for _, _, name in sorted(best.values()))


def output_shape(bottleneck: nn.Module, size: tuple[int, int]) -> tuple[int, ...]:
    """Shape (channels, height, width) that a bottleneck or encoder makes of a picture, without running it on data."""
    was_training = bottleneck.training
    bottleneck.eval()
    device = next(bottleneck.parameters()).device
    with torch.no_grad():
        result = bottleneck(torch.zeros(1, 3, *size, device=device))
    bottleneck.train(was_training)
    tensor = result[0] if isinstance(result, tuple) else result
    return tuple(tensor.shape[1:])


def _tail_graph(trace: Trace, compared: list[fx.Node]) -> fx.GraphModule:
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {compared[0]: graph.placeholder("target")}
    started = False
    later: list[fx.Node] = []  # sizes of the batch, which the cut's tensor has too
    for node in trace.graph.nodes:
        if node is compared[0]:
            started = True
        elif node.op == "output":
            graph.output((values[node.args[0]], tuple(values[one] for one in compared[1:])))
        elif is_batch(node):
            later.append(node)
        elif started or node.op == "get_attr":
            values[node] = graph.node_copy(node, values.__getitem__)
        if node is compared[0]:
            values |= {one: graph.call_method("size", (values[node], 0)) for one in later}
    return _module(trace, graph)


def _whole_graph(trace: Trace, compared: list[fx.Node]) -> fx.GraphModule:
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    for node in trace.graph.nodes:
        if node.op == "output":
            graph.output((values[node.args[0]], tuple(values[one] for one in compared)))
        else:
            values[node] = graph.node_copy(node, values.__getitem__)
    return _module(trace, graph)


def _module(trace: Trace, graph: fx.Graph) -> fx.GraphModule:
    """A module with a copy of the weights that the graph uses, and of nothing else."""
    module = fx.GraphModule(trace.model, graph)
    module.graph.eliminate_dead_code()
    module.recompile()
    module.delete_all_unused_submodules()
    copied: fx.GraphModule = copy.deepcopy(module)
    return copied


def _stride(size: torch.Size, inner: tuple[int, ...]) -> int:
    steps = {-(-outer // one) for outer, one in zip(size, inner, strict=True)}
    stride = steps.pop()
    return stride if not steps and all(-(-a // stride) == b for a, b in zip(size, inner, strict=True)) else 0


def _absence(trace: Trace, name: str) -> str:
    """Why a network cannot be cut behind a layer."""
    known = {path for path, _ in trace.model.named_modules()}
    return "a layer that a cut cannot follow" if name in known else "no such layer"


def _form(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _named(names: list[str]) -> str:
    if not names:
        return ""
    outer = sorted(names, key=lambda name: name.count("."))[:MAX_NAMED]
    shown = ", ".join(name for name in names if name in outer)
    return f"Layers that fit: {shown}" + (
        f" and {len(names) - len(outer)} inside of them." if len(names) > len(outer) else "."
    )
