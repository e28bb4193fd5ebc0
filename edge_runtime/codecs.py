"""Which codec a head and its tails speak: raw values, or the entropy coder with the tables that the artefact carries."""

from collections.abc import Mapping, Sequence

import numpy as np

from edge_runtime.artefact import Artefact
from edge_runtime.manifest import TensorSpec
from edge_runtime.offload import OffloadError
from edge_runtime.wire import CODEC_ENTROPY, CODEC_RAW, RAW_CODECS, Codec, FormatError, Frame

TABLES_NAME = "tables.bin"


def codec_of(artefact: Artefact | None) -> tuple[int, Codec]:
    """The codec number and codec of a cut; raw for a whole model, here or elsewhere.

    Args:
        artefact: Checked by `open_artefact`; its manifest names the tables by their hash.

    Raises:
        TableError: The tables are not valid.
    """
    cut = artefact.manifest.cut if artefact is not None else None
    if artefact is None or cut is None or cut.codec == "raw":
        return CODEC_RAW, RAW_CODECS[CODEC_RAW]
    from edge_runtime.entropy import EntropyCodec, parse_tables  # only where it is spoken: an agent starts sooner

    path = next(entry.path for entry in artefact.manifest.files if entry.sha256 == cut.tables_sha256)
    return CODEC_ENTROPY, EntropyCodec(parse_tables(artefact.path(path).read_bytes()))


def encode_first(codec: Codec, arrays: Sequence[np.ndarray], most: int) -> list[bytes | memoryview]:
    """The first layers of a progressive stream, at most so many; all with 0, and all of any other codec.

    Raises:
        OffloadError: A negative number.
        WireError, EntropyShapeError: As the codec's `encode`.
    """
    if most < 0:
        raise OffloadError(f"Wanted a number of layers, or 0 for all, found {most}.")
    layers = codec.encode(arrays)
    if most:
        from edge_runtime.entropy import EntropyCodec

        if isinstance(codec, EntropyCodec) and codec.progressive:
            return layers[:most]
    return layers


def codecs_of(artefact: Artefact) -> Mapping[int, Codec]:
    """The codecs that a tail or whole model understands: its cut's own alone."""
    code, codec = codec_of(artefact)
    return {code: codec}


def check_heads(frame: Frame, specs: Sequence[TensorSpec]) -> None:
    """Compare what a frame announces with the manifest's tensors, before anything is decoded or allocated.

    Raises:
        FormatError: Another number, dtype or shape of tensors.
    """
    wanted = [(spec.dtype, spec.shape) for spec in specs]
    found = [(head.dtype, head.shape) for head in frame.tensors]
    if wanted != found:
        raise FormatError(f"Wanted tensors {wanted} in the frame, found {found}. Deploy head and tail of the same cut.")
