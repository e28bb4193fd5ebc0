"""Which codec a head and its tails speak: raw values, or the entropy coder with the tables that the artefact carries."""

from collections.abc import Mapping

from edge_runtime.artefact import Artefact
from edge_runtime.entropy import EntropyCodec, parse_tables
from edge_runtime.wire import CODEC_ENTROPY, CODEC_RAW, RAW_CODECS, Codec

TABLES_NAME = "tables.bin"


def codec_of(artefact: Artefact) -> tuple[int, Codec]:
    """The codec number and codec of a cut; raw for a whole model.

    Args:
        artefact: Checked by `open_artefact`; its manifest names the tables by their hash.

    Raises:
        TableError: The tables are not valid.
    """
    cut = artefact.manifest.cut
    if cut is None or cut.codec == "raw":
        return CODEC_RAW, RAW_CODECS[CODEC_RAW]
    path = next(entry.path for entry in artefact.manifest.files if entry.sha256 == cut.tables_sha256)
    return CODEC_ENTROPY, EntropyCodec(parse_tables(artefact.path(path).read_bytes()))


def codecs_of(artefact: Artefact) -> Mapping[int, Codec]:
    """The codecs that a tail or whole model understands: its cut's own alone."""
    code, codec = codec_of(artefact)
    return {code: codec}
