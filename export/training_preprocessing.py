"""How pictures become a network's input while a bottleneck is trained for it."""

from edge_runtime.manifest import Preprocessing
from export.source import ModelSource
from split.augment import IMAGENET_MEAN, IMAGENET_STD


def training_preprocessing(network: ModelSource, size: int) -> Preprocessing:
    """The network's own; ImageNet's where it has none. At `size` pixels, or 0 for its own size."""
    shape = tuple(network.example[0].shape)
    own = network.preprocessing
    if own is None:
        side = size or (min(shape[2:]) if len(shape) == 4 else 224)
        mean, std = (tuple(255 * one for one in values) for values in (IMAGENET_MEAN, IMAGENET_STD))
        return Preprocessing(resize_short=side, crop=(side, side), mean=mean, std=std)
    if size:
        return Preprocessing(resize_short=size, crop=(size, size), mean=own.mean, std=own.std)
    short = own.resize_short or max(own.crop)
    return Preprocessing(resize_short=short, crop=own.crop, mean=own.mean, std=own.std)  # bilinear, as training resizes
