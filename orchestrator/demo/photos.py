"""Photographs that ship inside of packages on the registry, with author, licence and link."""

import importlib.util
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from device_profiles.errors import MissingDependencyError

CC0 = "CC0 1.0"
CC_BY_2 = "CC BY 2.0"
CALIBRATION_CROPS_PER_PHOTO = 12


@dataclass(frozen=True)
class Photo:
    """One photograph: `package` and `path` say where it lies, `classes` which ImageNet classes are right."""

    package: str
    path: str
    author: str
    licence: str
    link: str
    classes: tuple[int, ...]

    @property
    def name(self) -> str:
        """The file's name."""
        return Path(self.path).name


PHOTOS = (
    Photo("skimage", "data/coffee.png", "Rachel Michetti, Pikolo Espresso Bar", CC0, "https://scikit-image.org/docs/stable/api/skimage.data.html#skimage.data.coffee", (967, 968)),
    Photo("skimage", "data/camera.png", "Lav Varshney", CC0, "https://scikit-image.org/docs/stable/api/skimage.data.html#skimage.data.camera", (872,)),
    Photo("skimage", "data/chelsea.png", "Stefan van der Walt", CC0, "https://scikit-image.org/docs/stable/api/skimage.data.html#skimage.data.chelsea", (281, 282, 285)),
    Photo("skimage", "data/motorcycle_left.png", "N. Nesic, P. Westling, X. Wang, Y. Kitajima, G. Krathwohl, D. Scharstein (Middlebury 2014)", "none stated by the package", "https://vision.middlebury.edu/stereo/data/scenes2014/", (665, 670)),
    Photo("skimage", "data/rocket.jpg", "SpaceX", "public domain", "https://www.flickr.com/photos/spacexphotos/16511594820/", (657, 744)),
    Photo("sklearn", "datasets/images/flower.jpg", "vultilion", CC_BY_2, "https://www.flickr.com/photos/vultilion/6056698931/", (985,)),
    Photo("sklearn", "datasets/images/china.jpg", "danielbuechele", CC_BY_2, "https://www.flickr.com/photos/danielbuechele/6061409035/", (698,)),
    Photo("matplotlib", "mpl-data/sample_data/grace_hopper.jpg", "James S. Davis, U.S. Navy", "public domain", "https://commons.wikimedia.org/wiki/File:Commodore_Grace_M._Hopper,_USN_(covered).jpg", (652, 400)),
)  # fmt: skip

# Names of the ImageNet classes that these photographs come near to.
CLASS_NAMES = {
    108: "sea anemone", 281: "tabby", 282: "tiger cat", 285: "Egyptian cat", 309: "bee", 400: "academic gown",
    442: "bell cote", 447: "binoculars", 535: "disc brake", 540: "drilling platform", 593: "harmonica",
    652: "military uniform", 657: "missile", 663: "monastery", 665: "moped", 667: "mortarboard", 670: "motor scooter",
    698: "palace", 744: "projectile", 872: "tripod", 925: "consomme", 947: "mushroom", 967: "espresso", 968: "cup",
    975: "lakeside", 985: "daisy",
}  # fmt: skip


def class_name(index: int) -> str:
    """The name of an ImageNet class, or its number."""
    return CLASS_NAMES.get(index, f"class {index}")


def locate(photo: Photo) -> Path:
    """Where the photograph lies on this machine; the package is not imported.

    Raises:
        MissingDependencyError: The package is not installed, or no longer ships the file.
    """
    spec = importlib.util.find_spec(photo.package)
    path = Path(spec.origin).parent / photo.path if spec is not None and spec.origin is not None else None
    if path is None or not path.is_file():
        raise MissingDependencyError(
            f"Wanted {photo.path} of the package {photo.package}, found none. Install the demo: pip install 'headtail[demo]'."
        )
    return path


def load_rgb(photo: Photo) -> np.ndarray:
    """The photograph's pixels: uint8, RGB, (height, width, 3)."""
    with Image.open(locate(photo)) as image:
        return np.asarray(image.convert("RGB"))


def copy_photos(folder: Path, photos: Sequence[Photo] = PHOTOS) -> list[Path]:
    """Write the photographs as PNG, for the device to read; their numbers keep the order."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for number, photo in enumerate(photos):
        path = folder / f"{number:02d}-{Path(photo.name).stem}.png"
        Image.fromarray(load_rgb(photo)).save(path, compress_level=1)
        written.append(path)
    return written


def write_calibration(folder: Path, photos: Sequence[Photo] = PHOTOS, *, seed: int = 7) -> int:
    """Write fixed augmented crops for calibration: off-centre, flipped, at other scales; never the evaluation crop.

    Returns:
        How many pictures were written (256 x 256 each).
    """
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    count = 0
    for photo in photos:
        image = Image.fromarray(load_rgb(photo))
        for _ in range(CALIBRATION_CROPS_PER_PHOTO):
            _augment(image, generator).save(folder / f"{count:03d}.png", compress_level=1)
            count += 1
    return count


def _augment(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    side = round(min(image.size) * generator.uniform(0.5, 0.95))
    room = image.width - side, image.height - side
    # One corner or edge, so that the crop's centre is never that of the picture.
    left = round(room[0] * generator.choice([generator.uniform(0.0, 0.35), generator.uniform(0.65, 1.0)]))
    top = round(room[1] * generator.choice([generator.uniform(0.0, 0.35), generator.uniform(0.65, 1.0)]))
    crop = image.crop((left, top, left + side, top + side)).resize((256, 256), Image.Resampling.BICUBIC)
    if generator.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return Image.fromarray(np.clip(np.asarray(crop, np.float32) * generator.uniform(0.8, 1.2), 0, 255).astype(np.uint8))


def thumbnail_png(photo: Photo, height: int = 160) -> bytes:
    """A small PNG for the report."""
    image = Image.fromarray(load_rgb(photo))
    stream = io.BytesIO()
    image.resize((round(image.width * height / image.height), height)).save(stream, "PNG")
    return stream.getvalue()
