"""The root of every error that headtail raises on purpose.

A message says what was wanted, what was found (with values), where, and what to do next. Subclasses live beside the
code that raises them; there is one for each thing that a caller would handle differently.
"""

import errno

_OF_PATHS = {errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EROFS, errno.ENOSPC}


class EdgeError(Exception):
    """Root of headtail's own errors; the command line prints it as one line and exits 1."""


class BoardError(EdgeError):
    """A board is not known, or its file is not valid."""


class FitError(EdgeError):
    """A model does not fit a board; the message names the part and the gap."""


class MissingDependencyError(EdgeError):
    """A library of an optional extra is not installed; the message names the extra."""


def path_problem(error: OSError) -> str | None:
    """What a command line says of a file that cannot be used; null when the error is about something else."""
    if error.filename is None or error.errno not in _OF_PATHS:
        return None
    return f"{type(error).__name__}: Wanted to use {error.filename}, found: {error.strerror}. Check the path and its permissions."
