"""Layers of heads that quantise well: convolution, batch normalisation, ReLU; with int8 simulated where it is asked for.

A unit is trained as three layers and deployed as one convolution and one activation. Once `quantises` is set it computes
what the deployed int8 layer will: weights on a symmetric grid for each channel, activations on an 8-bit grid whose range
follows the batches, the normalisation folded into the weights with its running statistics.
"""

from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from split.bottleneck import BottleneckError
from split.gdn import GDN1, FoldedGDN1

Activation = Literal["relu", "prelu", "gdn"]

_WEIGHT_STEPS, _RANGE_STEPS = 127, 255
_MOMENTUM = 0.05  # of a range, for each batch
_SMALLEST = 1e-8


class ActivationRange(nn.Module):
    """Rounds to an 8-bit grid over the range that was seen; passes values on until `quantises` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.quantises = False
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))

    def get_extra_state(self) -> torch.Tensor:
        """Whether it quantises: part of the state, so that a loaded head is the one that was saved."""
        return torch.tensor(self.quantises)

    def set_extra_state(self, state: torch.Tensor) -> None:
        """As it was saved."""
        self.quantises = bool(state)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Values on the grid, the gradient of those within the range passed through."""
        if not self.quantises:
            return x
        if self.training:
            self._follow(x.detach())
        scale = torch.clamp((self.high - self.low) / _RANGE_STEPS, min=_SMALLEST)
        zero = torch.round(-self.low / scale).to(torch.int32)
        return torch.fake_quantize_per_tensor_affine(x.float(), scale, zero, 0, _RANGE_STEPS)

    def _follow(self, x: torch.Tensor) -> None:
        """Extremes of the batch, zero included, into the moving range; the first batch sets it."""
        low, high = x.amin().float().clamp(max=0), x.amax().float().clamp(min=0)
        fresh = self.high == self.low
        self.low.copy_(torch.where(fresh, low, self.low + _MOMENTUM * (low - self.low)))
        self.high.copy_(torch.where(fresh, high, self.high + _MOMENTUM * (high - self.high)))


class ConvUnit(nn.Module):
    """Convolution with padding k // 2, batch normalisation, activation; shape (batch, channels, height, width)."""

    def __init__(
        self, inputs: int, outputs: int, *, kernel: int, stride: int = 1, activation: Activation = "relu"
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.act = _activation(activation, outputs)
        self.range = ActivationRange()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The three layers, or what the int8 layer computes."""
        if not self.range.quantises:
            result: torch.Tensor = self.act(self.norm(self.conv(x)))
            return result
        weight, bias = self.folded()
        y = functional.conv2d(x, round_weights(weight), bias, self.conv.stride, self.conv.padding)
        quantised: torch.Tensor = self.range(self.act(y))
        return quantised

    def folded(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights and biases of the one convolution that convolution and normalisation are in evaluation."""
        assert self.norm.running_var is not None
        assert self.norm.running_mean is not None
        scale = self.norm.weight * torch.rsqrt(self.norm.running_var + self.norm.eps)
        return self.conv.weight * scale[:, None, None, None], self.norm.bias - self.norm.running_mean * scale


class LatentConv(nn.Module):
    """The last convolution of a head, with bias, its stride its kernel; its output is rounded, so only its weights need a grid."""

    def __init__(self, inputs: int, outputs: int, *, gain: float, kernel: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride=kernel)
        self.quantises = False
        with torch.no_grad():
            self.conv.weight.mul_(gain)
            self.conv.bias.zero_()

    def get_extra_state(self) -> torch.Tensor:
        """Whether it quantises."""
        return torch.tensor(self.quantises)

    def set_extra_state(self, state: torch.Tensor) -> None:
        """As it was saved."""
        self.quantises = bool(state)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The latent, not rounded."""
        weight = round_weights(self.conv.weight) if self.quantises else self.conv.weight
        return functional.conv2d(x, weight, self.conv.bias, self.conv.stride)


class DeployedConv(nn.Module):
    """One convolution and its activation, with constants; quantised ones export as QuantizeLinear, DequantizeLinear."""

    def __init__(self, trained: ConvUnit | LatentConv) -> None:
        super().__init__()
        unit = isinstance(trained, ConvUnit)
        weight, bias = trained.folded() if unit else (trained.conv.weight, trained.conv.bias)
        source = trained.conv
        self.conv = nn.Conv2d(
            source.in_channels, source.out_channels, source.kernel_size, source.stride, source.padding
        )
        self.conv.weight.data.copy_(weight.detach())
        self.conv.bias.data.copy_(bias.detach())
        act = trained.act if unit else nn.Identity()
        self.act: nn.Module = FoldedGDN1(act) if isinstance(act, GDN1) else act
        self.range: nn.Module = trained.range if unit else nn.Identity()
        self.quantises = trained.range.quantises if unit else trained.quantises
        self.eval().requires_grad_(requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The same as the unit in evaluation."""
        weight = round_weights(self.conv.weight) if self.quantises else self.conv.weight
        y = functional.conv2d(x, weight, self.conv.bias, self.conv.stride, self.conv.padding)
        result: torch.Tensor = self.range(self.act(y))
        return result


def _activation(kind: Activation, channels: int) -> nn.Module:
    if kind == "gdn":
        return GDN1(channels)
    return nn.ReLU() if kind == "relu" else nn.PReLU(channels)


def round_weights(weight: torch.Tensor) -> torch.Tensor:
    """Weights on a symmetric int8 grid for each output channel, the gradient passed through."""
    largest = weight.detach().abs().amax(dim=(1, 2, 3))
    scale = torch.clamp(largest / _WEIGHT_STEPS, min=_SMALLEST).float()
    if weight.is_cuda:  # the operator below waits for the GPU; the same numbers without that
        step = scale[:, None, None, None]
        grid = torch.clamp(torch.round(weight.float() * step.reciprocal()), -_WEIGHT_STEPS - 1, _WEIGHT_STEPS) * step
        return weight.float() + (grid - weight.float()).detach()
    zero = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight.float(), scale, zero, 0, -_WEIGHT_STEPS - 1, _WEIGHT_STEPS)


def quantise_units(encoder: nn.Module) -> None:
    """From now on an encoder's layers compute what their int8 forms will.

    Raises:
        BottleneckError: It has none of these layers.
    """
    units = [one for one in encoder.modules() if isinstance(one, ActivationRange | LatentConv)]
    if not units:
        raise BottleneckError(
            "Wanted an encoder whose layers can be trained for int8, found one without. Use the method slim."
        )
    for one in units:
        one.quantises = True
