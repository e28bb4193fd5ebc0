"""Fine-tune the last layers of a tail on the integers that the finished head really makes.

The head is fixed and only the tail's last layers learn, so what comes before them is computed once for each view of a
picture and kept: an epoch costs what these layers cost, which a CPU can afford.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import fx, nn

from split.augment import Augmentation, augment, centre, draw
from split.bottleneck import BottleneckError, LatentGrid
from split.fold import fold
from split.inject import SplitNetwork, Teacher
from split.losses import TASK, TaskLoss, task_loss
from split.training_data import PictureSet

_CHUNK = 64

Head = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class RefineOptions:
    """How the last layers learn.

    Attributes:
        epochs: Passes over the pictures, each in one of its views.
        views: Of each picture that are kept; the first one is the centre.
        layer: The last layer that stays as it is; null for the first of the network's compared layers behind the cut.
        batch: Pictures for each step.
        lr: Of AdamW at the start; half a cosine down.
        decay: Of the weights.
        task: Loss; the teacher is the unsplit network, on the same view.
        seed: Of views and order.
    """

    epochs: int = 8
    views: int = 4
    layer: str | None = None
    batch: int = 64
    lr: float = 3e-4
    decay: float = 0.02
    task: TaskLoss = TASK
    seed: int = 0


@dataclass(frozen=True)
class Refined:
    """Validation accuracy before and after; the weights are those of the best epoch, 0 where none was better."""

    before: float
    after: float
    epoch: int


@dataclass(frozen=True)
class Cached:
    """What the trained layers see of each view, (views, n, ...) in half precision, and the teacher's logits."""

    features: torch.Tensor
    answers: torch.Tensor


class Front(nn.Module):
    """int8 latents to the input of the layers that learn."""

    def __init__(self, network: SplitNetwork, grid: LatentGrid, graph: nn.Module) -> None:
        super().__init__()
        self.decoder = fold(network.bottleneck.deployed_decoder()).eval().requires_grad_(requires_grad=False)
        self.graph = graph
        self.register_buffer("step", torch.tensor(grid.scale)[None, :, None, None])
        self.register_buffer("offset", torch.tensor(grid.offset)[None, :, None, None])

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        """(batch, channels, h, w), int8."""
        result: torch.Tensor = self.graph(self.decoder(latent.to(torch.float32) * self.step + self.offset))
        return result


@dataclass(frozen=True)
class Material:
    """Pictures to learn from, and others that choose the epoch.

    Attributes:
        train: To learn from.
        validation: To choose.
        view: How training pictures are varied; validation pictures are taken from the centre.
    """

    train: PictureSet
    validation: PictureSet
    view: Augmentation


def refine_tail(
    network: SplitNetwork,
    head: Head,
    grid: LatentGrid,
    teacher: Teacher,
    material: Material,
    options: RefineOptions,
) -> Refined:
    """Fine-tune the last layers of `network.tail` in place.

    Args:
        network: Trained, on a CPU.
        head: Normalised pictures to int8 latents: the quantised head.
        grid: Of the latents.
        teacher: The unsplit network.
        material: Pictures.
        options: What learns, for how long.

    Raises:
        BottleneckError: No such layer in the tail.
    """
    first, last = divide_tail(network, options.layer)
    front = Front(network.eval(), grid, first)
    checks = _front_of(front, head, material.validation, material.view)
    labels = material.validation.labels
    best = copy.deepcopy(last.state_dict())
    before = after = _accuracy(last, checks, labels)
    found = 0
    cached = cache_views(front, head, teacher, material, options)
    for epoch in _epochs(last, cached, material.train.labels, options):
        accuracy = _accuracy(last, checks, labels)
        if accuracy > after:
            best, after, found = copy.deepcopy(last.state_dict()), accuracy, epoch
    last.load_state_dict(best)
    return Refined(before, after, found)


def divide_tail(network: SplitNetwork, layer: str | None = None) -> tuple[fx.GraphModule, fx.GraphModule]:
    """The tail up to a compared layer, and from there to the logits; both share their weights with `network.tail`.

    Raises:
        BottleneckError: Not one of the compared layers behind the cut.
    """
    names = network.compared[1:]
    wanted = layer or next(iter(names), None)
    if wanted not in names:
        raise BottleneckError(
            f"Wanted one of the layers {list(names)} behind the cut at {network.layer!r}, found {wanted!r}. Cut earlier."
        )
    logits, later = network.tail.graph.output_node().args[0]
    middle = later[names.index(wanted)]
    start = next(iter(network.tail.graph.nodes))
    return _part(network.tail, start, middle), _part(network.tail, middle, logits)


def _part(tail: fx.GraphModule, start: fx.Node, end: fx.Node) -> fx.GraphModule:
    """From one value to another; sizes of the batch are read from the first one."""
    graph = fx.Graph()
    values = {start: graph.placeholder("value")}
    for node in tail.graph.nodes:
        if node in values:
            continue
        batch = node.op == "call_method" and node.target == "size" and node.args[1:] == (0,)
        if batch and node.args[0].op == "placeholder":
            values[node] = graph.call_method("size", (values[start], 0))
        elif node.op == "get_attr" or (
            node.op not in ("placeholder", "output") and all(one in values for one in node.all_input_nodes)
        ):
            values[node] = graph.node_copy(node, values.__getitem__)
    graph.output(values[end])
    module = fx.GraphModule(tail, graph)
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def cache_views(front: Front, head: Head, teacher: Teacher, material: Material, options: RefineOptions) -> Cached:
    """Run everything that does not learn once for each view of each training picture."""
    features, answers = [], []
    data = material.train
    for view in range(options.views):
        for number, images in enumerate(data.images.split(_CHUNK)):
            draws = draw(len(images), options.seed + 1_000_000 * view + number)
            x = augment(images, material.view, draws) if view else centre(images, material.view)
            with torch.no_grad():
                features.append(front(head(x)).to(torch.float16))
                answers.append(teacher(x).logits)
    stacked = (torch.cat(one) for one in (features, answers))
    return Cached(*(one.view(options.views, len(data), *one.shape[1:]) for one in stacked))


def _epochs(last: nn.Module, cached: Cached, labels: torch.Tensor, options: RefineOptions) -> Iterator[int]:
    """Train; yields the number of each epoch when it is over."""
    weights = [one.requires_grad_() for one in last.parameters()]
    optimiser = torch.optim.AdamW(weights, lr=options.lr, weight_decay=options.decay)
    steps = max(1, len(labels) // options.batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, options.epochs * steps)
    chance = torch.Generator().manual_seed(options.seed)
    last.eval()  # normalisation keeps its statistics
    for epoch in range(1, options.epochs + 1):
        order = torch.randperm(len(labels), generator=chance)
        for rows in order.split(options.batch)[:steps]:
            views = torch.randint(len(cached.features), (len(rows),), generator=chance)
            logits = last(cached.features[views, rows].float())
            loss = task_loss(logits, cached.answers[views, rows], labels[rows], options.task)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
        yield epoch


def _front_of(front: Front, head: Head, data: PictureSet, view: Augmentation) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([front(head(centre(one, view))) for one in data.images.split(_CHUNK)])


def _accuracy(last: nn.Module, features: torch.Tensor, labels: torch.Tensor) -> float:
    with torch.no_grad():
        answers = torch.cat([last(one).argmax(1) for one in features.split(_CHUNK)])
    return float((answers == labels).float().mean())
