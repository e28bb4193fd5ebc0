"""Three tails for one stream: classes, masks, boxes from the integers of one frozen head; and the same without a bottleneck.

A tail is a trunk (the host's part of the network, from integers or from pictures to feature maps) and a small head for its task.
"""

import copy
from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import nn
from torch.nn import functional

from split.augment import Augmentation, centre
from split.bottleneck import LatentGrid
from split.inject import SplitNetwork, Teacher

Task = Literal["classes", "masks", "boxes"]
TASKS: tuple[Task, ...] = get_args(Task)

_FIRST_HEAT = -2.0  # before the sigmoid: few places are centres
_BATCH = 128

Maps = tuple[torch.Tensor, ...]


class LatentTrunk(nn.Module):
    """int8 latents to feature maps: a copy of the bottleneck's decoder and the network's tail, to be trained."""

    def __init__(self, network: SplitNetwork, grid: LatentGrid) -> None:
        super().__init__()
        self.decoder = network.bottleneck.deployed_decoder()
        self.tail = copy.deepcopy(network.tail)
        self.requires_grad_(requires_grad=True)
        self.register_buffer("step", torch.tensor(grid.scale)[None, :, None, None])
        self.register_buffer("offset", torch.tensor(grid.offset)[None, :, None, None])

    def forward(self, latent: torch.Tensor) -> Maps:
        """int8 (batch, channels, h, w) to the compared layers' outputs, the finest first."""
        target = self.decoder(latent.to(torch.float32) * self.step + self.offset)
        return (target, *self.tail(target)[1])


class PictureTrunk(nn.Module):
    """Pictures to the same feature maps: a copy of the whole network, to be trained."""

    def __init__(self, teacher: Teacher, view: Augmentation) -> None:
        super().__init__()
        self.graph = copy.deepcopy(teacher.graph).requires_grad_(requires_grad=True)
        self.view = Normalised(view)

    def forward(self, images: torch.Tensor) -> Maps:
        """uint8 (batch, 3, height, width)."""
        return tuple(self.graph(self.view(images))[1])

    def copied(self) -> "PictureTrunk":
        """Another one with the same weights."""
        return copy.deepcopy(self)


class CodedTrunk(nn.Module):
    """Pictures through a bottleneck that learns, to the same feature maps and the bits of its latents."""

    def __init__(self, network: SplitNetwork, view: Augmentation) -> None:
        super().__init__()
        self.network = network
        self.view = Normalised(view)

    def forward(self, images: torch.Tensor) -> Maps:
        """uint8 (batch, 3, height, width)."""
        return self.coded(images)[0]

    def coded(self, images: torch.Tensor) -> tuple[Maps, torch.Tensor]:
        """Feature maps, and bits of the batch."""
        found = self.network(self.view(images))
        return found.features, found.coded.bits + found.coded.auxiliary


class Normalised(nn.Module):
    """uint8 pictures of the view's size or larger to normalised ones; the constants lie on the device."""

    def __init__(self, view: Augmentation) -> None:
        super().__init__()
        self.options = view
        for name in ("mean", "std"):
            values = 255 * torch.tensor(getattr(view, name))[:, None, None]
            self.register_buffer(name, values, persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(batch, 3, height, width) to float (batch, 3, size, size)."""
        if images.shape[2:] != (self.options.size, self.options.size):
            return centre(images, self.options)
        return (images.float() - self.mean) / self.std


class TaskHead(nn.Module):
    """Feature maps to what one task wants to know.

    Args:
        channels: Of each map, the finest first.
        task: Which.
        classes: Of the objects, background not counted.
        width: Channels of its own.
    """

    def __init__(self, channels: tuple[int, ...], task: Task, classes: int, *, width: int) -> None:
        super().__init__()
        self.task, self.classes = task, classes
        outputs = {"classes": classes, "masks": classes + 1, "boxes": classes + 4}[task]
        self.sides = nn.ModuleList(nn.Conv2d(one, width, 1) for one in channels)
        self.joint = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.last = nn.Conv2d(width, outputs, 1)
        if task == "boxes":
            assert self.last.bias is not None
            nn.init.constant_(self.last.bias[:classes], _FIRST_HEAT)

    def forward(self, maps: Maps) -> torch.Tensor:
        """Logits: (batch, classes); (batch, classes + 1, h, w); heat and box (batch, classes + 4, h, w)."""
        joined = self.sides[0](maps[0])
        for side, one in zip(self.sides[1:], maps[1:], strict=False):
            joined = joined + functional.interpolate(side(one), size=joined.shape[2:])
        found: torch.Tensor = self.last(self.joint(joined))
        return found.mean((2, 3)) if self.task == "classes" else found


class SceneTail(nn.Module):
    """A trunk and the head of one task."""

    def __init__(self, trunk: nn.Module, head: TaskHead) -> None:
        super().__init__()
        self.trunk, self.head = trunk, head
        self.task, self.classes = head.task, head.classes

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """What the trunk takes, to the head's logits."""
        found: torch.Tensor = self.head(self.trunk(inputs))
        return found


class TaskTails(nn.Module):
    """Several tails behind one frame: each computes its own answer."""

    def __init__(self, tails: Mapping[str, SceneTail]) -> None:
        super().__init__()
        self.names = tuple(tails)
        self.tails = nn.ModuleList(tails.values())

    def forward(self, latent: torch.Tensor) -> Maps:
        """int8 (batch, channels, h, w) to one tensor for each tail, in their order."""
        return tuple(one(latent) for one in self.tails)


def make_head(trunk: nn.Module, example: torch.Tensor, task: Task, classes: int, *, width: int = 64) -> TaskHead:
    """A new head for a trunk's feature maps.

    Args:
        trunk: Inputs to feature maps.
        example: A batch of its inputs.
        task: Which.
        classes: Of the objects, background not counted.
        width: Channels of its own.
    """
    was_training = trunk.training
    trunk.eval()
    with torch.no_grad():
        channels = tuple(one.shape[1] for one in trunk(example))
    trunk.train(was_training)
    return TaskHead(channels, task, classes, width=width)


def run_tail(tail: SceneTail, inputs: torch.Tensor) -> torch.Tensor:
    """Outputs for all inputs, in evaluation."""
    tail.eval()
    with torch.no_grad():
        return torch.cat([tail(one).float() for one in inputs.split(_BATCH)])
