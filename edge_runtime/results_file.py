"""Where an agent's results go: JSON lines in a file or on standard output."""

import logging
import sys
from pathlib import Path
from typing import BinaryIO

import msgspec

from device_profiles.errors import EdgeError
from edge_runtime.durable import lacks_room
from edge_runtime.messages import Result

log = logging.getLogger(__name__)


class ResultsError(EdgeError):
    """Results cannot be written where they were asked for."""


class ResultsFile:
    """Appends one line for each result.

    Args:
        target: A path, or "-" for standard output.

    Raises:
        ResultsError: It cannot be opened.
    """

    def __init__(self, target: str) -> None:
        self._target, self._said = target, False
        try:
            self._stream: BinaryIO = sys.stdout.buffer if target == "-" else Path(target).open("ab")  # noqa: SIM115 - see `close`
        except OSError as error:
            raise ResultsError(
                f"Wanted to write results to {target}, found: {error}. Choose another --results."
            ) from error

    def write(self, result: Result) -> None:
        """Write a line; one for which the disk has no room comes with a later one, or is lost: the device goes on."""
        try:
            self._stream.write(msgspec.json.encode(result) + b"\n")
            self._stream.flush()
            self._said = False
        except OSError as error:
            if not lacks_room(error):
                raise
            if not self._said:
                log.error("Wanted to write results to %s, found: %s. Make room on the disk.", self._target, error)
            self._said = True

    def close(self) -> None:
        """Close the file; standard output stays open."""
        if self._target == "-":
            return
        try:
            self._stream.close()
        except OSError as error:
            if not lacks_room(error):
                raise
