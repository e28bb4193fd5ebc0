"""Entropy coder for 8-bit latents: integer tables, one format, the same bytes from C and from NumPy."""

from edge_runtime.entropy.codec import EntropyCodec, decode_layers, encode_layers
from edge_runtime.entropy.counting import CountOptions, count_tables, join_tables
from edge_runtime.entropy.errors import EntropyError, TableError
from edge_runtime.entropy.tables import TableSet, parse_tables

__all__ = [
    "CountOptions",
    "EntropyCodec",
    "EntropyError",
    "TableError",
    "TableSet",
    "count_tables",
    "decode_layers",
    "encode_layers",
    "join_tables",
    "parse_tables",
]
