"""HTTP connections: a request's head must come in time, and there are only so many connections."""

import asyncio

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_S = 30.0  # until the head of a request must be here, counted from the connection or from the head's first byte
_FEWEST = 256  # connections


class _Protocol(H11Protocol):
    """HTTP/1.1 that closes a connection whose request's head stays incomplete. Between requests uvicorn's own limit holds."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a head."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Take what came; wait on while it is no whole head."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._wait_no_more()
        super().connection_lost(exc)

    def _watch(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._wait_no_more()
        elif self._late is None:
            self._late = self.loop.call_later(HEAD_S, self.transport.close)

    def _wait_no_more(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


def http_config(app: ASGIApp, *, requests: int) -> uvicorn.Config:
    """How the application is served.

    Args:
        app: The application.
        requests: Most that run or wait at once; four times as many connections may be open, and 256 in any case. Requests
            on further ones get status 503.
    """
    return uvicorn.Config(
        app,
        http=_Protocol,
        ws="none",
        log_level="warning",
        lifespan="off",
        timeout_graceful_shutdown=2,
        limit_concurrency=max(_FEWEST, 4 * requests),
    )
