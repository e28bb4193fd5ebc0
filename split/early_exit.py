"""An exit on the latent: a small classifier that runs on the device behind the head and answers where it is sure.

It is trained on the integers of a finished head, so that head and tails stay what they are. Few pictures make a network sure of
wrong answers, each in its own way: an exit is therefore several small networks, whose logits are averaged.

Source: Lakshminarayanan et al. 2017 (arXiv:1612.01474).
"""

import copy
from dataclasses import dataclass, replace

import torch
from torch import nn

from split.augment import Augmentation, augment, centre, draw, mirrored, without_chance
from split.fold import fold
from split.latents import IntegerHead
from split.losses import TASK, TaskLoss, task_loss
from split.training_data import PictureSet
from split.units import ConvUnit

_BATCH_OF_LATENTS = 256
_PLAIN_VIEWS = 2  # the centre and its mirror image


@dataclass(frozen=True)
class ExitOptions:
    """Form and training of an exit.

    Attributes:
        width: Channels of its convolutions.
        depth: Of these 3x3 convolutions.
        members: Networks of this form.
        views: Of each picture to learn from: the centre, its mirror image, then others at random.
        epochs: Passes over the pictures, each in one of its views.
        batch: Pictures for each step.
        lr: Of Adam at the start; half a cosine down.
        seed: Of weights and order.
        task: Loss; the teacher is the tail.
    """

    width: int = 64
    depth: int = 2
    members: int = 2
    views: int = 3
    epochs: int = 20
    batch: int = 64
    lr: float = 2e-3
    seed: int = 0
    task: TaskLoss = TASK


class ExitClassifier(nn.Module):
    """int8 latents, (batch, channels, h, w), to logits, (batch, classes)."""

    def __init__(self, channels: int, classes: int, options: ExitOptions) -> None:
        super().__init__()
        self.classes = classes
        self.members = nn.ModuleList(_Member(channels, classes, options) for _ in range(options.members))

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        """The mean of what the members say."""
        real = latent.to(torch.float32)
        return torch.stack([member(real) for member in self.members]).mean(0)


class _Member(nn.Module):
    """Real latents to logits."""

    def __init__(self, channels: int, classes: int, options: ExitOptions) -> None:
        super().__init__()
        w = options.width
        units = [ConvUnit(channels if not number else w, w, kernel=3) for number in range(options.depth)]
        self.body = nn.Sequential(*units)
        self.last = nn.Linear(w if options.depth else channels, classes)

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        """Convolutions, mean over the places, one linear layer."""
        logits: torch.Tensor = self.last(self.body(latent).mean((2, 3)))
        return logits


class HeadWithExit(nn.Module):
    """What a device with an exit runs: pictures to (int8 latents, logits of the exit)."""

    def __init__(self, head: IntegerHead, leaving: ExitClassifier) -> None:
        super().__init__()
        self.head = head
        self.leaving = fold(copy.deepcopy(leaving)).eval().requires_grad_(requires_grad=False)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalised pictures, float (batch, 3, height, width)."""
        latent = self.head(x)
        return latent, self.leaving(latent)


def train_exit(
    head: nn.Module, tail: nn.Module, data: PictureSet, options: ExitOptions, view: Augmentation
) -> ExitClassifier:
    """Train an exit on a head's integers; head and tail are run once for each view of a picture.

    Args:
        head: Finished: `IntegerHead`, or the quantised one; normalised pictures to int8 latents.
        tail: The teacher: latents to logits.
        data: Training pictures.
        options: Form and training.
        view: How pictures are varied from the third view on; the first two have its size and normalisation alone.

    Returns:
        The exit in evaluation mode, on the head's device.
    """
    latents, answers = _views(head, tail, data, view, options)
    labels = data.labels.to(latents.device)
    torch.manual_seed(options.seed)
    leaving = ExitClassifier(latents.shape[2], answers.shape[2], options)
    leaving.to(latents.device).train()
    for number, member in enumerate(leaving.members):
        _train_member(member, (latents, answers, labels), options, seed=options.seed + number)
    leaving.eval()
    return leaving


def _train_member(
    member: nn.Module, known: tuple[torch.Tensor, torch.Tensor, torch.Tensor], options: ExitOptions, *, seed: int
) -> None:
    """Train one network on latents and the tail's answers, (views, n, ...) each, and labels."""
    latents, answers, labels = known
    device = latents.device
    optimiser = torch.optim.Adam(member.parameters(), lr=options.lr)
    each = max(1, len(labels) // options.batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, options.epochs * each)
    chance = torch.Generator().manual_seed(seed)
    for _ in range(options.epochs):
        order = torch.randperm(len(labels), generator=chance)
        for some in order.split(options.batch)[:each]:
            views = torch.randint(len(latents), (len(some),), generator=chance).to(device)
            rows = some.to(device)
            logits = member(latents[views, rows].to(torch.float32))
            loss = task_loss(logits, answers[views, rows], labels[rows], options.task)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()


def _views(
    head: nn.Module, tail: nn.Module, data: PictureSet, view: Augmentation, options: ExitOptions
) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents and the tail's logits of each view of all pictures, (views, n, ...)."""
    device = _device(head)
    latents, answers = [], []
    mirror = replace(without_chance(view), kind="flip")
    with torch.no_grad():
        for number in range(options.views):
            for chunk, images in enumerate(data.images.split(_BATCH_OF_LATENTS)):
                count = len(images)
                if number < _PLAIN_VIEWS:
                    x = augment(images.to(device), mirror, mirrored(count, flip=number == 1))
                else:
                    x = augment(images.to(device), view, draw(count, options.seed + 1_000_000 * number + chunk))
                latents.append(head(x))
                answers.append(tail(latents[-1]))
    found = (torch.cat(one) for one in (latents, answers))
    first, second = (one.view(options.views, len(data), *one.shape[1:]) for one in found)
    return first, second


def exit_and_tail_logits(
    head: nn.Module, tail: nn.Module, leaving: ExitClassifier, data: PictureSet, view: Augmentation
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of both for all pictures, (n, classes) each, in the main memory: for `split.exit_policy`."""
    device = _device(head)
    early, late = [], []
    with torch.no_grad():
        for images in data.images.split(_BATCH_OF_LATENTS):
            latent = head(centre(images.to(device), view))
            early.append(leaving(latent).float().cpu())
            late.append(tail(latent).float().cpu())
    return torch.cat(early), torch.cat(late)


def _device(head: nn.Module) -> torch.device:
    """Where a head runs: the CPU for one without buffers, that is on another engine."""
    return next((one.device for one in head.buffers()), torch.device("cpu"))
