"""Errors that several modules of this package raise. They live here so that catching them imports no converter."""

from device_profiles.errors import EdgeError


class ConversionError(EdgeError):
    """A converter could not express the network; the message says which step failed."""


class UnsupportedRouteError(EdgeError):
    """This kind of source cannot become this kind of artefact; the message names the source that can."""


class CalibrationError(EdgeError):
    """int8 was asked for without usable calibration data."""


class VerificationError(EdgeError):
    """What was exported does not compute what the source computes."""


def first_line(error: BaseException) -> str:
    """A foreign error as part of a message: its type and the first line of its text."""
    cause = error.__cause__ or error
    return f"{type(cause).__name__}: {(str(cause).strip() or 'no message').splitlines()[0][:300]}"
