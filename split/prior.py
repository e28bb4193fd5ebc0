"""Factorised prior: one learned, non-parametric distribution for each latent channel; the rate term of training.

Only training uses it. What is sent is coded with integer tables that are counted on quantised latents
(`edge_runtime.entropy`), never with tables that floats made.
"""

import math
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

from split.gdn import lower_bound

_FILTERS = (1, 3, 3, 3, 3, 1)
_INITIAL_SCALE = 10.0
_TAIL_MASS = 1e-9
_LIKELIHOOD_BOUND = 1e-9
_SEARCH_RADIUS = 1e5
_SEARCH_STEPS = 60


class FactorisedPrior(nn.Module):
    """p(y) for each channel as the derivative of a learned monotone function.

    Parameters: matrices, biases and factors of a small network for each channel (filters 3, 3, 3, 3) and three
    quantiles, 1,464 numbers for 24 channels.

    Source: Balle et al. 2018 (arXiv:1802.01436), appendix 6.1.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        scale = _INITIAL_SCALE ** (1 / (len(_FILTERS) - 1))
        matrices, biases, factors = [], [], []
        for inputs, outputs in pairwise(_FILTERS):
            initial = math.log(math.expm1(1 / scale / outputs))
            matrices.append(nn.Parameter(torch.full((channels, outputs, inputs), initial)))
            biases.append(nn.Parameter(torch.empty(channels, outputs, 1).uniform_(-0.5, 0.5)))
            factors.append(nn.Parameter(torch.zeros(channels, outputs, 1)))
        self.matrices = nn.ParameterList(matrices)
        self.biases = nn.ParameterList(biases)
        self.factors = nn.ParameterList(factors[:-1])
        quantiles = torch.tensor([-_INITIAL_SCALE, 0.0, _INITIAL_SCALE])
        self.quantiles = nn.Parameter(quantiles.repeat(channels, 1, 1))
        tail = math.log(2 / _TAIL_MASS - 1)
        self.register_buffer("tails", torch.tensor([-tail, 0.0, tail]), persistent=False)

    @property
    def medians(self) -> torch.Tensor:
        """Centre of each channel, shape (channels,), detached: latents are rounded relative to it."""
        return self.quantiles[:, 0, 1].detach()

    def noisy(self, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents with uniform noise instead of rounding, and their cost.

        Args:
            y: Shape (batch, channels, height, width).

        Returns:
            Latents plus noise in [-0.5, 0.5], same shape; bits of the whole batch, scalar.
        """
        values = self._by_channel(y)
        values = values + torch.empty_like(values).uniform_(-0.5, 0.5)
        bits = self._bits(values)  # first: three gradients meet in `values`, and their order decides its last bits
        return self._restore(values, y), bits

    def rounded(self, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Rounded latents (without a gradient), and their cost under the prior; shapes as in `noisy`."""
        medians = self.medians[:, None, None]
        values = torch.round(self._by_channel(y).detach() - medians) + medians
        return self._restore(values, y), self._bits(values)

    def quantile_loss(self) -> torch.Tensor:
        """Distance of the stored quantiles from those of the distribution; moves the quantiles only."""
        return (self._cumulative(self.quantiles, fixed=True) - self.tails).abs().sum()

    def settle(self) -> None:
        """Set the medians to where the distribution has them (bisection); to be done once, before latents are rounded."""
        with torch.no_grad():
            low = torch.full((self.channels, 1, 1), -_SEARCH_RADIUS, device=self.quantiles.device)
            high = -low
            for _ in range(_SEARCH_STEPS):
                middle = (low + high) / 2
                below = self._cumulative(middle, fixed=True) < 0
                low, high = torch.where(below, middle, low), torch.where(below, high, middle)
            self.quantiles[:, :, 1:2] = (low + high) / 2

    def _bits(self, values: torch.Tensor) -> torch.Tensor:
        lower = self._cumulative(values - 0.5, fixed=False)
        upper = self._cumulative(values + 0.5, fixed=False)
        likelihood = torch.sigmoid(upper) - torch.sigmoid(lower)
        return -torch.log2(lower_bound(likelihood, _LIKELIHOOD_BOUND)).sum()

    def _cumulative(self, values: torch.Tensor, *, fixed: bool) -> torch.Tensor:
        """Logit of the cumulative distribution, shape (channels, 1, n); `fixed` keeps the network's parameters still."""
        for number, matrix in enumerate(self.matrices):
            bias = self.biases[number]
            factor = self.factors[number] if number < len(self.factors) else None
            if fixed:
                matrix, bias = matrix.detach(), bias.detach()
                factor = factor if factor is None else factor.detach()
            values = torch.matmul(functional.softplus(matrix), values) + bias
            if factor is not None:
                values = values + torch.tanh(factor) * torch.tanh(values)
        return values

    def _by_channel(self, y: torch.Tensor) -> torch.Tensor:
        return y.transpose(0, 1).reshape(self.channels, 1, -1).float()

    def _restore(self, values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        batch, channels, *rest = like.shape
        return values.reshape(channels, batch, *rest).transpose(0, 1).contiguous()
