"""A slim head: ReLU convolutions that quantise well, trained for the task and its bits together.

Against Entropic Student: no GDN on the device, a decoder that grows on the host instead, latents that may be coarser in
space, and above all an encoder that learns from the task and its rate together, not from features alone. With
`ProgressiveOptions` one stream serves several rates: any prefix of its layers decodes.

Sources: rate against task instead of against features, Singh et al. 2020 (arXiv:2007.11797); rounding in the decoder's path
and noise in the rate's, Minnen and Singh 2020 (arXiv:2007.08739); dropping what is last, Rippel et al. 2014
(arXiv:1402.0915); saliency, Furutanpey et al. 2023, FrankenSplit (arXiv:2302.10681).
"""

from itertools import pairwise

import torch
from torch import nn

from split.bottleneck import Bottleneck, BottleneckError, Coded, LatentGrid, StreamPlan
from split.inject import CutLayer, Front, check_front
from split.logistic_prior import LogisticPrior
from split.slim_stages import ProgressiveOptions, SlimOptions
from split.units import ActivationRange, ConvUnit, LatentConv, quantise_units

_STRIDES = (1, 2, 4, 8, 16)
_GAIN = 8.0  # of the last convolution at the start: latents of several steps, which the rate then presses together
_LOW, _HIGH = -128, 127


class Rounded(Bottleneck):
    """A block whose latents are rounded to whole numbers and cost what a prior says.

    In training with several layers each picture keeps a drawn prefix of them and pays for these alone, the more for a bit the
    shorter the prefix, so that each prefix is what a model of that rate would send.
    """

    def __init__(
        self, encoder: nn.Sequential, decoder: nn.Sequential, *, channels: int, stride: int, straight: bool = True
    ) -> None:
        super().__init__(encoder, decoder, stride=stride)
        self.straight = straight
        self.set_channels(channels)
        self.serve(StreamPlan())

    def set_channels(self, channels: int) -> None:
        """A new prior for so many channels."""
        self.prior = LogisticPrior(channels)

    def serve(self, stream: StreamPlan, *, price_step: float = 1.0, whole: float = 0.0) -> None:
        """Code the integers so; with several layers, how much dearer a bit is with each less, and the share that keeps all."""
        self.stream, self.whole = stream, whole
        device = next(self.prior.parameters()).device
        self.register_buffer("stops", torch.tensor(stream.layers, dtype=torch.int64, device=device), persistent=False)
        missing = torch.arange(len(stream.layers), 0, -1, dtype=torch.float32, device=device) - 1
        self.register_buffer("prices", price_step**missing, persistent=False)

    def grid(self) -> LatentGrid:
        """Step 1 around zero."""
        channels = self.prior.channels
        return LatentGrid((1.0,) * channels, (0.0,) * channels)

    def code(self, latent: torch.Tensor) -> Coded:
        """Rounded, or with noise."""
        with torch.autocast(latent.device.type, enabled=False):
            latent = latent.float()
            rounded = torch.clamp(torch.round(latent), _LOW, _HIGH)
            if self.training and not self.encoder_fixed:
                noisy = latent + torch.rand_like(latent) - 0.5
                seen = latent + (rounded - latent).detach() if self.straight else noisy
                bits = self.prior.bits(noisy)
            else:
                seen = rounded.detach()
                bits = self.prior.bits(seen)
            seen, bits = self.kept(seen, bits)
            return Coded(seen, bits.sum(), bits.new_zeros(()))

    def kept(self, seen: torch.Tensor, bits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """In training channels behind the drawn prefix are zero and cost nothing."""
        if not self.training or len(self.stops) < 2:
            return seen, bits
        keep, price = self._draw(seen)
        return seen * keep, bits * keep * price

    def _draw(self, latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """For each picture which channels stay, (batch, channels, 1, 1), and what a bit costs, (batch, 1, 1, 1)."""
        number = torch.randint(len(self.stops), (len(latent),), device=latent.device)
        if self.whole:
            all_of_them = torch.rand(len(latent), device=latent.device) < self.whole
            number = torch.where(all_of_them, len(self.stops) - 1, number)
        place = torch.arange(latent.shape[1], device=latent.device)
        keep = (place < self.stops[number][:, None]).float()[:, :, None, None]
        return keep, self.prices[number][:, None, None, None]

    def fix_encoder(self) -> None:
        """Freeze encoder and prior."""
        super().fix_encoder()
        self.prior.requires_grad_(requires_grad=False)

    def quantise_encoder(self) -> None:
        """From now on the encoder computes what its int8 form will."""
        quantise_units(self.encoder)


class Slim(Rounded):
    """The block for a layer."""

    def __init__(self, layer: CutLayer, form: SlimOptions) -> None:
        check_form(layer, form)
        encoder = slim_encoder(layer.stride, form, front=layer.front)
        decoder = slim_decoder(layer, form)
        super().__init__(encoder, decoder, channels=form.latent_channels, stride=layer.stride, straight=form.straight)
        self.form, self.fixed_norm = form, form.fixed_norm
        step, whole = (form.price_step, form.whole) if isinstance(form, ProgressiveOptions) else (1.0, 0.0)
        self.serve(form.stream, price_step=step, whole=whole)


class Residual(nn.Module):
    """x + conv(relu(conv(x))), normalised: the host has room for it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Same shape."""
        return torch.relu(x + self.body(x))


class Crop(nn.Module):
    """Cuts to a height and width: doubled odd sizes are one too large."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.height, self.width = height, width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, channels, at least height, at least width) to (batch, channels, height, width)."""
        return x[:, :, : self.height, : self.width]


def check_form(layer: CutLayer, form: SlimOptions) -> None:
    """Check what all forms of the block share.

    Raises:
        BottleneckError: A layer or sizes that make no block.
    """
    if layer.stride not in _STRIDES or form.shrink not in (1, 2, 4) or layer.stride * form.shrink < 2:
        raise BottleneckError(
            f"Wanted a layer of stride {_STRIDES} and a shrink of 1, 2 or 4, found stride {layer.stride} behind {layer.name!r} and "
            f"shrink {form.shrink}. Choose another layer."
        )
    if min(form.latent_channels, form.width, form.decoder_width) < 1 or min(form.depth, form.decoder_depth) < 0:
        raise BottleneckError(f"Wanted widths of at least 1 and depths of at least 0, found {form}.")
    if form.activation == "gdn" and form.int8:
        raise BottleneckError(
            "Wanted relu or prelu for a head that is trained for int8, found gdn, whose quotient has no int8 form. Leave int8 out."
        )
    check_front(layer, form.front)
    if layer.front and form.int8:
        raise BottleneckError(
            f"Wanted a head of new layers to train for int8, found the network's own up to {form.front!r}, which calibration pictures "
            "make int8 afterwards. Leave int8 out."
        )
    if layer.front and (layer.stride * form.shrink) % max(layer.front.layer.stride, 1):
        raise BottleneckError(
            f"Wanted first layers whose stride divides that of the latent, {layer.stride * form.shrink}, found stride "
            f"{layer.front.layer.stride} behind {layer.front.layer.name!r}. Choose another layer."
        )
    stops = form.stream.layers or (form.latent_channels,)
    if sorted(set(stops)) != list(stops) or stops[0] < 1 or stops[-1] != form.latent_channels:
        raise BottleneckError(
            f"Wanted rising channels at which layers end, the last one {form.latent_channels}, found {stops}."
        )


def slim_encoder(stride: int, form: SlimOptions, *, gain: float = _GAIN, front: Front | None = None) -> nn.Sequential:
    """Pictures to the latent before rounding; `gain` scales it at the start."""
    w = form.width
    if front:
        halvings = (stride * form.shrink // front.layer.stride).bit_length() - 1
        steps = [2] * halvings + [1] * form.depth
        widths = [front.layer.shape[0], *(2 * w for _ in steps)]
        units = [
            ConvUnit(a, b, kernel=3, stride=step, activation=form.activation)
            for (a, b), step in zip(pairwise(widths), steps, strict=True)
        ]
        return nn.Sequential(front.module, *units, LatentConv(widths[-1], form.latent_channels, gain=gain))
    halvings = (stride * form.shrink).bit_length() - 1
    modules: list[nn.Module] = [
        ActivationRange(),
        ConvUnit(3, w, kernel=5, stride=2, activation=form.activation),
    ]
    widths = [w] + [2 * w] * (halvings - 1)
    modules += [ConvUnit(a, b, kernel=3, stride=2, activation=form.activation) for a, b in pairwise(widths)]
    last = w if halvings == 1 else 2 * w
    modules += [ConvUnit(last, last, kernel=3, activation=form.activation) for _ in range(form.depth)]
    return nn.Sequential(*modules, LatentConv(last, form.latent_channels, gain=gain))


def slim_decoder(layer: CutLayer, form: SlimOptions) -> nn.Sequential:
    """The latent to the layer's output."""
    channels, height, width = layer.shape
    d = form.decoder_width
    modules: list[nn.Module] = [
        nn.Conv2d(form.latent_channels, d, 3, padding=1, bias=False),
        nn.BatchNorm2d(d),
        nn.ReLU(),
    ]
    for _ in range(form.shrink.bit_length() - 1):
        modules += [Residual(d), nn.Conv2d(d, 4 * d, 1, bias=False), nn.PixelShuffle(2), nn.BatchNorm2d(d), nn.ReLU()]
    modules += [Residual(d) for _ in range(form.decoder_depth)]
    if height % form.shrink or width % form.shrink:
        modules.append(Crop(height, width))
    return nn.Sequential(*modules, nn.Conv2d(d, channels, 1))
