"""A learned, fixed subset of places: one strided convolution, and only some of its outputs are sent.

Which places is learned and then a list of numbers in the head; the host puts a learned value where nothing came. For devices
on which nothing but one convolution runs.

Source: Huijben et al. 2020, Deep Probabilistic Subsampling (ICLR), for latents instead of samples: Gumbel noise on one logit for
each place, the best places kept.
"""

import copy

import torch
from torch import nn

from split.bottleneck import Bottleneck, BottleneckError, Coded, LatentGrid
from split.inject import CutLayer
from split.logistic_prior import LogisticPrior
from split.slim import check_form, slim_decoder
from split.slim_stages import PositionsOptions
from split.units import ActivationRange, ConvUnit, LatentConv, quantise_units

_GAIN = 8.0
_TINY = 1e-9
_SOFTNESS = 0.5  # of the choice, in logits


class Positions(Bottleneck):
    """The block for a layer; its latent is channels x kept places x 1 on the wire."""

    def __init__(self, layer: CutLayer, form: PositionsOptions) -> None:
        check_form(layer, form)
        if layer.front:
            raise BottleneckError(
                f"Wanted a head of one new convolution, found the first layers up to {layer.front.layer.name!r}. Leave front out."
            )
        step = layer.stride * form.shrink
        height, width = (-(-side // form.shrink) for side in layer.shape[1:])
        if not 1 <= form.kept <= height * width:
            raise BottleneckError(f"Wanted 1 to {height * width} kept places of {height} x {width}, found {form.kept}.")
        unit = ConvUnit(3, form.width, kernel=2 * step - 1, stride=step, activation=form.activation)
        encoder = nn.Sequential(ActivationRange(), unit, LatentConv(form.width, form.latent_channels, gain=_GAIN))
        super().__init__(encoder, slim_decoder(layer, form), stride=layer.stride)
        self.form, self.fixed_norm = form, form.fixed_norm
        self.prior = LogisticPrior(form.latent_channels)
        self.choice = nn.Parameter(torch.randn(height * width) * 0.01)
        self.absent = nn.Parameter(torch.zeros(form.latent_channels))
        self.kept, self.shape, self.straight = form.kept, (height, width), form.straight
        self.stream = form.stream

    def grid(self) -> LatentGrid:
        """Step 1 around zero."""
        return LatentGrid((1.0,) * self.prior.channels, (0.0,) * self.prior.channels)

    def code(self, latent: torch.Tensor) -> Coded:
        """Chosen places rounded or with noise, the others a learned value that costs nothing."""
        with torch.autocast(latent.device.type, enabled=False):
            latent = latent.float()
            free = self.training and not self.encoder_fixed
            mask = self._mask(free=free).reshape(1, 1, *self.shape)
            rounded = torch.clamp(torch.round(latent), -128, 127)
            noisy = latent + torch.rand_like(latent) - 0.5
            seen = (
                latent + (rounded - latent).detach() if free and self.straight else noisy if free else rounded.detach()
            )
            bits = (self.prior.bits(noisy if free else seen) * mask).sum()
            return Coded(seen * mask + self.absent[None, :, None, None] * (1 - mask), bits, bits.new_zeros(()))

    def places(self) -> torch.Tensor:
        """Row-major numbers of the kept places, rising, int64 (kept,)."""
        return self.choice.detach().topk(self.kept).indices.sort().values

    def fix_encoder(self) -> None:
        """Freeze encoder, prior and choice."""
        super().fix_encoder()
        self.prior.requires_grad_(requires_grad=False)
        self.choice.requires_grad_(requires_grad=False)

    def quantise_encoder(self) -> None:
        """From now on the encoder computes what its int8 form will."""
        quantise_units(self.encoder)

    def deployed_encoder(self) -> nn.Module:
        """Pictures to the latent's kept places, (batch, channels, kept, 1)."""
        return nn.Sequential(*copy.deepcopy(self.encoder), KeepPlaces(self.places(), len(self.choice)))

    def deployed_decoder(self) -> nn.Module:
        """Kept places to the target layer's output."""
        fill = PutPlaces(self.places(), self.absent.detach(), self.shape)
        return nn.Sequential(fill, *copy.deepcopy(self.decoder))

    def _mask(self, *, free: bool) -> torch.Tensor:
        """1 for kept places, 0 for others, (places,); while free with noise and a soft gradient."""
        if not free:
            return torch.zeros_like(self.choice).index_fill(0, self.places(), 1.0)
        uniform = torch.rand_like(self.choice).clamp(_TINY, 1 - 1e-6)
        noisy = self.choice - torch.log(-torch.log(uniform))
        edge = noisy.detach().topk(self.kept).values[-1]
        soft = torch.sigmoid((noisy - edge) / _SOFTNESS)
        return soft + ((noisy.detach() >= edge).float() - soft).detach()


class KeepPlaces(nn.Module):
    """(batch, channels, h, w) to (batch, channels, kept, 1); `count` is h * w."""

    def __init__(self, places: torch.Tensor, count: int) -> None:
        super().__init__()
        self.count = count
        self.register_buffer("places", places.clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Row-major order."""
        return x.flatten(2).index_select(2, self.places)[..., None]


class PutPlaces(nn.Module):
    """(batch, channels, kept, 1) to (batch, channels, h, w), a value for each channel elsewhere."""

    def __init__(self, places: torch.Tensor, absent: torch.Tensor, shape: tuple[int, int]) -> None:
        super().__init__()
        self.shape = shape
        count = shape[0] * shape[1]
        source = torch.full((count,), len(places))
        source[places] = torch.arange(len(places))
        self.register_buffer("source", source)  # which kept place, the last for none
        self.register_buffer("absent", absent.reshape(1, -1, 1).clone())

    def forward(self, kept: torch.Tensor) -> torch.Tensor:
        """A gather: the absent value is one more place."""
        flat = kept.flatten(2)
        more = torch.cat([flat, self.absent.expand(flat.shape[0], -1, -1)], 2)
        return more.index_select(2, self.source).unflatten(2, self.shape)
