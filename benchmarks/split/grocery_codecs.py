"""WebP and table-less JPEG in front of the grocery network, plain and fine-tuned for them: what bottlenecks of protocol B compete with.

The network is EfficientNet-Lite0 as examples/grocery fine-tunes it, the teacher of the bottlenecks of protocol B. Fine-tuned
means every layer, on pictures that went through the same codec (`study_nets.codec_job`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.rows import RowError
from benchmarks.split.study_plan import CODEC_QUALITIES

SIZE, CLASSES = 160, 43


@dataclass(frozen=True)
class CodecPoint:
    """One quality on the test pictures: bytes of each frame, and whether its class is right, plain and tuned."""

    codec: str
    quality: int
    sizes: np.ndarray
    plain: np.ndarray
    tuned: np.ndarray


def points(folder: Path) -> Iterator[CodecPoint]:
    """Every quality that is there; quality 100 of "raw" are the pixels themselves.

    Args:
        folder: Of points behind one teacher.

    Raises:
        RowError: Points that the study has not made yet.
    """
    wanted = [("raw", 100), *((codec, quality) for codec, some in CODEC_QUALITIES.items() for quality in some)]
    for codec, quality in wanted:
        path = folder / f"b-{codec}-q{quality}.npz"
        if not path.is_file():
            raise RowError(f"Wanted {path.name}, found none. Run: python -m benchmarks.split study")
        with np.load(path, allow_pickle=False) as file:
            count = len(file["sizes"])
            rights = (np.unpackbits(file[name])[:count].astype(bool) for name in ("plain", "tuned"))
            yield CodecPoint(codec, quality, file["sizes"].astype(np.float64), *rights)
