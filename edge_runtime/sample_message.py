"""A picture that a device was unsure about, on `up/sample`: a length, a JSON head, the encoded picture.

| offset | size | field |
| --- | --- | --- |
| 0 | 2 | length of the head, little-endian |
| 2 | n | head: `SampleHead` as JSON |
| 2 + n | rest | the picture, a JPEG, PNG or WebP file |
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Literal

import msgspec

from edge_runtime.messages import Count, Message, MessageError, Ranked, Text

MAX_PICTURE_BYTES = 512 << 10
_LENGTH_BYTES = 2
_MAX_HEAD_BYTES = 8 << 10
Form = Literal["jpeg", "png", "webp"]
_STARTS: Mapping[Form, bytes] = MappingProxyType(
    {"jpeg": b"\xff\xd8\xff", "png": b"\x89PNG\r\n\x1a\n", "webp": b"RIFF"}
)


class SampleHead(Message, frozen=True, kw_only=True):
    """Which frame it is, and what the model thought."""

    seq: Count
    frame: Text
    form: Form
    head: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")] | None = None  # artefact that ran
    top: Annotated[tuple[Ranked, ...], msgspec.Meta(max_length=20)] = ()


def form_of(picture: bytes) -> Form | None:
    """What kind of file it is by its first bytes; null when none that is known."""
    return next((form for form, start in _STARTS.items() if picture.startswith(start)), None)


def pack_sample(head: SampleHead, picture: bytes) -> bytes:
    """The message.

    Raises:
        MessageError: Larger than a message may be.
    """
    text = msgspec.json.encode(head)
    if len(text) > _MAX_HEAD_BYTES or len(picture) > MAX_PICTURE_BYTES:
        raise MessageError(
            f"Wanted a sample of at most {MAX_PICTURE_BYTES} B, found {len(picture)} B and a head of {len(text)} B."
        )
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text + picture


def unpack_sample(data: bytes) -> tuple[SampleHead, bytes]:
    """Head and picture.

    Raises:
        MessageError: Too long, cut short, no head, or another kind of picture than the head says.
    """
    size = int.from_bytes(data[:_LENGTH_BYTES], "little")
    picture = bytes(data[_LENGTH_BYTES + size :])
    if len(data) < _LENGTH_BYTES + size or size > _MAX_HEAD_BYTES or len(picture) > MAX_PICTURE_BYTES:
        raise MessageError(f"Wanted a sample of at most {MAX_PICTURE_BYTES} B, found {len(data)} B, head {size} B.")
    try:
        head = msgspec.json.decode(data[_LENGTH_BYTES : _LENGTH_BYTES + size], type=SampleHead)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MessageError(f"Wanted the head of a sample, found: {error}.") from error
    if form_of(picture) != head.form:
        raise MessageError(f"Wanted a {head.form} picture in a sample, found {picture[:8].hex()}.")
    return head, picture
