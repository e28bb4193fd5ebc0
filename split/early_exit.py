"""An exit on the latent: a small classifier that runs on the device behind the head and answers where it is sure.

It is trained on the integers of a finished head, so that head and tails stay what they are.
"""

import copy
from dataclasses import dataclass

import torch
from torch import nn

from split.augment import Augmentation, augment, centre, mirrored
from split.fold import fold
from split.latents import IntegerHead
from split.losses import TASK, TaskLoss, task_loss
from split.training_data import PictureSet
from split.units import ConvUnit

_BATCH_OF_LATENTS = 256


@dataclass(frozen=True)
class ExitOptions:
    """Form and training of an exit.

    Attributes:
        width: Channels of its convolutions.
        depth: Of these 3x3 convolutions.
        epochs: Passes over the latents, mirrored pictures included.
        batch: Pictures for each step.
        lr: Of Adam at the start; half a cosine down.
        seed: Of weights and order.
        task: Loss; the teacher is the tail.
    """

    width: int = 64
    depth: int = 2
    epochs: int = 20
    batch: int = 64
    lr: float = 2e-3
    seed: int = 0
    task: TaskLoss = TASK


class ExitClassifier(nn.Module):
    """int8 latents, (batch, channels, h, w), to logits, (batch, classes)."""

    def __init__(self, channels: int, classes: int, options: ExitOptions) -> None:
        super().__init__()
        w = options.width
        units = [ConvUnit(channels if not number else w, w, kernel=3) for number in range(options.depth)]
        self.body = nn.Sequential(*units)
        self.last = nn.Linear(w if options.depth else channels, classes)

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        """Convolutions, mean over the places, one linear layer."""
        logits: torch.Tensor = self.last(self.body(latent.to(torch.float32)).mean((2, 3)))
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
    """Train an exit on a head's integers; head and tail are run once for each picture and its mirror image.

    Args:
        head: Finished: `IntegerHead`, or the quantised one; normalised pictures to int8 latents.
        tail: The teacher: latents to logits.
        data: Training pictures.
        options: Form and training.
        view: Size and normalisation of the pictures.

    Returns:
        The exit in evaluation mode, on the head's device.
    """
    latents, answers = _views(head, tail, data, view)
    labels = data.labels.to(latents.device).repeat(2)
    torch.manual_seed(options.seed)
    leaving = ExitClassifier(latents.shape[1], answers.shape[1], options)
    leaving.to(latents.device).train()
    optimiser = torch.optim.Adam(leaving.parameters(), lr=options.lr)
    each = max(1, len(labels) // 2 // options.batch)  # an epoch shows each picture once, mirrored or not
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, options.epochs * each)
    order_of = torch.Generator().manual_seed(options.seed)
    for _ in range(options.epochs):
        order = torch.randperm(len(labels), generator=order_of).to(latents.device)
        for rows in order.split(options.batch)[:each]:
            loss = task_loss(leaving(latents[rows]), answers[rows], labels[rows], options.task)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
    leaving.eval()
    return leaving


def _views(head: nn.Module, tail: nn.Module, data: PictureSet, view: Augmentation) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents and the tail's logits of all pictures, then of their mirror images."""
    device = _device(head)
    latents, answers = [], []
    plain = Augmentation(view.size, "flip", 0, view.mean, view.std)
    with torch.no_grad():
        for flip in (False, True):
            for images in data.images.split(_BATCH_OF_LATENTS):
                draws = mirrored(len(images), flip=flip)
                latents.append(head(augment(images.to(device), plain, draws)))
                answers.append(tail(latents[-1]))
    return torch.cat(latents), torch.cat(answers)


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
