"""BottleFit: a narrow convolution as the cut, a head and decoder trained to imitate features, then for the task.

Source: Matsubara et al. 2022, BottleFit (arXiv:2201.02693). Published geometry: ResNet-152, the block replaces
everything up to `layer2`; DenseNet-169 and -201, up to `features.transition2`.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from split.bottleneck import Bottleneck, BottleneckError, Coded, LatentGrid, conv
from split.inject import Front
from split.losses import TaskLoss
from split.stages import Stage

Decoder = Literal["resnet", "densenet"]

CHANNELS = {1: (3, 6, 9, 12), 2: (1, 2, 3, 6, 9, 12), 3: tuple(range(3, 25, 3))}
_HEAD_MODULES = {1: 4, 2: 7, 3: 10}  # how many of the modules run on the device
_STEM_CHANNELS = 64
# Stride before the decoder's last pooling -> strides of first convolution, pooling, second convolution. Published: 8.
_STRIDES = {1: (1, 1, 1), 2: (2, 1, 1), 4: (2, 2, 1), 8: (2, 2, 2)}
_LATENT_STEPS = 255
_MOMENTUM = 0.05  # of the largest latent, for each batch
_LOW, _HIGH = -128, 127


@dataclass(frozen=True)
class BottleFitOptions:
    """Form of the block.

    Attributes:
        channels: Of the latent; the paper's are in `CHANNELS`.
        version: 1: the first convolution is the bottleneck; 2: the second one, the paper's default; 3: a third one.
        decoder: "densenet" has one more convolution and halves the resolution once more.
        stride: Of the target layer; 8 as published for "resnet", 16 for "densenet"; 0 for these.
        width: Channels of the decoder; 0 for as many as the target has ("resnet"), or twice that ("densenet"):
            512 in the paper, both times.
        bits: Of the integers of the exported head, 2 to 8; the paper's are 8.
        rounds: Latents are rounded to these integers in training too, gradients passed through; the paper rounds afterwards.
            Their step follows the largest latent of the batches, so that the rare larger one keeps its integer, up to 8 bits.
    """

    channels: int = 12
    version: int = 2
    decoder: Decoder = "resnet"
    stride: int = 0
    width: int = 0
    bits: int = 8
    rounds: bool = False


class BottleFit(Bottleneck):
    """The block for a target of some channels; at 224 px, version 2: latent C x 29 x 29, output 512 x 28 x 28.

    With `front` the network's own first layers stand in place of the head's, but for the convolution to the latent.
    """

    def __init__(
        self, target_channels: int, options: BottleFitOptions | None = None, front: Front | None = None
    ) -> None:
        options = options or BottleFitOptions()
        last = 2 if options.decoder == "densenet" else 1
        stride = options.stride or 8 * last
        inner = stride // last
        reached = inner in _STRIDES or (front and front.layer.stride == inner)
        if options.version not in _HEAD_MODULES or not reached or stride % last or options.channels < 1:
            raise BottleneckError(
                f"Wanted version 1, 2 or 3, a stride of {[last * one for one in _STRIDES]} and at least one channel, found version "
                f"{options.version}, stride {stride} and {options.channels} channels. Choose another layer."
            )
        if not 2 <= options.bits <= 8:
            raise BottleneckError(f"Wanted 2 to 8 bits for each integer of the latent, found {options.bits}.")
        if options.version == 3 and inner != 8:
            raise BottleneckError(f"Wanted stride {8 * last} for version 3, found {stride}. Use version 2.")
        width = options.width or target_channels * last
        count = 2 if front else _HEAD_MODULES[options.version]
        if front:
            modules = _behind(front, inner, options, width)
        else:
            modules = _front(options.version, options.channels, width, _STRIDES[inner])
        modules += _back(target_channels, width, halves=last == 2)
        super().__init__(nn.Sequential(*modules[:count]), nn.Sequential(*modules[count:]), stride=stride)
        self.form = options
        self.bits, self.rounds = options.bits, options.rounds
        if options.rounds:
            self.register_buffer("largest", torch.zeros(()))

    def grid(self) -> LatentGrid | None:
        """That of training, where it rounds there."""
        if not self.rounds:
            return None
        channels = self.encoder[-1].out_channels
        return LatentGrid((float(self._step()),) * channels, (0.0,) * channels)

    def code(self, latent: torch.Tensor) -> Coded:
        """As real numbers, or on the grid of the integers."""
        if not self.rounds:
            return super().code(latent)
        with torch.autocast(latent.device.type, enabled=False):
            latent = latent.float()
            if self.training and not self.encoder_fixed:
                high = latent.detach().abs().amax()
                self.largest.copy_(
                    torch.where(self.largest == 0, high, self.largest + _MOMENTUM * (high - self.largest))
                )
            step = self._step()
            rounded = torch.clamp(torch.round(latent.detach() / step), _LOW, _HIGH) * step  # as the exported head does
            return super().code(latent + (rounded - latent.detach()))

    def _step(self) -> torch.Tensor:
        step: torch.Tensor = self.largest.clamp(min=torch.finfo(torch.float32).tiny) / (2 ** (self.bits - 1) - 1)
        return step


def quantise_8bit(latent: torch.Tensor) -> torch.Tensor:
    """The latent after 8 bits, min to max of each picture, as the paper sends it; shape (batch, channels, h, w).

    Affine uint8 for each picture: scale (max - min) / 255, an integer zero point; no training sees it.
    """
    flat = latent.flatten(1)
    low, high = flat.amin(1).clamp(max=0), flat.amax(1).clamp(min=0)
    scale = ((high - low) / _LATENT_STEPS).clamp(min=torch.finfo(torch.float32).tiny)[:, None, None, None]
    zero = torch.round(-low[:, None, None, None] / scale)
    return (torch.clamp(torch.round(latent / scale) + zero, 0, _LATENT_STEPS) - zero) * scale


class QuantisedBottleFit(BottleFit):
    """The same block with `quantise_8bit` in evaluation: the paper's "bq" rows."""

    def code(self, latent: torch.Tensor) -> Coded:
        """Eight bits in evaluation, as it is in training."""
        return super().code(latent if self.training else quantise_8bit(latent))


def bottlefit_stages(
    *,
    epochs: tuple[int, int] = (10, 10),
    batch: int = 64,
    task: TaskLoss | None = None,
    lr: float = 1e-3,
    fix_encoder: bool = True,
    front_lr: float = 1.0,
) -> tuple[Stage, ...]:
    """The published recipe: features with Adam (GHND), then the task with SGD.

    Args:
        epochs: Of the two stages; milestones at half of each.
        batch: Of both stages.
        lr: Learning rate of the second stage.
        task: Loss of the second stage: half cross entropy, half distillation by default ("GHND-KD"); `TaskLoss(kind="ce")`
            for "GHND-FT".
        fix_encoder: The "(FE)" variants: the head of stage 1 stays, so that it may serve several tails.
        front_lr: Factor of the first stage's learning rate for first layers that the head keeps.
    """
    first = Stage("features", epochs[0], batch, optimiser="adam", lr=1e-3, milestones=(0.5,), tail_lr=front_lr)
    second = Stage(
        "task",
        epochs[1],
        batch,
        optimiser="sgd",
        lr=lr,
        milestones=(0.5,),
        task=task or TaskLoss(),
        fixes_encoder=fix_encoder,
    )
    return (first, second)


def _after(channels: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(channels), nn.ReLU()]


def _front(version: int, channels: int, width: int, strides: tuple[int, int, int]) -> list[nn.Module]:
    """From the picture to `width` channels: the paper's modules up to the decoder's common part."""
    first, pool, second = strides
    stem = channels if version == 1 else _STEM_CHANNELS
    modules: list[nn.Module] = [
        conv(3, stem, kernel=7, stride=first, padding=3),
        *_after(stem),
        nn.MaxPool2d(3, stride=pool, padding=1),
        *_after(stem),
    ]
    middle = {1: _STEM_CHANNELS, 2: channels, 3: width}[version]
    modules += [conv(stem, middle, kernel=2, stride=second, padding=1), *_after(middle)]
    if version == 3:
        modules += [conv(width, channels, kernel=2, stride=2, padding=1), *_after(channels)]
        return [*modules, nn.ConvTranspose2d(channels, width, 2, stride=2, bias=False), *_after(width)]
    return [*modules, conv(middle, width, kernel=2, padding=1), *_after(width)]


def _behind(front: Front, inner: int, options: BottleFitOptions, width: int) -> list[nn.Module]:
    """The same behind kept first layers: the convolution to the latent, then the decoder's first one."""
    channels, stride = options.channels, inner * (2 if options.version == 3 else 1)
    kept = front.layer.stride
    if options.version == 1:
        raise BottleneckError(
            f"Wanted version 2 or 3 behind the kept layers up to {front.layer.name!r}, found version 1, whose bottleneck is the "
            "network's first convolution. Use version 2."
        )
    if kept not in (stride // 2, stride):
        raise BottleneckError(
            f"Wanted first layers of stride {stride // 2} or {stride} before a latent of stride {stride}, found stride {kept} behind "
            f"{front.layer.name!r}. Choose another layer."
        )
    head = [front.module, conv(front.layer.shape[0], channels, kernel=2, stride=stride // kept, padding=1)]
    if options.version == 3:
        return [*head, *_after(channels), nn.ConvTranspose2d(channels, width, 2, stride=2, bias=False), *_after(width)]
    return [*head, *_after(channels), conv(channels, width, kernel=2, padding=1), *_after(width)]


def _back(target: int, width: int, *, halves: bool) -> list[nn.Module]:
    """The decoder behind its first convolution."""
    modules: list[nn.Module] = [conv(width, width, kernel=2, padding=1), *_after(width)]
    if halves:
        modules += [conv(width, target, kernel=2), *_after(target), conv(target, target, kernel=2), *_after(target)]
        return [*modules, conv(target, target, kernel=2), nn.AvgPool2d(2, stride=2)]
    modules += [conv(width, width, kernel=2), *_after(width)]
    return [*modules, conv(width, target, kernel=2), nn.AvgPool2d(2, stride=1)]
