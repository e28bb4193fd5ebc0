"""Three tails for one stream: classes, masks, boxes from the integers of one frozen head; and the same without a bottleneck.

A tail is a trunk (the host's part of the network, from integers or from pictures to feature maps) and a small head for its task.
"""

import copy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from split.augment import Augmentation, centre
from split.bottleneck import LatentGrid
from split.inject import SplitNetwork, Teacher
from split.scenes import SceneSet

Task = Literal["classes", "masks", "boxes"]

_SIZE_WEIGHT = 0.1  # of the boxes' size and place against their heat
_FIRST_HEAT = -2.0  # before the sigmoid: few places are centres
_BATCH = 128


@dataclass(frozen=True)
class TailOptions:
    """Form and training of a tail.

    Attributes:
        width: Channels of the task's head.
        epochs: Passes over the scenes.
        batch: Scenes for each step.
        lr: Of Adam at the start; half a cosine down.
        trunk_lr: Factor for the trunk, which starts trained.
        seed: Of weights and order.
        mixed_precision: bfloat16 on a GPU.
    """

    width: int = 64
    epochs: int = 15
    batch: int = 64
    lr: float = 2e-3
    trunk_lr: float = 0.3
    seed: int = 0
    mixed_precision: bool = True


class LatentTrunk(nn.Module):
    """int8 latents to feature maps: a copy of the bottleneck's decoder and the network's tail, to be trained."""

    def __init__(self, network: SplitNetwork, grid: LatentGrid) -> None:
        super().__init__()
        self.decoder = network.bottleneck.deployed_decoder()
        self.tail = copy.deepcopy(network.tail)
        self.requires_grad_(requires_grad=True)
        self.register_buffer("step", torch.tensor(grid.scale)[None, :, None, None])
        self.register_buffer("offset", torch.tensor(grid.offset)[None, :, None, None])

    def forward(self, latent: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """int8 (batch, channels, h, w) to the compared layers' outputs, the finest first."""
        target = self.decoder(latent.to(torch.float32) * self.step + self.offset)
        return (target, *self.tail(target)[1])


class PictureTrunk(nn.Module):
    """Pictures to the same feature maps: a copy of the whole network, to be trained."""

    def __init__(self, teacher: Teacher, view: Augmentation) -> None:
        super().__init__()
        self.graph = copy.deepcopy(teacher.graph).requires_grad_(requires_grad=True)
        self.view = view

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """uint8 (batch, 3, height, width)."""
        return tuple(self.graph(centre(images, self.view))[1])


class SceneTail(nn.Module):
    """A trunk and the head of one task.

    Args:
        trunk: Inputs to feature maps.
        example: A batch of inputs, to see the maps' channels.
        task: Which.
        classes: Of the objects, background not counted.
        options: Width.
    """

    def __init__(self, trunk: nn.Module, example: torch.Tensor, task: Task, classes: int, options: TailOptions) -> None:
        super().__init__()
        self.trunk, self.task, self.classes = trunk, task, classes
        trunk.eval()
        with torch.no_grad():
            channels = [one.shape[1] for one in trunk(example)]
        w = options.width
        outputs = {"classes": classes, "masks": classes + 1, "boxes": classes + 4}[task]
        self.sides = nn.ModuleList(nn.Conv2d(one, w, 1) for one in channels)
        self.joint = nn.Sequential(nn.Conv2d(w, w, 3, padding=1, bias=False), nn.BatchNorm2d(w), nn.ReLU())
        self.last = nn.Conv2d(w, outputs, 1)
        if task == "boxes":
            nn.init.constant_(self.last.bias[:classes], _FIRST_HEAT)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Logits: (batch, classes); (batch, classes + 1, h, w); heat and box (batch, classes + 4, h, w)."""
        maps = self.trunk(inputs)
        joined = self.sides[0](maps[0])
        for side, one in zip(self.sides[1:], maps[1:], strict=False):
            joined = joined + functional.interpolate(side(one), size=joined.shape[2:])
        found: torch.Tensor = self.last(self.joint(joined))
        return found.mean((2, 3)) if self.task == "classes" else found


def train_tail(tail: SceneTail, inputs: torch.Tensor, scenes: SceneSet, options: TailOptions) -> None:
    """Train a tail in place, on its inputs' device.

    Args:
        tail: New.
        inputs: int8 latents or uint8 pictures of the scenes, (n, channels, h, w).
        scenes: On the same device, in the same order.
        options: Training.
    """
    device = inputs.device
    tail.to(device).train()
    torch.manual_seed(options.seed)
    head = [one for name, one in tail.named_parameters() if not name.startswith("trunk.")]
    groups = [{"params": head}, {"params": list(tail.trunk.parameters()), "lr": options.lr * options.trunk_lr}]
    cuda = device.type == "cuda"
    optimiser = torch.optim.Adam(groups, lr=options.lr, fused=cuda or None)
    each = max(1, len(scenes) // options.batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, options.epochs * each)
    chance = torch.Generator().manual_seed(options.seed)
    for _ in range(options.epochs):
        order = torch.randperm(len(scenes), generator=chance).to(device)
        for rows in order.split(options.batch)[:each]:
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=cuda and options.mixed_precision):
                found = tail(inputs[rows])
            loss = _loss(tail, found.float(), scenes, rows)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
    tail.eval()


def run_tail(tail: SceneTail, inputs: torch.Tensor) -> torch.Tensor:
    """Outputs for all inputs, in evaluation."""
    with torch.no_grad():
        return torch.cat([tail(one).float() for one in inputs.split(_BATCH)])


def _loss(tail: SceneTail, found: torch.Tensor, scenes: SceneSet, rows: torch.Tensor) -> torch.Tensor:
    if tail.task == "classes":
        return functional.cross_entropy(found, scenes.labels[rows])
    if tail.task == "masks":
        masks = scenes.masks[rows].long()
        return functional.cross_entropy(functional.interpolate(found, size=masks.shape[1:], mode="bilinear"), masks)
    return _box_loss(found, scenes, rows, tail.classes)


def _box_loss(found: torch.Tensor, scenes: SceneSet, rows: torch.Tensor, classes: int) -> torch.Tensor:
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
