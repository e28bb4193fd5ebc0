"""What every learned bottleneck is to the rest: an encoder for the device, a decoder for the host, a rate."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import fx, nn

from device_profiles.errors import EdgeError


class BottleneckError(EdgeError):
    """Options that make no bottleneck, or a layer or input that it does not fit."""


class Coded(NamedTuple):
    """What the decoder sees, and what it cost."""

    latent: torch.Tensor  # (batch, channels, height, width)
    bits: torch.Tensor  # of the whole batch, scalar; 0 where the method has no rate term
    auxiliary: torch.Tensor  # scalar loss of the rate model's own parameters


@dataclass(frozen=True)
class LatentGrid:
    """How real latents stand for integers: latent = offset + scale * integer.

    Attributes:
        scale: One for each channel, > 0.
        offset: One for each channel.
    """

    scale: tuple[float, ...]
    offset: tuple[float, ...]


@dataclass(frozen=True)
class StreamPlan:
    """How the integers of a latent are coded, as `split.latents.fit_tables` takes it.

    Attributes:
        layers: Channels at which a layer of the stream ends, rising; empty for one layer. Any prefix of layers decodes.
        variants: Tables that a block may choose from; 1 for one table for each channel.
        block: Positions that share a choice, a multiple of 32; 0 without variants.
    """

    layers: tuple[int, ...] = ()
    variants: int = 1
    block: int = 0


class Bottleneck(nn.Module):
    """Encoder and decoder around a latent.

    Attributes:
        encoder: Runs on the device; (batch, 3, height, width) to the latent.
        decoder: Runs on the host; the latent to the target layer's output.
        stride: Input pixels for each pixel of the target layer.
        encoder_fixed: The encoder is trained and stays as it is: latents are coded as they will be sent.
        stream: How its integers are coded.
        bits: Of each integer, where calibration pictures decide their grid.
        form: Its options, which tell one run of training from another.
        fits: How many training pictures `fit` wants; 0 for a method without.
        fixed_norm: Batch normalisations that come trained keep their statistics in training.
    """

    def __init__(self, encoder: nn.Sequential, decoder: nn.Sequential, *, stride: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.stride = stride
        self.encoder_fixed = False
        self.stream = StreamPlan()
        self.bits = 8
        self.form: object = None
        self.fits = 0
        self.fixed_norm = False

    def fit(self, batches: Iterable[torch.Tensor], tail: nn.Module) -> None:
        """Compute before training what pictures alone decide: nothing here.

        Args:
            batches: Normalised pictures, (batch, 3, height, width).
            tail: The target layer's output to (logits, ...), as it was trained.
        """

    def grid(self) -> LatentGrid | None:
        """The grid of the integers that it was trained with; null where calibration pictures decide."""
        return None

    def deployed_encoder(self) -> nn.Module:
        """What the device runs: pictures to values that the grid makes integers. A copy."""
        return copy.deepcopy(self.encoder)

    def deployed_decoder(self) -> nn.Module:
        """What the host runs on the values that the grid makes of integers. A copy."""
        return copy.deepcopy(self.decoder)

    def kept_layers(self) -> Iterable[nn.Module]:
        """The network's own first layers, where the encoder keeps them."""
        return (part for part in self.encoder if isinstance(part, fx.GraphModule))

    def pretrained(self) -> Iterable[nn.Parameter]:
        """Those that start trained: of the kept layers."""
        return (one for part in self.kept_layers() for one in part.parameters())

    def untrained(self) -> Iterable[nn.Parameter]:
        """All others."""
        known = {id(one) for one in self.pretrained()}
        return (one for one in self.parameters() if id(one) not in known)

    def code(self, latent: torch.Tensor) -> Coded:
        """The latent as the decoder will see it."""
        zero = latent.new_zeros((), dtype=torch.float32)
        return Coded(latent, zero, zero)

    def fix_encoder(self) -> None:
        """Freeze the encoder: no gradients, and normalisation as on the device."""
        self.encoder_fixed = True
        self.encoder.requires_grad_(requires_grad=False)
        self.encoder.eval()

    def quantise_encoder(self) -> None:
        """From now on the encoder computes what its int8 form will.

        Raises:
            BottleneckError: This method's encoder cannot.
        """
        raise BottleneckError(
            f"Wanted an encoder that can be trained for int8, found {type(self).__name__}. Use the method slim."
        )

    def train(self, mode: bool = True) -> "Bottleneck":
        """Training mode for everything but a fixed encoder."""
        super().train(mode)
        if self.encoder_fixed:
            self.encoder.eval()
        return self

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, Coded]:
        """The target layer's output, and what crossed the cut."""
        coded = self.code(self.encoder(x))
        return self.decoder(coded.latent), coded


def conv(inputs: int, outputs: int, *, kernel: int, stride: int = 1, padding: int = 0) -> nn.Conv2d:
    """A convolution without bias, as all of both papers are."""
    return nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=padding, bias=False)
