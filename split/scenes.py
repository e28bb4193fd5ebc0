"""Scenes with masks, boxes and a class, composed by chance from a seed: objects on a background, from photos or drawn.

Made for the comparison of tasks behind one bitstream, where no annotated set is at hand: what is where is known because it was
put there. With photos an object is the middle of one, cut out as a disc; without, a textured shape.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageFilter

from device_profiles.errors import EdgeError
from split.training_data import PictureSet

U8 = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Shape = Callable[[npt.NDArray[np.float64], npt.NDArray[np.float64]], Mask]

# Each inside [-1, 1] x [-1, 1], v downwards.
SHAPES: dict[str, Shape] = {
    "disc": lambda u, v: u * u + v * v <= 1,
    "square": lambda u, v: np.maximum(abs(u), abs(v)) <= 0.85,
    "triangle": lambda u, v: (v <= 0.9) & (v >= 2 * abs(u) - 0.9),
    "ring": lambda u, v: (u * u + v * v <= 1) & (u * u + v * v >= 0.25),
    "cross": lambda u, v: (np.minimum(abs(u), abs(v)) <= 0.3) & (np.maximum(abs(u), abs(v)) <= 0.95),
    "diamond": lambda u, v: abs(u) + abs(v) <= 1,
}
_LEAST_VISIBLE = 0.4  # of an object; others are taken out again
_CUTOUT = 0.8  # of a photo's side that the disc takes


class SceneError(EdgeError):
    """Scenes that cannot be composed."""


@dataclass(frozen=True)
class SceneOptions:
    """What scenes look like.

    Attributes:
        size: Height and width in pixels.
        objects: At most so many, at least one.
        smallest: Side of the smallest object, as a share of the scene's.
        largest: Side of the largest one.
        seed: Of everything that is drawn.
    """

    size: int = 96
    objects: int = 3
    smallest: float = 0.25
    largest: float = 0.55
    seed: int = 0


@dataclass(frozen=True)
class SceneSet:
    """Scenes and what is in them.

    Attributes:
        images: uint8, (n, 3, size, size).
        masks: uint8, (n, size, size): class id of each pixel, 0 for background.
        boxes: float32, (n, objects, 4): left, top, right, bottom of the visible part in pixels; zeros without an object.
        kinds: int64, (n, objects): class id from 1; 0 without an object.
        labels: int64, (n,): class id from 0 of the object with most visible pixels.
        classes: Names, background not among them.
    """

    images: torch.Tensor
    masks: torch.Tensor
    boxes: torch.Tensor
    kinds: torch.Tensor
    labels: torch.Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def pictures(self) -> PictureSet:
        """As labelled pictures, to train encoder and classification."""
        return PictureSet(self.images, self.labels, self.classes)

    def to(self, device: torch.device) -> "SceneSet":
        """All tensors on a device."""
        return SceneSet(
            self.images.to(device),
            self.masks.to(device),
            self.boxes.to(device),
            self.kinds.to(device),
            self.labels.to(device),
            self.classes,
        )

    def mirrored(self) -> "SceneSet":
        """The same scenes seen in a mirror."""
        size = self.images.shape[-1]
        boxes = torch.stack(
            [size - self.boxes[..., 2], self.boxes[..., 1], size - self.boxes[..., 0], self.boxes[..., 3]], -1
        )
        boxes = torch.where((self.kinds > 0)[..., None], boxes, torch.zeros_like(boxes))
        return SceneSet(self.images.flip(3), self.masks.flip(2), boxes, self.kinds, self.labels, self.classes)

    def with_mirrored(self) -> "SceneSet":
        """These scenes, then each of them in a mirror."""
        other = self.mirrored()
        images, masks, boxes, kinds, labels = (
            torch.cat([getattr(self, one), getattr(other, one)])
            for one in ("images", "masks", "boxes", "kinds", "labels")
        )
        return SceneSet(images, masks, boxes, kinds, labels, self.classes)


def compose_scenes(count: int, options: SceneOptions, photos: PictureSet | None = None) -> SceneSet:
    """Compose scenes; equal arguments give equal scenes.

    Args:
        count: How many, at least 1.
        options: Sizes and the seed.
        photos: What objects and backgrounds are cut from, its classes are theirs; null for drawn shapes on noise.

    Raises:
        SceneError: No scenes, or sizes that make none.
    """
    if count < 1 or options.objects < 1 or not 0 < options.smallest <= options.largest <= 1 or options.size < 16:
        raise SceneError(
            f"Wanted at least 1 scene of 16 pixels or more with objects that fit, found {count} of {options}."
        )
    size = options.size
    classes = photos.classes if photos else tuple(SHAPES)
    images, masks = np.empty((count, 3, size, size), np.uint8), np.zeros((count, size, size), np.uint8)
    boxes, kinds = np.zeros((count, options.objects, 4), np.float32), np.zeros((count, options.objects), np.int64)
    labels = np.zeros(count, np.int64)
    for number in range(count):
        rng = np.random.default_rng((options.seed, number))
        scene = _Scene(_background(rng, size, photos))
        for _ in range(int(rng.integers(1, options.objects + 1))):
            side = max(4, round(size * rng.uniform(options.smallest, options.largest)))
            kind, pixels, shape = _photo_object(rng, side, photos) if photos else _drawn_object(rng, side)
            scene.put(kind, pixels, shape, tuple(rng.integers(0, size - side + 1, 2).tolist()))
        found = scene.visible()
        images[number], masks[number] = scene.pixels.transpose(2, 0, 1), scene.classes_of(found)
        for row, (_, kind, box, _) in enumerate(found):
            boxes[number, row], kinds[number, row] = box, kind
        labels[number] = max(found, key=lambda one: one[3])[1] - 1
    pixels, ids = torch.from_numpy(images), torch.from_numpy(masks)
    return SceneSet(pixels, ids, torch.from_numpy(boxes), torch.from_numpy(kinds), torch.from_numpy(labels), classes)


class _Scene:
    """Pixels, and which object each belongs to."""

    def __init__(self, background: U8) -> None:
        self.pixels = background
        self.owner = np.zeros(background.shape[:2], np.int64)  # number of the object, from 1
        self.objects: list[tuple[int, int, Mask]] = []  # class id from 1, whole area, what was below

    def put(self, kind: int, pixels: U8, shape: Mask, place: tuple[int, ...]) -> None:
        """Paste, unless too little of what was there before would stay visible."""
        top, left = place
        rows, columns = slice(top, top + len(shape)), slice(left, left + len(shape))
        after = self.owner.copy()
        after[rows, columns][shape] = len(self.objects) + 1
        for number, (_, area, _) in enumerate(self.objects, 1):
            if (after == number).sum() < _LEAST_VISIBLE * area:
                return
        self.owner = after
        self.pixels[rows, columns][shape] = pixels[shape]
        self.objects.append((kind, int(shape.sum()), shape))

    def visible(self) -> list[tuple[int, int, tuple[int, int, int, int], int]]:
        """Number, class id, box and visible pixels of each object."""
        found = []
        for number, (kind, _, _) in enumerate(self.objects, 1):
            rows, columns = np.nonzero(self.owner == number)
            box = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
            found.append((number, kind, box, len(rows)))
        return found

    def classes_of(self, found: list[tuple[int, int, tuple[int, int, int, int], int]]) -> U8:
        """Class id of each pixel."""
        table = np.zeros(len(found) + 1, np.uint8)
        for number, kind, _, _ in found:
            table[number] = kind
        result: U8 = table[self.owner]
        return result


def _drawn_object(rng: np.random.Generator, side: int) -> tuple[int, U8, Mask]:
    """A shape whose class is its form; colour and stripes tell nothing."""
    kind = int(rng.integers(len(SHAPES)))
    v, u = (np.mgrid[:side, :side] + 0.5) * 2 / side - 1
    shape = list(SHAPES.values())[kind](u, v)
    return kind + 1, _stripes(rng, u, v, contrast=60), shape


def _photo_object(rng: np.random.Generator, side: int, photos: PictureSet) -> tuple[int, U8, Mask]:
    number = int(rng.integers(len(photos)))
    whole = photos.images[number].numpy().transpose(1, 2, 0)
    height = round(len(whole) * _CUTOUT)
    edge = (len(whole) - height) // 2
    middle = Image.fromarray(np.ascontiguousarray(whole[edge : edge + height, edge : edge + height]))
    pixels = np.asarray(middle.resize((side, side), Image.Resampling.BILINEAR))
    v, u = (np.mgrid[:side, :side] + 0.5) * 2 / side - 1
    return int(photos.labels[number]) + 1, pixels, SHAPES["disc"](u, v)


def _background(rng: np.random.Generator, size: int, photos: PictureSet | None) -> U8:
    if photos is None:
        v, u = np.mgrid[:size, :size] * 2 / size - 1
        noise = rng.integers(0, 256, (8, 8, 3), np.uint8)
        cloud = np.asarray(Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC), np.float64)
        return np.clip(0.6 * cloud + 0.4 * _stripes(rng, u, v, contrast=30), 0, 255).astype(np.uint8)
    whole = Image.fromarray(photos.images[int(rng.integers(len(photos)))].numpy().transpose(1, 2, 0))
    grown = whole.resize((size * 2, size * 2), Image.Resampling.BILINEAR)
    left, top = rng.integers(0, size + 1, 2).tolist()
    cut = grown.crop((left, top, left + size, top + size)).filter(ImageFilter.GaussianBlur(2))
    return np.array(cut.rotate(180))


def _stripes(
    rng: np.random.Generator, u: npt.NDArray[np.float64], v: npt.NDArray[np.float64], *, contrast: float
) -> U8:
    angle, pace = rng.uniform(0, np.pi), rng.uniform(2, 12)
    wave = np.sin(pace * (u * np.cos(angle) + v * np.sin(angle)) + rng.uniform(0, 6))
    colour = rng.uniform(40, 215, 3)
    grain = rng.normal(0, 8, (*u.shape, 3))
    pixels: U8 = np.clip(colour + contrast * wave[..., None] + grain, 0, 255).astype(np.uint8)
    return pixels
