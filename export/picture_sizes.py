"""What a picture costs as JPEG and WebP at a network's input size: the rivals of any cut."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge_runtime.manifest import Preprocessing, TensorSpec
from edge_runtime.preprocess import MAX_PIXELS, centre_crop, decode_image

DEFAULT_PICTURE = Path(__file__).parent / "data" / "cat.webp"
QUALITY = 75
_MAX_FILE_BYTES = 64 << 20


@dataclass(frozen=True)
class PictureSizes:
    """Encoded sizes in bytes of one picture, cropped to the network's input."""

    name: str
    height: int
    width: int
    jpeg_bytes: int
    webp_bytes: int


def picture_input(specs: tuple[TensorSpec, ...]) -> tuple[int, int, int] | None:
    """(height, width, channels) of the only input when it looks like a picture: 1 or 3 channels, at least 8 x 8."""
    if len(specs) != 1 or len(specs[0].shape) != 4:
        return None
    _, a, b, c = specs[0].shape
    for height, width, channels, layout in ((b, c, a, "nchw"), (a, b, c, "nhwc")):
        if specs[0].layout in (None, layout) and channels in (1, 3) and min(height, width) >= 8:
            return height, width, channels
    return None


def measure_picture(
    specs: tuple[TensorSpec, ...], preprocessing: Preprocessing | None, path: Path | None = None
) -> PictureSizes | None:
    """Encode a picture as the network sees it, with JPEG and WebP at quality 75 (Pillow's other defaults).

    Args:
        specs: The network's inputs.
        preprocessing: Gives resize and crop; without it the short side is scaled to the input and the centre taken.
        path: A JPEG, PNG or WebP file; the picture that ships with headtail when null.

    Returns:
        Null when the network does not take a picture.

    Raises:
        ImageError: Not a picture, or smaller than the crop.
    """
    size = picture_input(specs)
    if size is None:
        return None
    height, width, channels = size
    path = path or DEFAULT_PICTURE
    with path.open("rb") as stream:
        image = decode_image(stream.read(_MAX_FILE_BYTES), MAX_PIXELS)
    if preprocessing is None:
        # The smallest scale at which the crop fits into the picture.
        scale = max(height / image.shape[0], width / image.shape[1])
        short = max(round(min(image.shape[:2]) * scale), min(height, width))
        preprocessing = Preprocessing(resize_short=short, crop=(height, width), mean=(0.0,), std=(1.0,))
    cropped = centre_crop(image, preprocessing)
    return PictureSizes(
        name=path.name,
        height=height,
        width=width,
        jpeg_bytes=_encoded(cropped, channels, "JPEG"),
        webp_bytes=_encoded(cropped, channels, "WEBP"),
    )


def _encoded(image: np.ndarray, channels: int, kind: str) -> int:
    from PIL import Image

    buffer = io.BytesIO()
    picture = Image.fromarray(image)
    (picture.convert("L") if channels == 1 else picture).save(buffer, format=kind, quality=QUALITY)
    return buffer.tell()
