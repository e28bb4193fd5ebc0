"""Simplified generalised divisive normalisation (GDN1) with the parametrisation that keeps its parameters positive.

The stored parameters are square roots plus an offset, as in Balle et al., and named like those of the common PyTorch
implementations (`beta`, `gamma`), so that weights can be copied both ways.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional

_OFFSET = 2.0**-18  # keeps the gradient of the square away from zero
_BETA_MINIMUM = 1e-6
_GAMMA_INITIAL = 0.1


class _LowerBound(torch.autograd.Function):
    """max(x, bound) whose gradient still moves values that lie below the bound upwards."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, bound: float) -> torch.Tensor:  # noqa: ANN401 - torch's own context object
        """Clamp from below."""
        ctx.save_for_backward(x)
        ctx.bound = bound
        return torch.clamp(x, min=bound)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:  # noqa: ANN401
        """Pass where x is above the bound or the step would raise it."""
        (x,) = ctx.saved_tensors
        return gradient * ((x >= ctx.bound) | (gradient < 0)), None


def lower_bound(x: torch.Tensor, bound: float) -> torch.Tensor:
    """max(x, bound), with the gradient of the identity where a step would raise x."""
    result: torch.Tensor = _LowerBound.apply(x, bound)
    return result


class GDN1(nn.Module):
    """y = x / (beta + sum over j of gamma_ij |x_j|); the inverse multiplies instead.

    Args:
        channels: Of the input, shape (batch, channels, height, width).
        inverse: Multiply by the norm instead of dividing by it (decoder).

    Source: Johnston et al. 2019 (arXiv:1912.08771), section 3; parametrisation: Balle et al. 2016 (arXiv:1511.06281).
    """

    def __init__(self, channels: int, *, inverse: bool = False) -> None:
        super().__init__()
        self.inverse = inverse
        pedestal = _OFFSET**2
        self.beta = nn.Parameter(torch.sqrt(torch.ones(channels) + pedestal))
        self.gamma = nn.Parameter(torch.sqrt(_GAMMA_INITIAL * torch.eye(channels) + pedestal))

    def folded(self) -> tuple[torch.Tensor, torch.Tensor]:
        """gamma, shape (channels, channels, 1, 1), and beta, shape (channels,), as they enter the sum."""
        pedestal = _OFFSET**2
        beta = lower_bound(self.beta, (_BETA_MINIMUM + pedestal) ** 0.5) ** 2 - pedestal
        gamma = lower_bound(self.gamma, _OFFSET) ** 2 - pedestal
        return gamma[:, :, None, None], beta

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise x, shape (batch, channels, height, width)."""
        gamma, beta = self.folded()
        return _normalise(x, functional.conv2d(torch.abs(x), gamma, beta), inverse=self.inverse)


class FoldedGDN1(nn.Module):
    """A trained GDN1 with constants in place of its parametrisation: exports to Abs, Conv, Reciprocal, Mul."""

    def __init__(self, trained: GDN1) -> None:
        super().__init__()
        gamma, beta = trained.folded()
        self.inverse = trained.inverse
        self.norm = nn.Conv2d(gamma.shape[1], gamma.shape[0], 1)
        self.norm.weight.data.copy_(gamma.detach())
        self.norm.bias.data.copy_(beta.detach())
        self.requires_grad_(requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The same as the layer it was made from."""
        return _normalise(x, self.norm(torch.abs(x)), inverse=self.inverse)


def _normalise(x: torch.Tensor, norm: torch.Tensor, *, inverse: bool) -> torch.Tensor:
    return x * norm if inverse else x * torch.reciprocal(norm)
