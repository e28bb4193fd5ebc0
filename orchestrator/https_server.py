"""A small HTTP server for fixed routes, in threads of its own: bounded bodies, bounded waits, TLS as an option."""

import contextlib
import logging
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from device_profiles.errors import EdgeError

log = logging.getLogger(__name__)
_TIMEOUT_S = 10.0
_MAX_CONNECTIONS = 64


class ListenError(EdgeError):
    """An address cannot be listened on."""


@dataclass(frozen=True)
class Answer:
    """Status and content."""

    status: int
    content: bytes


Route = Callable[[bytes], Answer]


class HttpServer:
    """Serves `routes` (method, path) until `close`.

    Raises:
        ListenError: The address is taken, or not one of this machine.
    """

    def __init__(
        self,
        host: str,
        port: int,
        routes: Mapping[tuple[str, str], Route],
        tls: ssl.SSLContext | None,
        *,
        max_body_bytes: int,
    ) -> None:
        handler = _handler(routes, max_body_bytes)
        try:
            self._server = _Server((host, port), handler, tls)
        except OSError as error:
            raise ListenError(f"Wanted to listen on {host}:{port}, found: {error}. Try --port 0.") from error
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, name="https", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(
        self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler], tls: ssl.SSLContext | None
    ) -> None:
        self._tls = tls
        self._room = threading.BoundedSemaphore(_MAX_CONNECTIONS)
        super().__init__(address, handler)

    def process_request_thread(self, request, client_address) -> None:  # type: ignore[no-untyped-def] # noqa: ANN001 - socketserver's own types
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)  # it tries again later
            return
        try:
            request.settimeout(_TIMEOUT_S)
            with contextlib.suppress(OSError):  # a peer that left, or that speaks no TLS
                if self._tls is not None:
                    request = self._tls.wrap_socket(request, server_side=True)
                self.finish_request(request, client_address)
            self.shutdown_request(request)
        finally:
            self._room.release()


def _handler(routes: Mapping[tuple[str, str], Route], max_body_bytes: int) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = _TIMEOUT_S

        def do_GET(self) -> None:
            self._serve("GET")

        def do_POST(self) -> None:
            self._serve("POST")

        def _serve(self, method: str) -> None:
            route = routes.get((method, self.path))
            length = self.headers.get("Content-Length") or "0"
            if route is None or not length.isascii() or not length.isdigit() or int(length) > max_body_bytes:
                self.send_error(404 if route is None else 413)
                return
            answer = route(self.rfile.read(int(length)))
            self.send_response(answer.status)
            self.send_header("Content-Length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        def log_message(self, format: str, *args: object) -> None:
            log.debug(format, *args)  # never the body

    return Handler
