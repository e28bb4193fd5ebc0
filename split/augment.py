"""Batches of uint8 pictures to normalised float input: crop, flip, resized crop, colour, mixing; all draws from one generator."""

import math
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from torch.nn import functional

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Augmentation:
    """What training does to pictures.

    Attributes:
        size: Height and width of the network's input, at most that of the pictures plus twice the padding.
        kind: "none": centre. "flip": centre, mirrored half of the time. "crop": also a random place, after `padding`.
            "resized": a random rectangle of 8 % to 100 % of the picture, resized, and mirrored (ImageNet's usual one).
        padding: Black pixels on each side before "crop".
        mean: Of each channel, in [0, 1].
        std: Of each channel.
        smallest: Share of the picture's area that a resized crop keeps at least.
        colour: Brightness, contrast and saturation change by up to this share, in [0, 1).
        mixes: Half of the pictures are blended with their neighbour in the batch, by a drawn weight. Labels say nothing of such a
            picture: for losses against a teacher that sees the same.
    """

    size: int
    kind: Literal["none", "flip", "crop", "resized"] = "crop"
    padding: int = 0
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    smallest: float = 0.08
    colour: float = 0.0
    mixes: bool = False


@dataclass(frozen=True)
class Draws:
    """What was drawn for each picture of a batch; a process that has only part of the batch takes its part."""

    flip: torch.Tensor  # bool, (n,)
    place: torch.Tensor  # in [0, 1), (n, 2): where a crop starts
    area: torch.Tensor  # in [0, 1), (n, 2): size and shape of a resized crop
    colour: torch.Tensor  # in [0, 1), (n, 3): brightness, contrast, saturation
    mix: torch.Tensor  # in [0, 1), (n,): how much of a picture's neighbour

    def part(self, rows: slice) -> "Draws":
        """The draws of some of the pictures."""
        return Draws(*(getattr(self, one.name)[rows] for one in fields(self)))

    def to(self, device: torch.device) -> "Draws":
        """The same on a device."""
        return Draws(*(getattr(self, one.name).to(device) for one in fields(self)))


def draw(count: int, seed: int) -> Draws:
    """Draws for `count` pictures."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(count, 5, generator=generator)
    more = torch.rand(count, 4, generator=generator)
    return Draws(values[:, 0] < 0.5, values[:, 1:3], values[:, 3:5], more[:, :3], more[:, 3])


def mirrored(count: int, *, flip: bool) -> Draws:
    """No chance: all pictures mirrored, or none."""
    zeros = torch.zeros(count, 3)
    return Draws(torch.full((count,), flip), zeros[:, :2], zeros[:, :2], zeros, zeros[:, 0])


def augment(images: torch.Tensor, options: Augmentation, draws: Draws) -> torch.Tensor:
    """Float input of the network.

    Args:
        images: uint8, (n, 3, height, width).
        options: What to do.
        draws: For these pictures.

    Returns:
        float32, (n, 3, size, size), normalised, on the images' device.
    """
    draws = draws.to(images.device)
    found = _resized(images.float(), options, draws) if options.kind == "resized" else _placed(images, options, draws)
    if options.colour:
        found = _coloured(found, options.colour, draws.colour)
    found = normalise(found, options)
    return _mixed(found, draws.mix) if options.mixes else found


def _placed(images: torch.Tensor, options: Augmentation, draws: Draws) -> torch.Tensor:
    """The centre or a random place, perhaps mirrored; float, 0 to 255."""
    if options.kind == "crop" and options.padding:
        images = functional.pad(images, [options.padding] * 4)
    room = torch.tensor([side - options.size + 1 for side in images.shape[2:]], device=images.device)
    start = draws.place * room if options.kind == "crop" else (room - 1).expand(len(images), 2) / 2
    steps = torch.arange(options.size, device=images.device)
    rows, columns = (start[:, axis].long()[:, None] + steps for axis in (0, 1))  # (n, size)
    if options.kind != "none":
        columns = torch.where(draws.flip[:, None], columns.flip(1), columns)
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    picked = images.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]]  # (n, size, size, 3)
    return picked.permute(0, 3, 1, 2).float().contiguous()


def centre(images: torch.Tensor, options: Augmentation) -> torch.Tensor:
    """The input without chance, for evaluation: the centre; shapes as in `augment`."""
    return augment(images, without_chance(options), draw(len(images), 0))


def without_chance(options: Augmentation) -> Augmentation:
    """The centre alone, of the same size and scale."""
    return replace(options, kind="none", padding=0, colour=0.0, mixes=False)


def normalise(images: torch.Tensor, options: Augmentation) -> torch.Tensor:
    """0 to 255 in float, to zero mean and unit deviation."""
    mean = images.new_tensor(options.mean)[:, None, None]
    std = images.new_tensor(options.std)[:, None, None]
    return (images / 255 - mean) / std


def _resized(images: torch.Tensor, options: Augmentation, draws: Draws) -> torch.Tensor:
    """A random rectangle, bilinear: `smallest` to all of the area, sides 3:4 to 4:3, cut to the picture."""
    area = options.smallest + (1 - options.smallest) * draws.area[:, 0]
    ratio = torch.exp((2 * draws.area[:, 1] - 1) * math.log(4 / 3))
    scale = torch.stack([torch.sqrt(area * ratio), torch.sqrt(area / ratio)], 1).clamp(max=1)  # (n, 2): x, y
    shift = (2 * draws.place - 1) * (1 - scale)
    theta = torch.zeros(len(images), 2, 3, device=images.device)
    theta[:, 0, 0] = torch.where(draws.flip, -scale[:, 0], scale[:, 0])
    theta[:, 1, 1] = scale[:, 1]
    theta[:, :, 2] = shift
    grid = functional.affine_grid(theta, [len(images), 3, options.size, options.size], align_corners=False)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _coloured(images: torch.Tensor, most: float, draws: torch.Tensor) -> torch.Tensor:
    """Brightness, contrast around the picture's mean, saturation around its greys; float, 0 to 255."""
    brightness, contrast, saturation = (1 + most * (2 * draws - 1)).T[:, :, None, None, None]
    images = images * brightness
    images = _between(images.mean((1, 2, 3), keepdim=True), images, contrast)
    return _between(images.mean(1, keepdim=True), images, saturation).clamp(0, 255)


def _mixed(images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Each picture alone with a chance of one half, otherwise between the one before it in the batch and itself."""
    weight = (2 * draws).clamp(max=1)[:, None, None, None]
    return _between(images.roll(1, 0), images, weight)


def _between(first: torch.Tensor, second: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return first + weight * (second - first)
