"""From trained encoder to integers and back: int8 latents, the tables that code them, head and tail with integers between.

The head's graph ends in round, clip, cast; the tail's begins with the integers. What lies between is
`edge_runtime.entropy`: tables counted on the integers of calibration pictures.
"""

import copy
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from edge_runtime.entropy import CountOptions, TableSet, count_tables
from split.augment import Augmentation, centre
from split.bottleneck import Bottleneck, BottleneckError, LatentGrid, StreamPlan
from split.fold import fold
from split.inject import SplitNetwork
from split.training_data import PictureSet

I8 = npt.NDArray[np.int8]

LOW, HIGH = -128, 127
_BATCH = 64


class IntegerHead(nn.Module):
    """The device's half: pictures to int8 latents. Has no training-time parts; exports as it is."""

    def __init__(self, bottleneck: Bottleneck, grid: LatentGrid) -> None:
        super().__init__()
        self.encoder = fold(bottleneck.deployed_encoder()).eval().requires_grad_(requires_grad=False)
        self.register_buffer("step", torch.tensor(grid.scale)[None, :, None, None])
        self.register_buffer("offset", torch.tensor(grid.offset)[None, :, None, None])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalised pictures, float (batch, 3, height, width), to int8 (batch, channels, h, w)."""
        integers = torch.round((self.encoder(x) - self.offset) / self.step)
        return torch.clamp(integers, LOW, HIGH).to(torch.int8)


class IntegerTail(nn.Module):
    """The host's half: int8 latents to logits."""

    def __init__(self, network: SplitNetwork, grid: LatentGrid) -> None:
        super().__init__()
        self.decoder = fold(network.bottleneck.deployed_decoder()).eval().requires_grad_(requires_grad=False)
        self.tail = copy.deepcopy(network.tail).eval().requires_grad_(requires_grad=False)
        self.register_buffer("step", torch.tensor(grid.scale)[None, :, None, None])
        self.register_buffer("offset", torch.tensor(grid.offset)[None, :, None, None])

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        """int8 (batch, channels, h, w) to logits (batch, classes)."""
        target = self.decoder(latent.to(torch.float32) * self.step + self.offset)
        logits: torch.Tensor = self.tail(target)[0]
        return logits


def fit_grid(network: SplitNetwork, batches: Iterable[torch.Tensor]) -> LatentGrid:
    """The grid of a trained bottleneck.

    Args:
        network: With a trained bottleneck.
        batches: Normalised calibration pictures. Methods that train with a rate need none: their integers are what they
            were trained with, step 1. Otherwise one scale for all channels, so that the largest value is 127, or that of
            `Bottleneck.bits`.

    Raises:
        BottleneckError: No calibration pictures where they are needed, or latents that are all zero or not finite.
    """
    bottleneck = network.bottleneck
    trained = bottleneck.grid()
    if trained is not None:
        return trained
    largest, channels = 0.0, 0
    for latent in _latents(bottleneck, batches):
        largest, channels = max(largest, float(latent.abs().amax())), latent.shape[1]
    if not 0 < largest < float("inf"):
        raise BottleneckError(
            f"Wanted latents of calibration pictures, found a largest value of {largest}. Train first."
        )
    return LatentGrid((largest / (2 ** (bottleneck.bits - 1) - 1),) * channels, (0.0,) * channels)


def integer_latents(head: IntegerHead, batches: Iterable[torch.Tensor]) -> list[I8]:
    """One int8 latent, shape (1, channels, h, w), for each picture."""
    found: list[I8] = []
    device = head.step.device
    for batch in batches:
        with torch.no_grad():
            found += [one[np.newaxis] for one in head(batch.to(device)).cpu().numpy()]
    return found


def fit_tables(latents: Sequence[I8], plan: StreamPlan | None = None) -> TableSet:
    """Integer entropy tables counted on latents; fill value 0, the middle of the grid.

    Args:
        latents: From calibration pictures, not from those that are measured.
        plan: `Bottleneck.stream`, or another one; one layer and one table for each channel by default.

    Raises:
        TableError: No latents, or options that make no valid set.
    """
    plan = plan or StreamPlan()
    return count_tables(latents, CountOptions(layers=plan.layers, variants=plan.variants, block=plan.block))


def input_batches(data: PictureSet, options: Augmentation, *, batch: int = _BATCH) -> Iterable[torch.Tensor]:
    """All pictures in order, without chance, as normalised batches."""
    for first in range(0, len(data), batch):
        yield centre(data.images[first : first + batch], options)


def _latents(bottleneck: Bottleneck, batches: Iterable[torch.Tensor]) -> Iterable[torch.Tensor]:
    encoder = bottleneck.encoder.eval()
    device = next(encoder.parameters()).device
    for batch in batches:
        with torch.no_grad():
            latent = encoder(batch.to(device))
        yield latent
