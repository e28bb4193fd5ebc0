"""Serve artefacts to devices over HTTP: files named by their sha256, in ranges, with the list of their blocks' hashes.

The content is protected by signatures and hashes that devices check, not by the connection; with a TLS context the
connection asks for the device's certificate as well.
"""

import contextlib
import hashlib
import logging
import os
import re
import shutil
import ssl
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from device_profiles.errors import EdgeError
from edge_runtime.artefact import file_sha256
from edge_runtime.messages import BLOCK_BYTES

log = logging.getLogger(__name__)
_PATH = re.compile(r"/artefacts/([0-9a-f]{64}\.zip(?:\.blocks)?)\Z")
_METADATA = re.compile(r"/tuf/((?:\d{1,16}\.(?:root|targets|snapshot)|timestamp)\.json)\Z")
_RANGE = re.compile(r"bytes=(\d{1,12})-(\d{0,12})\Z")
_CHUNK_BYTES = 256 << 10
_TIMEOUT_S = 30.0
_MAX_CONNECTIONS = 256


class ServeArtefactsError(EdgeError):
    """Artefacts cannot be served there."""


@dataclass(frozen=True)
class Offer:
    """Where a device fetches a file, and what its list of block hashes must be."""

    url: str
    zip_sha256: str
    blocks_sha256: str
    size: int


class ArtefactServer:
    """An HTTP server for one folder, in threads of its own; use as a context or `close` it.

    Args:
        folder: Where offered files are kept; what is there already is served too.
        host: Address to listen on.
        port: 0 takes a free one.
        advertise: Host name that devices use; `host` when null.
        tls: Of the server; plain HTTP when null.
        metadata: Folder with the fleet's published TUF metadata; served below /tuf.

    Raises:
        ServeArtefactsError: The address cannot be listened on.
    """

    def __init__(
        self,
        folder: Path,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        advertise: str | None = None,
        tls: ssl.SSLContext | None = None,
        metadata: Path | None = None,
    ) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self._server = _Server((host, port), folder, tls, metadata)
        except OSError as error:
            raise ServeArtefactsError(f"Wanted to serve artefacts on {host}:{port}, found: {error}.") from error
        self.port = int(self._server.server_address[1])
        scheme = "https" if tls is not None else "http"
        place = f"{scheme}://{advertise or host}:{self.port}"
        self.url, self.metadata_url = f"{place}/artefacts", f"{place}/tuf"
        self._thread = threading.Thread(target=self._server.serve_forever, name="artefacts", daemon=True)
        self._thread.start()

    def offer(self, archive: Path) -> Offer:
        """Keep a copy of a packed artefact under its hash, and say where it is; the same file twice is one."""
        digest = file_sha256(archive)
        target = self._folder / f"{digest}.zip"
        listed = self._folder / f"{digest}.zip.blocks"
        if not target.is_file():
            partial = target.with_name(f".{target.name}.{os.getpid()}.part")
            shutil.copyfile(archive, partial)
            partial.replace(target)
        if not listed.is_file():
            partial = listed.with_name(f".{listed.name}.{os.getpid()}.part")
            partial.write_bytes(block_hashes(target))
            partial.replace(listed)
        return Offer(f"{self.url}/{digest}.zip", digest, file_sha256(listed), target.stat().st_size)

    def close(self) -> None:
        """Stop listening; the files stay."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)

    def __enter__(self) -> "ArtefactServer":
        """Serves already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()


def block_hashes(path: Path) -> bytes:
    """sha256 of every block of `BLOCK_BYTES`, 32 bytes each, in order."""
    hashes = []
    with path.open("rb") as stream:
        while block := stream.read(BLOCK_BYTES):
            hashes.append(hashlib.sha256(block).digest())
    return b"".join(hashes)


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """First byte and the one after the last of a single range within `size`; null when it cannot be given."""
    match = _RANGE.match(header or "")
    if match is None:
        return None
    first, last = int(match[1]), min(int(match[2] or size - 1), size - 1)
    return (first, last + 1) if first <= last else None


class _Server(ThreadingHTTPServer):
    """Knows the folder; each connection does its TLS handshake in its own thread."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(
        self, address: tuple[str, int], folder: Path, tls: ssl.SSLContext | None, metadata: Path | None
    ) -> None:
        self.folder, self.tls, self.metadata = folder, tls, metadata
        self.room = threading.BoundedSemaphore(_MAX_CONNECTIONS)
        super().__init__(address, _Handler)

    def process_request_thread(self, request, client_address) -> None:  # type: ignore[no-untyped-def] # noqa: ANN001 - socketserver's own types
        if not self.room.acquire(blocking=False):
            self.shutdown_request(request)  # the device tries again later
            return
        try:
            request.settimeout(_TIMEOUT_S)
            if self.tls is not None:
                try:
                    request = self.tls.wrap_socket(request, server_side=True)
                except (OSError, ssl.SSLError) as error:
                    log.info("no TLS with %s: %s", client_address[0], error)
                    self.shutdown_request(request)
                    return
            with contextlib.suppress(OSError):  # the device left
                self.finish_request(request, client_address)
            self.shutdown_request(request)
        finally:
            self.room.release()


class _Handler(BaseHTTPRequestHandler):
    """GET and HEAD of offered files."""

    protocol_version = "HTTP/1.1"
    timeout = _TIMEOUT_S
    server: _Server

    def do_GET(self) -> None:
        """A file, whole or one range of it."""
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        """The same without content."""
        self._answer(with_body=False)

    def log_message(self, format: str, *args: object) -> None:
        """To the log, not to standard error."""
        log.debug(format, *args)

    def _answer(self, *, with_body: bool) -> None:
        path = self._find()
        if path is None or not path.is_file():
            self.send_error(404)
            return
        size = path.stat().st_size
        asked = self.headers.get("Range")
        span = (0, size) if asked is None else parse_range(asked, size)
        if span is None:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{size}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200 if asked is None else 206)
        if asked is not None:
            self.send_header("Content-Range", f"bytes {span[0]}-{span[1] - 1}/{size}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(span[1] - span[0]))
        self.end_headers()
        if with_body:
            self._send(path, *span)

    def _find(self) -> Path | None:
        if match := _PATH.match(self.path):
            return self.server.folder / match[1]
        match = _METADATA.match(self.path)
        return self.server.metadata / match[1] if match and self.server.metadata else None

    def _send(self, path: Path, first: int, end: int) -> None:
        with path.open("rb") as stream:
            stream.seek(first)
            while first < end:
                chunk = stream.read(min(_CHUNK_BYTES, end - first))
                if not chunk:
                    self.close_connection = True
                    return
                first += len(chunk)
                try:
                    self.wfile.write(chunk)
                except OSError:  # the device left
                    self.close_connection = True
                    return
