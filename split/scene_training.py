"""Training of scene tails: each alone on fixed inputs, or all three behind one trunk, with a bottleneck that learns what they need.

Inputs, masks and boxes lie on the device; a step is nothing but launches.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from split.inject import Teacher
from split.losses import relative_feature_loss
from split.scene_tails import CodedTrunk, SceneTail, TaskHead
from split.scenes import SceneSet

_SIZE_WEIGHT = 0.1  # of the boxes' size and place against their heat
_QUANTISED_SHARE = 0.2  # of the epochs, at the end, at least one


@dataclass(frozen=True)
class TailOptions:
    """Training of a tail, or of three together.

    Attributes:
        epochs: Passes over the scenes.
        batch: Scenes for each step.
        lr: Of Adam at the start; half a cosine down.
        trunk_lr: Factor for what starts trained.
        seed: Of the order.
        mixed_precision: bfloat16 on a GPU.
    """

    epochs: int = 15
    batch: int = 128
    lr: float = 2e-3
    trunk_lr: float = 0.3
    seed: int = 0
    mixed_precision: bool = True


@dataclass(frozen=True)
class RateOptions:
    """What a bottleneck pays while it learns with its tails.

    Attributes:
        beta: Weight of the mean scene's bits against the sum of the tasks' losses.
        features: Weight of the relative feature error against the network that it replaces.
        int8: The last fifth trains the encoder as int8.
    """

    beta: float = 1e-4
    features: float = 1.0
    int8: bool = True


def train_tail(tail: SceneTail, inputs: torch.Tensor, scenes: SceneSet, options: TailOptions) -> None:
    """Train a tail in place, on its inputs' device.

    Args:
        tail: With a trained trunk or a new one.
        inputs: int8 latents or uint8 pictures of the scenes, (n, channels, h, w).
        scenes: On the same device, in the same order.
        options: Training.
    """
    tail.to(inputs.device)
    parts = (list(tail.head.parameters()), list(tail.trunk.parameters()))

    def loss_of(rows: torch.Tensor) -> torch.Tensor:
        return task_loss(tail.head, tail(inputs[rows]).float(), scenes, rows)

    _descend(tail, parts, loss_of, (len(scenes), inputs.device), options)


def train_together(
    trunk: nn.Module, heads: Mapping[str, TaskHead], inputs: torch.Tensor, scenes: SceneSet, options: TailOptions
) -> None:
    """Train a trunk and all heads behind it in place, on the sum of their losses.

    Args:
        trunk: Inputs to feature maps.
        heads: One for each task.
        inputs: Of the scenes, on the device.
        scenes: On the same device, in the same order.
        options: Training.
    """
    both = nn.ModuleList([trunk, *heads.values()]).to(inputs.device)
    parts = ([one for head in heads.values() for one in head.parameters()], list(trunk.parameters()))

    def loss_of(rows: torch.Tensor) -> torch.Tensor:
        return _sum_of_tasks(heads, trunk(inputs[rows]), scenes, rows)

    _descend(both, parts, loss_of, (len(scenes), inputs.device), options)


def train_coded(
    teacher: Teacher,
    trunk: CodedTrunk,
    heads: Mapping[str, TaskHead],
    data: tuple[torch.Tensor, SceneSet],
    options: tuple[TailOptions, RateOptions],
) -> None:
    """As `train_together`, with the bottleneck that is in the trunk, which pays for its bits; its encoder is fixed afterwards.

    Args:
        teacher: The network's that the trunk holds, for the features.
        trunk: Pictures to feature maps.
        heads: One for each task.
        data: uint8 pictures on the device, and their scenes there.
        options: Training, and the rate.
    """
    network = trunk.network
    inputs, scenes = data
    training, rate = options
    both = nn.ModuleList([trunk, *heads.values()]).to(inputs.device)
    teacher.to(inputs.device)
    new = [*network.bottleneck.untrained(), *(one for head in heads.values() for one in head.parameters())]
    trained = [*network.bottleneck.pretrained(), *network.tail.parameters()]
    network.tail.requires_grad_(requires_grad=True)

    def loss_of(rows: torch.Tensor) -> torch.Tensor:
        maps, bits = trunk.coded(inputs[rows])
        loss = _sum_of_tasks(heads, maps, scenes, rows) + rate.beta * bits / len(rows)
        if rate.features:
            with torch.no_grad():
                wanted = teacher(trunk.view(inputs[rows])).features
            loss = loss + rate.features * relative_feature_loss(maps, wanted)
        return loss

    def at_epoch(number: int) -> None:
        if rate.int8 and number == training.epochs - max(1, round(training.epochs * _QUANTISED_SHARE)):
            network.bottleneck.quantise_encoder()

    _descend(
        both,
        (new, trained),
        loss_of,
        (len(scenes), inputs.device),
        training,
        at_epoch=at_epoch,
    )
    network.bottleneck.fix_encoder()


def _descend(
    module: nn.Module,
    parts: tuple[list[nn.Parameter], list[nn.Parameter]],
    loss_of: Callable[[torch.Tensor], torch.Tensor],
    place: tuple[int, torch.device],
    options: TailOptions,
    *,
    at_epoch: Callable[[int], None] = lambda _: None,
) -> None:
    """Adam on what is new and on what starts trained, over a number of scenes on a device; then the module is in evaluation."""
    count, device = place
    groups = [
        {"params": part, "lr": options.lr * factor} for part, factor in zip(parts, (1.0, options.trunk_lr), strict=True)
    ]
    module.train()
    torch.manual_seed(options.seed)
    cuda = device.type == "cuda"
    optimiser = torch.optim.Adam(groups, lr=options.lr, fused=cuda or None)
    batch = min(options.batch, count)
    each = count // batch
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, options.epochs * each)
    chance = torch.Generator().manual_seed(options.seed)
    for number in range(options.epochs):
        at_epoch(number)
        order = torch.randperm(count, generator=chance).to(device)
        for rows in order.split(batch)[:each]:
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=cuda and options.mixed_precision):
                loss = loss_of(rows)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
    module.eval()


def _sum_of_tasks(
    heads: Mapping[str, TaskHead], maps: tuple[torch.Tensor, ...], scenes: SceneSet, rows: torch.Tensor
) -> torch.Tensor:
    return torch.stack([task_loss(one, one(maps).float(), scenes, rows) for one in heads.values()]).sum()


def task_loss(head: TaskHead, found: torch.Tensor, scenes: SceneSet, rows: torch.Tensor) -> torch.Tensor:
    """Mean loss of a head's outputs for some of the scenes: cross entropy of labels or pixels, or `box_loss`."""
    if head.task == "classes":
        return functional.cross_entropy(found, scenes.labels[rows])
    if head.task == "masks":
        masks = scenes.masks[rows].long()
        return functional.cross_entropy(functional.interpolate(found, size=masks.shape[1:], mode="bilinear"), masks)
    return box_loss(found, scenes, rows, head.classes)


def box_loss(found: torch.Tensor, scenes: SceneSet, rows: torch.Tensor, classes: int) -> torch.Tensor:
    """Heat at centres, distances to the four sides at the centre's place, in shares of the picture.

    Source: Zhou et al. 2019, Objects as Points (arXiv:1904.07850), eq. 1 for the heat.
    """
    boxes, kinds = scenes.boxes[rows], scenes.kinds[rows]
    size = scenes.images.shape[-1]
    heat, place, sides = centre_targets(boxes / size, kinds, classes, (found.shape[2], found.shape[3]))
    logits = found[:, :classes]
    probability = torch.sigmoid(logits)
    peak = heat == 1
    for_peaks = (1 - probability) ** 2 * functional.logsigmoid(logits)
    for_others = (1 - heat) ** 4 * probability**2 * functional.logsigmoid(-logits)
    present = (kinds > 0).float()
    count = present.sum().clamp(min=1)
    focal = -torch.where(peak, for_peaks, for_others).sum() / count
    flat = found[:, classes:].flatten(2)  # (batch, 4, places)
    at_centre = flat.gather(2, place[:, None].expand(-1, 4, -1))  # (batch, 4, objects)
    error = (at_centre - sides).abs().sum(1) * present
    return focal + _SIZE_WEIGHT * scenes.images.shape[-1] / 8 * error.sum() / count


def centre_targets(
    boxes: torch.Tensor, kinds: torch.Tensor, classes: int, shape: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What a box tail shall say.

    Args:
        boxes: (batch, objects, 4), in [0, 1].
        kinds: (batch, objects), 0 without an object.
        classes: Number of them.
        shape: Height and width of the map.

    Returns:
        Heat (batch, classes, h, w), 1 at centres; the centres' place, int64 (batch, objects); distances from the middle of
        that place to left, top, right, bottom, (batch, 4, objects).
    """
    height, width = shape
    scale = boxes.new_tensor([width, height])
    middle = (boxes[..., :2] + boxes[..., 2:]) / 2 * scale
    cell = torch.minimum(middle.long(), scale.long() - 1).clamp(min=0)  # (batch, objects, 2): column, row
    spread = ((boxes[..., 2:] - boxes[..., :2]) * scale / 6).clamp(min=0.4)
    columns, rows = torch.arange(width, device=boxes.device), torch.arange(height, device=boxes.device)
    across = torch.exp(-(((columns - cell[..., :1]) / spread[..., :1]) ** 2) / 2)
    down = torch.exp(-(((rows - cell[..., 1:]) / spread[..., 1:]) ** 2) / 2)
    blobs = down[..., :, None] * across[..., None, :]  # (batch, objects, h, w)
    which = functional.one_hot(kinds, classes + 1)[..., 1:].to(blobs.dtype)  # (batch, objects, classes)
    heat = (blobs[:, :, None] * which[..., None, None]).amax(1)
    at = (cell + 0.5) / scale
    sides = torch.cat([at - boxes[..., :2], boxes[..., 2:] - at], -1).transpose(1, 2)
    return heat, cell[..., 1] * width + cell[..., 0], sides
