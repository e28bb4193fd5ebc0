"""A bottleneck without training: kept layers, then the Karhunen-Loeve transform of their output, weighted by the task.

The head keeps the network's own layers up to the cut and adds one convolution, whose outputs are principal components of what
these layers make of some pictures; a convolution on the host turns them back. What a component does to the logits decides its
scale, so that one step for all of them spends bits where the tail looks. Training, if any, starts from a pair that works.

Sources: transform and one step for all components, Goyal 2001, Theoretical foundations of transform coding (IEEE Signal
Processing Magazine 18(5)); errors weighted by what follows, Linder and Zamir 1999, High-resolution source coding for
non-difference distortion measures (IEEE Transactions on Information Theory 45(2)).
"""

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from split.bottleneck import BottleneckError, StreamPlan
from split.inject import CutLayer
from split.losses import TASK, TaskLoss
from split.slim import Crop, Rounded
from split.slim_stages import SlimOptions, slim_stages
from split.stages import Stage
from split.units import LatentConv

_MOST = 2048  # values of a block of places
_SHRINKS = (1, 2, 4)
_FLOOR = 1e-2  # of the mean weight, added to each: what these pictures do not show may matter elsewhere
_REACH, _HIGH = 4, 127  # deviations that the largest integer stands for, at least
_RATES = 16
_SAME = 1e-9  # of the mean's energy, below which values are alike
_SMALLEST = 0.15  # deviation in steps, below which a component is not sent


@dataclass(frozen=True)
class KltOptions:
    """Kept layers and the principal components of their output; works before any training.

    Attributes:
        step: Of the integers, in mean deviations of a component: more for fewer bytes; 1 to 4 are usual.
        latent_channels: Components that are sent, the largest; 0 for all that the step leaves.
        rates: How many rates one stream serves: any first layers of it decode, the first with half of the bytes.
        price_step: How much dearer a bit is in training with each layer of the stream less.
        whole: Share of the pictures that keep all layers in training, beside those whose draw is all of them.
        shrink: Pixels of the layer for each one of the latent, both directions: 1, 2 or 4.
        pictures: Training pictures that the components are computed from.
        beta: Weight of a bit in the joint part.
        decoder_width: Channels of a correction on the host, where something is trained; 0 for none.
        epochs: Of the joint part and of the part with a fixed head; with 0,0 nothing is trained.
        batch: Pictures for each step.
        lr: Learning rate of the joint part.
        last_lr: Learning rate of the part with a fixed head.
        tail_lr: Factor of the learning rates for what starts trained: the tail, and the kept first layers.
        fixed_norm: The network's own batch normalisations keep their statistics in training.
        task: Loss on logits; kind kd, ce or balanced.
        features: Weight of the relative feature error in the joint part.
    """

    step: float = 2.0
    latent_channels: int = 0
    rates: int = 1
    price_step: float = 3.0
    whole: float = 0.25
    shrink: int = 2
    pictures: int = 1000
    beta: float = 1e-4
    decoder_width: int = 128
    epochs: tuple[int, int] = (0, 0)
    batch: int = 64
    lr: float = 1e-3
    last_lr: float = 5e-4
    tail_lr: float = 0.3
    fixed_norm: bool = True
    task: TaskLoss = TASK
    features: float = 5.0


class Klt(Rounded):
    """The block for a layer; its transform is `fit` to pictures before training."""

    form: KltOptions

    def __init__(self, layer: CutLayer, form: KltOptions) -> None:
        check_form(layer, form)
        channels, height, width = layer.shape
        assert layer.front is not None
        size = channels * form.shrink**2
        count = form.latent_channels or size
        down, right = -height % form.shrink, -width % form.shrink
        first = [layer.front.module, *([nn.ZeroPad2d((0, right, 0, down))] if down or right else [])]
        last: list[nn.Module] = [nn.PixelShuffle(form.shrink)] if form.shrink > 1 else []
        if down or right:
            last.append(Crop(height, width))
        if form.decoder_width and sum(form.epochs):
            last.append(Correction(channels, form.decoder_width))
        encoder = nn.Sequential(*first, LatentConv(channels, count, gain=1.0, kernel=form.shrink))
        decoder = nn.Sequential(nn.Conv2d(count, size, 1), *last)
        super().__init__(encoder, decoder, channels=count, stride=layer.stride)
        self.form, self.fits, self.fixed_norm = form, form.pictures, form.fixed_norm

    def fit(self, batches: Iterable[torch.Tensor], tail: nn.Module) -> None:
        """Principal components of the layer's output, and as many of them as the step leaves."""
        with _full_precision():
            found = self._moments(batches, tail)
        if not found.covariance.trace() > _SAME * found.mean.square().sum():
            raise BottleneckError(
                "Wanted a layer whose output is finite and differs between pictures, found one that is not. Choose another."
            )
        if not 0 < float(found.weights.trace()) < math.inf:
            raise BottleneckError("Wanted logits that depend on the layer's output, found none. Look at the network.")
        weights = found.weights * len(found.mean) / found.weights.trace() + _FLOOR * torch.eye(len(found.mean))
        scales, axes = torch.linalg.eigh(weights)
        root, inverse = ((axes * scales.pow(power)) @ axes.T for power in (0.5, -0.5))
        sizes, components = torch.linalg.eigh(root @ found.covariance @ root)
        sizes, components = sizes.flip(0).clamp(min=0), components.flip(1)
        step = self.form.step * sizes.mean().sqrt()
        least = float(_REACH * sizes[0].sqrt() / _HIGH / sizes.mean().sqrt())
        if self.form.step < least:
            raise BottleneckError(
                f"Wanted a step of at least {least:.2g}, so that the largest component fits 8 bits, found {self.form.step}."
            )
        count = self.form.latent_channels or max(1, int((sizes.sqrt() > _SMALLEST * step).sum()))
        self._set(components.T[:count] @ root / step, inverse @ components[:, :count] * step, found.mean)
        stream = StreamPlan(self._stops((sizes[:count].sqrt() / step).tolist()))
        self.serve(stream, price_step=self.form.price_step, whole=self.form.whole)

    def _stops(self, deviations: Sequence[float]) -> tuple[int, ...]:
        """Channels at which layers end: the first at half of the expected bits, the others evenly; fewer where components are few.

        A component of so many deviations of the step, were it normal, costs about log2(1 + 12 d^2) / 2 bits.
        """
        layers = min(self.form.rates, len(deviations))
        if layers == 1:
            return ()
        costs = torch.log2(1 + 12 * torch.tensor(deviations).square()).cumsum(0)
        shares = torch.linspace(0.5, 1, layers) * costs[-1]
        stops: list[int] = []
        for left, place in zip(reversed(range(layers)), torch.searchsorted(costs, shares).tolist(), strict=True):
            most = len(deviations) - left  # the later ones want a channel each
            stops.append(min(max([place, *stops[-1:]]) + 1, most))
        return (*stops[:-1], len(deviations))

    def _moments(self, batches: Iterable[torch.Tensor], tail: nn.Module) -> "Moments":
        """Of blocks of the layer's output, and of how logits depend on them: of sums with random weights."""
        self.eval()
        tail.eval()
        first = self.encoder[:-1]
        chance, sums = torch.Generator().manual_seed(0), Moments.zeros(self.encoder[-1].conv.weight[0].numel())
        device = next(self.parameters()).device
        for batch in batches:
            with torch.no_grad():
                there = self.encoder[0](batch.to(device))
            with torch.enable_grad():
                logits = tail(there.requires_grad_())[0]
                mix = torch.randn(logits.shape, generator=chance)
                mix -= mix.mean(1, keepdim=True) if mix.shape[1] > 1 else 0
                (slopes,) = torch.autograd.grad((logits * mix.to(device)).sum(), there)
            values, slopes = (self._blocks(first[1:](one.detach())) for one in (there, slopes))
            sums.add(values, slopes)
        return sums.centred()

    def _blocks(self, features: torch.Tensor) -> torch.Tensor:
        """(values of a block, blocks), float64, on the CPU."""
        blocks = functional.pixel_unshuffle(features, self.form.shrink)
        return blocks.transpose(0, 1).flatten(1).cpu().double()

    def _set(self, there: torch.Tensor, back: torch.Tensor, mean: torch.Tensor) -> None:
        """New layers with this transform, its inverse, and the mean between them."""
        old, count = self.encoder[-1].conv, len(there)
        self.set_channels(count)
        self.encoder[-1] = LatentConv(old.in_channels, count, gain=1.0, kernel=self.form.shrink)
        self.decoder[0] = nn.Conv2d(count, len(mean), 1)
        with torch.no_grad():
            self.encoder[-1].conv.weight.copy_(there.reshape(self.encoder[-1].conv.weight.shape))
            self.encoder[-1].conv.bias.copy_(-there @ mean)
            self.decoder[0].weight.copy_(back[:, :, None, None])
            self.decoder[0].bias.copy_(mean)
        self.to(old.weight.device)


@dataclass
class Moments:
    """Sums over blocks, then means: of values, of their products, of products of slopes."""

    mean: torch.Tensor
    covariance: torch.Tensor
    weights: torch.Tensor
    count: int

    @classmethod
    def zeros(cls, size: int) -> "Moments":
        """Of no blocks."""
        mean, square = torch.zeros(size, dtype=torch.float64), torch.zeros(size, size, dtype=torch.float64)
        return cls(mean, square, square.clone(), 0)

    def add(self, values: torch.Tensor, slopes: torch.Tensor) -> None:
        """(values, blocks) each."""
        self.mean += values.sum(1)
        self.covariance += values @ values.T
        self.weights += slopes @ slopes.T
        self.count += values.shape[1]

    def centred(self) -> "Moments":
        """Means."""
        mean = self.mean / self.count
        return Moments(mean, self.covariance / self.count - mean[:, None] * mean, self.weights, self.count)


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    """float32 without TF32 on a GPU: how many components the step leaves should not depend on the device."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


class Correction(nn.Module):
    """x + what two convolutions make of it; nothing at first."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        last = nn.Conv2d(width, channels, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(), last
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Same shape."""
        return x + self.body(x)


def check_form(layer: CutLayer, form: KltOptions) -> None:
    """Check options against a layer.

    Raises:
        BottleneckError: A head that does not keep all layers up to the cut, or sizes that make no block.
    """
    kept = layer.front.layer.name if layer.front else "none"
    if kept != layer.name:
        raise BottleneckError(
            f"Wanted a head that keeps the layers up to the cut, {layer.name!r}, found {kept!r}. Give `inject` the front of `Method.front`."
        )
    if form.shrink not in _SHRINKS or not 0 < form.step < math.inf or min(form.pictures, form.decoder_width + 1) < 1:
        raise BottleneckError(
            f"Wanted a shrink of {_SHRINKS}, a step above 0, at least 1 picture and a width of at least 0, found shrink {form.shrink}, "
            f"step {form.step}, {form.pictures} pictures and decoder_width {form.decoder_width}."
        )
    if not (0 < form.price_step < math.inf and 0 <= form.whole <= 1):
        raise BottleneckError(
            f"Wanted a price_step above 0 and a share of whole pictures from 0 to 1, found {form.price_step} and {form.whole}."
        )
    if not 1 <= form.rates <= _RATES:
        raise BottleneckError(f"Wanted 1 to {_RATES} rates of a stream, found {form.rates}.")
    size = layer.shape[0] * form.shrink**2
    if size > _MOST or not 0 <= form.latent_channels <= size:
        raise BottleneckError(
            f"Wanted blocks of at most {_MOST} values and as many latent channels at most, found {layer.shape[0]} x {form.shrink} x "
            f"{form.shrink} values and {form.latent_channels} channels. Choose a smaller shrink or another layer."
        )


def klt_stages(recipe: KltOptions) -> tuple[Stage, ...]:
    """Those of slim; none without epochs."""
    same = ("beta", "epochs", "batch", "lr", "last_lr", "tail_lr", "task", "features")
    return slim_stages(SlimOptions(**{name: getattr(recipe, name) for name in same}))
