"""From a picture to an input tensor, as the manifest says: the same code on the device and on the host."""

import io
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from device_profiles.errors import EdgeError, MissingDependencyError
from edge_runtime.manifest import Preprocessing, TensorSpec

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 64_000_000


class ImageError(EdgeError):
    """A picture cannot be decoded, or does not have the form that the model takes."""


def prepare(image: np.ndarray, spec: TensorSpec, preprocessing: Preprocessing) -> np.ndarray:
    """Resize, crop, normalise, lay out and (where the input is quantised) quantise a picture.

    Args:
        image: uint8, RGB, shape (height, width, 3).
        spec: The model's input: float32, or uint8/int8 with quantisation; layout "nchw" or "nhwc", batch 1.
        preprocessing: Applied as x = (pixel - mean) / std per channel.

    Returns:
        C-contiguous array of the spec's dtype and shape.

    Raises:
        ImageError: The picture's or the crop's form does not match.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ImageError(f"Wanted a uint8 RGB picture (height, width, 3), found {image.dtype} {image.shape}.")
    cropped = centre_crop(image, preprocessing)
    mean = np.asarray(preprocessing.mean, np.float32)
    std = np.asarray(preprocessing.std, np.float32)
    real = (cropped.astype(np.float32) - mean) / std  # (height, width, 3)
    if spec.layout == "nchw":
        real = real.transpose(2, 0, 1)
    tensor = np.ascontiguousarray(_store(real, spec)[np.newaxis])
    if tensor.shape != spec.shape:
        raise ImageError(
            f"Wanted {spec.shape} for {spec.name}, found {tensor.shape} after the crop to {preprocessing.crop}."
        )
    return tensor


def centre_crop(image: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """Resize the short side and crop the centre; uint8 (crop height, crop width, 3).

    Raises:
        ImageError: The picture is smaller than the crop.
    """
    image = resize_short_side(image, preprocessing)
    height, width = image.shape[:2]
    crop_height, crop_width = preprocessing.crop
    top, left = (height - crop_height) // 2, (width - crop_width) // 2
    if top < 0 or left < 0:
        short = preprocessing.resize_short
        after, hint = (
            ("", "resize_short") if short is None else (f" after the resize to {short}", "a larger resize_short")
        )
        raise ImageError(
            f"Wanted a picture of at least {preprocessing.crop}, found {(height, width)}{after}. Set {hint}."
        )
    return image[top : top + crop_height, left : left + crop_width]


def resize_short_side(image: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """Resize so that the short side has the pixels that the manifest wants; uint8 (height, width, 3)."""
    height, width = image.shape[:2]
    short = preprocessing.resize_short
    if short is None or min(height, width) == short:
        return image
    scale = short / min(height, width)
    size = (max(short, round(width * scale)), max(short, round(height * scale)))
    return _resize(image, size, preprocessing.interpolation)


def encode_picture(image: np.ndarray, preprocessing: Preprocessing, form: str) -> bytes:
    """A picture file for a whole model on the host, with no pixel that the host would throw away by resizing.

    Args:
        image: uint8, RGB, shape (height, width, 3).
        preprocessing: Of the model's manifest; the host does the rest of it.
        form: Codec and quality, "jpeg:75" or "webp:90".

    Raises:
        ImageError: Another codec, or no quality.
        MissingDependencyError: Pillow is not installed.
    """
    codec, _, quality = form.partition(":")
    if codec not in ("jpeg", "webp") or not quality.isdigit():
        raise ImageError(f"Wanted a picture as jpeg or webp with a quality, such as jpeg:75, found {form!r}.")
    stream = io.BytesIO()
    picture = _pillow().fromarray(resize_short_side(image, preprocessing))
    picture.save(stream, codec.upper(), quality=int(quality))
    return stream.getvalue()


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode a JPEG, PNG or WebP file.

    Args:
        data: The file's bytes.
        max_pixels: A larger picture is refused before its pixels are decoded.

    Returns:
        uint8, RGB, shape (height, width, 3).

    Raises:
        ImageError: Not a picture, damaged, or too large.
        MissingDependencyError: Pillow is not installed.
    """
    pil = _pillow()
    try:
        with pil.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise ImageError(f"Wanted a picture of at most {max_pixels} pixels, found {width} x {height}.")
            return rgb_pixels(image)
    except (OSError, ValueError, SyntaxError, pil.DecompressionBombError) as error:
        raise ImageError(f"Wanted a JPEG, PNG or WebP picture, found: {error}.") from error


def rgb_pixels(image: "Image") -> np.ndarray:
    """An opened picture's pixels, uint8, RGB, shape (height, width, 3); of 16 bits the upper 8, in grey as in colour."""
    if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip at 255
        grey = np.clip(np.asarray(image), 0, 0xFFFF) >> 8  # (height, width)
        return np.repeat(grey.astype(np.uint8)[..., np.newaxis], 3, axis=2)
    return np.asarray(image.convert("RGB"))


def _store(real: np.ndarray, spec: TensorSpec) -> np.ndarray:
    if spec.dtype == "float32":
        return real
    if spec.quantisation is None or spec.dtype not in ("uint8", "int8"):
        raise ImageError(f"Wanted a float32 or quantised 8-bit input for pictures, found {spec.dtype} for {spec.name}.")
    limits = np.iinfo(spec.dtype)
    stored = np.rint(real / np.float32(spec.quantisation.scale)) + spec.quantisation.zero_point
    clipped: np.ndarray = np.clip(stored, limits.min, limits.max).astype(spec.dtype)
    return clipped


def _resize(image: np.ndarray, size: tuple[int, int], interpolation: str) -> np.ndarray:
    pil = _pillow()
    method = pil.Resampling.BICUBIC if interpolation == "bicubic" else pil.Resampling.BILINEAR
    return np.asarray(pil.fromarray(image).resize(size, method))


def _pillow() -> ModuleType:
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "Wanted Pillow to decode or resize pictures, found none. Install it: pip install 'headtail[camera]'."
        ) from error
    return Image
