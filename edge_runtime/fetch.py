"""Fetch the blocks that an incoming file lacks over HTTP with range requests; every block's hash is checked.

Runs of missing blocks are asked for in one request. A lost connection costs the block that was under way.
"""

import hashlib
import http.client
import logging
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from device_profiles.errors import EdgeError
from edge_runtime.blocks import Block
from edge_runtime.broker_url import parse_url
from edge_runtime.durable import lacks_room
from edge_runtime.messages import BLOCK_BYTES, DeployStart
from edge_runtime.tls import tls_context
from edge_runtime.transfer import IncomingFile, block_length, missing_blocks

log = logging.getLogger(__name__)
_TIMEOUT_S = 10.0
_FIRST_PAUSE_S = 0.5
_MAX_PAUSE_S = 8.0
_HASH_BYTES = 32
_MAX_RUN_BLOCKS = 256  # 16 MiB in one request


class FetchError(EdgeError):
    """The server cannot be reached, or does not serve what was announced."""


@dataclass(frozen=True)
class FetchOptions:
    """How long to try. `tls` is for https."""

    give_up_s: float = 20.0  # without one more block
    tls: ssl.SSLContext | None = None


def fetch_options(broker: str) -> FetchOptions:
    """Over https with the certificates of the broker's URL, if it has any."""
    files = parse_url(broker).tls
    return FetchOptions(tls=None if files is None else tls_context(files))


class Fetcher:
    """Fetches one file.

    Args:
        start: The announcement, with its `url`.
        incoming: Where the blocks go.
        options: See `FetchOptions`.
        progress: Called after every block; True stops the fetch.

    Raises:
        FetchError: A URL that is neither http nor https.
    """

    def __init__(
        self, start: DeployStart, incoming: IncomingFile, options: FetchOptions, progress: Callable[[], bool]
    ) -> None:
        self._start, self._incoming, self._options, self._progress = start, incoming, options, progress
        self._url = _parse(start.url or "")
        self._hashes: bytes | None = None

    def run(self) -> None:
        """Until nothing is missing, or `progress` says stop.

        Raises:
            FetchError: No block within `give_up_s`, or other content than was announced.
            OSError: The disk has no room.
        """
        last, pause_s, problem = time.monotonic(), _FIRST_PAUSE_S, ""
        before = self._missing_count()
        while self._missing_count():
            try:
                if self._attempt():
                    return
            except (OSError, http.client.HTTPException) as error:
                if lacks_room(error):
                    raise
                problem = f"{type(error).__name__}: {error}"
                log.info("fetching %s: %s", self._url.netloc, problem)
            missing = self._missing_count()
            if missing < before:
                last, pause_s, before = time.monotonic(), _FIRST_PAUSE_S, missing
            elif time.monotonic() - last > self._options.give_up_s:
                raise FetchError(f"Wanted {self._start.size} B from {self._url.netloc}, found: {problem or 'nothing'}.")
            elif missing:
                if self._progress():
                    return
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, _MAX_PAUSE_S)

    def _missing_count(self) -> int:
        return len(missing_blocks(self._incoming.have, self._incoming.count))

    def _attempt(self) -> bool:
        """One connection: the list of hashes if it is not known, then run after run; True when told to stop."""
        connection = self._connect()
        try:
            if self._hashes is None:
                self._hashes = self._fetch_hashes(connection)
            while runs := block_runs(missing_blocks(self._incoming.have, self._incoming.count)):
                if self._fetch_run(connection, *runs[0]):
                    return True
        finally:
            connection.close()
        return False

    def _connect(self) -> http.client.HTTPConnection:
        host, port = self._url.hostname or "", self._url.port
        if self._url.scheme == "https":
            context = self._options.tls or ssl.create_default_context()
            return http.client.HTTPSConnection(host, port, timeout=_TIMEOUT_S, context=context)
        return http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)

    def _fetch_hashes(self, connection: http.client.HTTPConnection) -> bytes:
        connection.request("GET", self._url.path + ".blocks")
        answer = connection.getresponse()
        wanted = self._incoming.count * _HASH_BYTES
        data = answer.read(wanted + 1)
        told = self._start.blocks_sha256  # without it a wrong list shows at the end, in the hash of the whole
        good = len(data) == wanted and told in (None, hashlib.sha256(data).hexdigest())
        if answer.status != 200 or not good:
            raise FetchError(
                f"Wanted the {wanted} B of block hashes that were announced, found status {answer.status} and {len(data)} B."
            )
        answer.read()
        return data

    def _fetch_run(self, connection: http.client.HTTPConnection, first: int, last: int) -> bool:
        begin, end = first * BLOCK_BYTES, min(self._start.size, (last + 1) * BLOCK_BYTES)
        connection.request("GET", self._url.path, headers={"Range": f"bytes={begin}-{end - 1}"})
        answer = connection.getresponse()
        if answer.status != 206 or answer.getheader("Content-Range") != f"bytes {begin}-{end - 1}/{self._start.size}":
            raise FetchError(
                f"Wanted bytes {begin}-{end - 1} of {self._start.size} from {self._url.netloc}, found status "
                f"{answer.status}, range {answer.getheader('Content-Range')}."
            )
        for index in range(first, last + 1):
            content = answer.read(block_length(self._start.size, index))
            if len(content) != block_length(self._start.size, index):
                raise http.client.IncompleteRead(content)
            if hashlib.sha256(content).digest() != self._wanted(index):
                raise http.client.HTTPException(f"block {index} was damaged on its way")
            self._incoming.add(Block(index, content))
            if self._progress():
                return True
        answer.read()
        return False

    def _wanted(self, index: int) -> bytes:
        return (self._hashes or b"")[index * _HASH_BYTES : (index + 1) * _HASH_BYTES]


def block_runs(missing: list[int]) -> list[tuple[int, int]]:
    """Neighbouring indices as (first, last), no run longer than one request carries."""
    runs: list[tuple[int, int]] = []
    for index in missing:
        if runs and runs[-1][1] == index - 1 and index - runs[-1][0] < _MAX_RUN_BLOCKS:
            runs[-1] = (runs[-1][0], index)
        else:
            runs.append((index, index))
    return runs


def _parse(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
        raise FetchError(f"Wanted an http or https URL of an artefact, found {url[:100]!r}.")
    return parts
