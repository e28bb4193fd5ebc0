"""Entropic Student: GDN encoder, factorised prior, GDN decoder; trained for features and rate, then for the task.

Source: Matsubara et al. 2022, Supervised Compression for Resource-Constrained Edge Computing Systems
(arXiv:2108.11898), published geometry: ResNet-50, 24 latent channels, the block replaces everything up to `layer1`.
"""

from dataclasses import dataclass

import torch
from torch import nn

from split.bottleneck import Bottleneck, BottleneckError, Coded, LatentGrid, conv
from split.gdn import GDN1
from split.losses import TaskLoss
from split.prior import FactorisedPrior
from split.stages import Stage

BETAS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56)
# Target stride -> strides of the encoder's first two convolutions. Published: 4.
_STRIDES = {1: (1, 1), 2: (2, 1), 4: (2, 2), 8: (4, 2)}


@dataclass(frozen=True)
class EntropicOptions:
    """Size of the block.

    Attributes:
        latent_channels: b; published 24.
        stride: Of the target layer against the input; published 4, others change the geometry.
        encoder_channels: After the first and second convolution; (0, 0) for the published 4b and 2b.
    """

    latent_channels: int = 24
    stride: int = 4
    encoder_channels: tuple[int, int] = (0, 0)


class EntropicStudent(Bottleneck):
    """The block for a target of some channels; at 224 px, stride 4: latent 24 x 55 x 55, output 256 x 56 x 56."""

    def __init__(self, target_channels: int, options: EntropicOptions | None = None) -> None:
        options = options or EntropicOptions()
        if options.stride not in _STRIDES or options.latent_channels < 1 or target_channels < 1:
            raise BottleneckError(
                f"Wanted a stride of {sorted(_STRIDES)} and at least one channel, found stride {options.stride}, "
                f"{options.latent_channels} latent and {target_channels} target channels. Choose another layer."
            )
        b, t = options.latent_channels, target_channels
        wide, middle = options.encoder_channels[0] or 4 * b, options.encoder_channels[1] or 2 * b
        first, second = _STRIDES[options.stride]
        encoder = nn.Sequential(
            conv(3, wide, kernel=5, stride=first, padding=2),
            GDN1(wide),
            conv(wide, middle, kernel=5, stride=second, padding=2),
            GDN1(middle),
            conv(middle, b, kernel=2),
        )
        decoder = nn.Sequential(
            conv(b, 2 * t, kernel=2, padding=1),
            GDN1(2 * t, inverse=True),
            conv(2 * t, t, kernel=2),
            GDN1(t, inverse=True),
            conv(t, t, kernel=2, padding=1),
        )
        super().__init__(encoder, decoder, stride=options.stride)
        self.form = options
        self.prior = FactorisedPrior(b)

    def grid(self) -> LatentGrid:
        """Step 1 around the prior's medians."""
        medians = self.prior.medians.cpu().tolist()
        return LatentGrid((1.0,) * len(medians), tuple(medians))

    def code(self, latent: torch.Tensor) -> Coded:
        """Noise while the encoder trains; rounded, without a gradient, once it is fixed or in evaluation."""
        with torch.autocast("cuda", enabled=False):  # mixed precision exists there only
            noisy = self.training and not self.encoder_fixed
            coded, bits = self.prior.noisy(latent) if noisy else self.prior.rounded(latent)
            return Coded(coded, bits, self.prior.quantile_loss())

    def fix_encoder(self) -> None:
        """Freeze encoder and prior, the prior's medians where its distribution has them."""
        if not self.encoder_fixed:
            self.prior.settle()
        super().fix_encoder()
        self.prior.requires_grad_(requires_grad=False)


def entropic_stages(
    beta: float,
    *,
    epochs: tuple[int, int] = (10, 10),
    batches: tuple[int, int] = (64, 64),
    task: TaskLoss | None = None,
    lr: float = 1e-3,
) -> tuple[Stage, ...]:
    """The published recipe: features and rate with Adam, then the task with SGD behind a fixed encoder.

    Args:
        beta: Weight of the batch's bits against the summed squared errors; not transferable between geometries.
        epochs: Of the two stages; milestones keep their places in proportion (5 and 8 of 10, 5 of 10).
        batches: Of the two stages; the first paper's configuration has 128 in the second.
        task: Loss of the second stage; published: half cross entropy, half distillation at temperature 1.
        lr: Learning rate of the second stage.
    """
    if not beta >= 0:
        raise BottleneckError(f"Wanted a beta of at least 0, found {beta}. The paper used {BETAS[0]} to {BETAS[-1]}.")
    first = Stage("features", epochs[0], batches[0], optimiser="adam", lr=1e-3, milestones=(0.5, 0.8), beta=beta)
    second = Stage(
        "task",
        epochs[1],
        batches[1],
        optimiser="sgd",
        lr=lr,
        milestones=(0.5,),
        task=task or TaskLoss(),
        fixes_encoder=True,
    )
    return (first, second)
