"""Named errors of the entropy coder."""

from device_profiles.errors import EdgeError
from edge_runtime.wire import WireError


class EntropyError(WireError):
    """Bytes that are not a layer of this table set, or values that it cannot carry."""


class EntropyTruncatedError(EntropyError):
    """A layer ends before its symbols do."""


class EntropyTrailingError(EntropyError):
    """Bytes are left over behind a layer's symbols."""


class EntropyCorruptError(EntropyError):
    """A layer is not what an encoder writes: damaged, or coded with other tables."""


class EntropyShapeError(EntropyError):
    """Tensors or a number of layers that do not belong to the table set."""


class TableError(EdgeError):
    """A table set is not valid or not in canonical form."""
