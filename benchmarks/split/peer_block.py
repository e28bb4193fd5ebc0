"""sc2bench's own blocks, unmodified, as bottlenecks of headtail's training loop: equal teacher, data, steps and seeds.

Where each tensor goes is sc2bench's: noise and likelihoods from its own forward pass in training, rounded latents behind
`update()` in the second stage, and its own strings in evaluation. That the loop takes the same steps as a plain one of the
published recipe is what row `es_steps` shows.
"""

from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.split.peer_child import import_sc2bench
from split.bottleneck import Bottleneck, Coded


class PeerBlock(Bottleneck):
    """FPBasedResNetBottleneck or MSHPBasedResNetBottleneck for a target at stride 4."""

    def __init__(self, name: str, target_channels: int, latent_channels: int = 24) -> None:
        block = getattr(import_sc2bench(), name)(
            num_bottleneck_channels=latent_channels, num_target_channels=target_channels
        )
        factorised = hasattr(block, "encoder")
        super().__init__(
            block.encoder if factorised else block.g_a, block.decoder if factorised else block.g_s, stride=4
        )
        self.block: Any = block
        self.hyper = None if factorised else nn.ModuleList([block.h_a, block.h_s])

    def code(self, latent: torch.Tensor) -> Coded:
        """As the block's own forward pass does it, with the likelihoods kept."""
        with torch.autocast(latent.device.type, enabled=False):
            latent = latent.float()
            fixed = self.encoder_fixed or not self.training
            if self.hyper is None:
                model = self.block.entropy_bottleneck
                seen, likelihood = model(latent, training=not fixed)
                bits = -torch.log2(likelihood).sum()
            else:
                model = self.block.entropy_bottleneck
                z, z_likelihood = model(self.block.h_a(latent), training=not fixed)
                scales, means = self.block.h_s(z).chunk(2, 1)
                seen, likelihood = self.block.gaussian_conditional(latent, scales, means=means, training=not fixed)
                bits = -torch.log2(likelihood).sum() - torch.log2(z_likelihood).sum()
            return Coded(seen.detach() if fixed else seen, bits, model.loss())

    def fix_encoder(self) -> None:
        """The second stage of its recipe: everything up to the strings is frozen."""
        super().fix_encoder()
        self.block.entropy_bottleneck.requires_grad_(requires_grad=False)
        if self.hyper is not None:
            self.hyper.requires_grad_(requires_grad=False)

    def integers(self, x: torch.Tensor) -> np.ndarray:
        """What its strings hold, int8 (n, channels, h, w): latents of the factorised form, less their medians."""
        with torch.no_grad():
            latent = self.encoder(x)
            medians = self.block.entropy_bottleneck._get_medians().reshape(1, -1, 1, 1)
            symbols = torch.clamp(torch.round(latent - medians), -128, 127)
        return symbols.to(torch.int8).numpy()

    def strings(self, x: torch.Tensor) -> tuple[list[list[bytes]], torch.Tensor]:
        """For each picture its strings, and the target that the block decodes from them; on the CPU."""
        block = self.block
        block.update(force=True)
        found = block.encode(x)
        target = block.decode(**found)
        return [list(one) for one in zip(*found["strings"], strict=True)], target
