"""A picture through JPEG or WebP: how many bytes it costs on the wire, and what the network then sees."""

import io
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from edge_runtime.wire import encode_image_file

U8 = npt.NDArray[np.uint8]
CodecName = Literal["jpeg", "webp"]
QUALITIES: dict[CodecName, tuple[int, ...]] = {
    "jpeg": (5, 10, 15, 25, 40, 60, 75, 90),
    "webp": (0, 5, 10, 25, 40, 60, 75, 90),
}
FRAME_BYTES = sum(map(len, encode_image_file(b"", cut_id=bytes(8))))  # what a frame adds to a picture's file
_TABLES = (0xDB, 0xC4)  # JPEG markers of quantisation and Huffman tables
_SCAN = 0xDA


@dataclass(frozen=True)
class CodedPicture:
    """One picture after a codec.

    Attributes:
        size: Bytes of the file, its JPEG tables not counted: a sender and receiver who agree on them need not send them.
        file: As it was written.
    """

    size: int
    file: bytes

    def pixels(self) -> U8:
        """What the network sees: uint8, (height, width, 3)."""
        with Image.open(io.BytesIO(self.file)) as image:
            return np.asarray(image.convert("RGB"))


def code_picture(picture: U8, codec: CodecName, quality: int) -> CodedPicture:
    """Encode with Pillow: 4:2:0, optimised Huffman tables for JPEG, the slowest method for WebP.

    Args:
        picture: uint8, RGB, (height, width, 3).
        codec: Which one.
        quality: Its own scale, 0 to 100.
    """
    stream = io.BytesIO()
    options = {"optimize": True} if codec == "jpeg" else {"method": 6}
    Image.fromarray(picture).save(stream, codec.upper(), quality=quality, **options)
    data = stream.getvalue()
    return CodedPicture(len(data) - (table_bytes(data) if codec == "jpeg" else 0), data)


def table_bytes(jpeg: bytes) -> int:
    """How many bytes of a JPEG file are quantisation and Huffman tables, their markers included."""
    position, total = 2, 0
    while position + 4 <= len(jpeg) and jpeg[position] == 0xFF and jpeg[position + 1] != _SCAN:
        length = 2 + int.from_bytes(jpeg[position + 2 : position + 4], "big")
        if jpeg[position + 1] in _TABLES:
            total += length
        position += length
    return total
