"""What can go wrong when one model runs over several devices: one class for each thing a caller handles differently."""

from device_profiles.errors import EdgeError


class CheckpointError(EdgeError):
    """A checkpoint cannot be read: unknown architecture or format, tensors missing, truncated or of another shape."""


class TokenizerError(EdgeError):
    """A checkpoint brings no tokenizer, or one of a kind that is not handled."""


class ShardError(EdgeError):
    """A shard set is incomplete, damaged, or belongs to another set."""


class OutputError(EdgeError):
    """A file that was asked for cannot be written."""


class PartitionError(EdgeError):
    """The nodes cannot hold the model, or a nodes file is not valid."""


class MemoryLimitError(EdgeError):
    """A memory limit cannot be kept; the message names the number that would work."""


class KeyFileError(EdgeError):
    """The cluster's key file is missing, damaged, or readable by others."""


class PeerError(EdgeError):
    """A peer left, stalled past the deadline, holds another key, or sent what is no message of this protocol."""


class NodesLostError(EdgeError):
    """Too many nodes are lost: those that are left do not hold the whole model."""


class PromptError(EdgeError):
    """A request cannot be run: too long for the context, or with values out of range."""


class ContextLengthError(PromptError):
    """A prompt does not fit into the context."""


class BusyError(EdgeError):
    """More requests wait than the server keeps; a later one may succeed."""


class CancelledError(EdgeError):
    """The request was cancelled by its client."""
