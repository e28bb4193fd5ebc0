"""A prior of few parameters that follows a moving encoder within an epoch: mixtures of logistics for each channel.

As with the factorised prior, only training uses it; what is sent is coded with tables that are counted.
"""

import math

import torch
from torch import nn
from torch.nn import functional

from split.gdn import lower_bound

_COMPONENTS = 3
_PACE = 10.0  # parameters are stored divided by this, so that one learning rate serves them and the weights
_SCALES = (0.25, 1.0, 4.0)  # at the start, in steps of the latent
_LIKELIHOOD_BOUND = 1e-9


class LogisticPrior(nn.Module):
    """p(y) for each channel as a mixture of logistic distributions, integrated over one step.

    Source: Salimans et al. 2017 (arXiv:1701.05517), eq. 2, for latents instead of pixels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.weights = nn.Parameter(torch.zeros(channels, _COMPONENTS, 1))
        self.means = nn.Parameter(torch.zeros(channels, _COMPONENTS, 1))
        start = torch.tensor([math.log(one) / _PACE for one in _SCALES])
        self.log_scales = nn.Parameter(start[None, :, None].repeat(channels, 1, 1))

    def bits(self, y: torch.Tensor) -> torch.Tensor:
        """Cost of each value, in bits.

        Args:
            y: Latents, rounded or with noise, (batch, channels, height, width).

        Returns:
            float32, the same shape.
        """
        values = y.float().transpose(0, 1).reshape(self.channels, 1, -1)
        distance = (values - self.means * _PACE).abs()
        sharpness = torch.exp(-self.log_scales * _PACE)
        upper, lower = (0.5 - distance) * sharpness, (-0.5 - distance) * sharpness
        mass = torch.sigmoid(upper) - torch.sigmoid(lower)
        likelihood = (functional.softmax(self.weights * _PACE, 1) * mass).sum(1)
        bits = -torch.log2(lower_bound(likelihood, _LIKELIHOOD_BOUND))
        batch, channels, *rest = y.shape
        return bits.reshape(channels, batch, *rest).transpose(0, 1)
