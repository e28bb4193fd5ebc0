"""Named errors of the microcontroller route."""

from device_profiles.errors import EdgeError


class ModelFileError(EdgeError):
    """The bytes are not an intact int8 ``.tflite`` file."""


class UnsupportedOpError(EdgeError):
    """The network holds an operator, or a form of one, that the C generator does not know."""


class ScheduleError(EdgeError):
    """A plan can not be turned into C, or breaks one of its own rules."""


class ToolchainError(EdgeError):
    """A compiler or emulator is missing, or failed."""


class ProofError(EdgeError):
    """The generated C did not give the integers of the reference engine."""
