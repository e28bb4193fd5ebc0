"""The web application: pages, their live parts as server-sent events, JSON, Prometheus. It changes nothing in the fleet."""

import asyncio
import base64
import hmac
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy.exc import DBAPIError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from device_profiles.errors import EdgeError
from orchestrator.dashboard.collector import Collector
from orchestrator.dashboard.metrics import exposition
from orchestrator.dashboard.pages import device_page, overview, rollout_page
from orchestrator.dashboard.render import PARTS, Renderer
from orchestrator.fleet.errors import UnknownError
from orchestrator.fleet.store import Store

log = logging.getLogger(__name__)
STATIC = Path(__file__).parent / "static"
_EVERY_S = 1.0
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Dashboard:
    """The routes.

    Args:
        store: Read only.
        collector: Connected, or still connecting.
        password: Asked for by HTTP Basic (any user name); null asks nobody.
    """

    def __init__(self, store: Store, collector: Collector, *, password: str | None = None) -> None:
        self._store = store
        self._collector = collector
        self._password = password
        self._renderer = Renderer(self._read)

    def application(self) -> Starlette:
        """The ASGI application."""
        routes = [
            Route("/", self._page),
            Route("/devices/{name:path}", self._page),
            Route("/rollouts/{name:path}", self._page),
            Route("/events/{kind}", self._events),
            Route("/metrics", self._metrics),
            Route("/api/overview", self._api),
            Route("/healthz", self._health),
            Mount("/static", StaticFiles(directory=STATIC)),
        ]
        return Starlette(routes=routes, middleware=[Middleware(BaseHTTPMiddleware, dispatch=self._guard)])

    def _read(self, kind: str, name: str) -> Any:  # noqa: ANN401 - one of three pages
        if kind == "device":
            return device_page(self._store, self._collector, name)
        if kind == "rollout":
            return rollout_page(self._store, name)
        return overview(self._store, self._collector, name)

    async def _page(self, request: Request) -> Response:
        kind, name = "overview", request.query_params.get("search", "")[:100]
        if "name" in request.path_params:
            kind = "device" if request.url.path.startswith("/devices/") else "rollout"
            name = request.path_params["name"]
        try:
            return HTMLResponse(await run_in_threadpool(self._renderer.page, kind, name))
        except UnknownError as error:
            return HTMLResponse(self._renderer.error(str(error)), 404)
        except DBAPIError as error:
            log.warning("the database is not to be had: %s", error.orig)
            return HTMLResponse(self._renderer.error("The fleet's database is not to be had. Look again soon."), 503)

    async def _events(self, request: Request) -> Response:
        kind, name = request.path_params["kind"], request.query_params.get("name", "")[:200]
        if kind not in PARTS:
            return PlainTextResponse("no such page", 404)
        return StreamingResponse(self._changes(request, kind, name), media_type="text/event-stream")

    async def _changes(self, request: Request, kind: str, name: str) -> AsyncIterator[bytes]:
        sent: dict[str, str] = {}
        while not await request.is_disconnected():
            try:
                parts = await run_in_threadpool(self._renderer.parts, kind, name)
            except EdgeError:
                return
            except DBAPIError as error:  # the browser asks again
                log.warning("the database is not to be had: %s", error.orig)
                return
            for part, html in parts.items():
                if sent.get(part) != html:
                    sent[part] = html
                    yield b"event: part\ndata: " + msgspec.json.encode({"part": part, "html": html}) + b"\n\n"
            yield b": still here\n\n"
            await asyncio.sleep(_EVERY_S)

    async def _metrics(self, _request: Request) -> Response:
        page = await run_in_threadpool(overview, self._store, self._collector)
        return Response(exposition(page), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _api(self, _request: Request) -> Response:
        page = await run_in_threadpool(overview, self._store, self._collector)
        body = {"connected": page.connected, "summary": page.summary, "figures": page.figures, "alerts": page.alerts}
        return Response(msgspec.json.encode(body), media_type="application/json")

    async def _health(self, _request: Request) -> Response:
        connected = self._collector.connected
        return PlainTextResponse("ok" if connected else "no broker", 200 if connected else 503)

    async def _guard(self, request: Request, proceed: Callable[[Request], Awaitable[Response]]) -> Response:
        if self._password is None or _knows(request.headers.get("authorization", ""), self._password):
            response = await proceed(request)
        else:
            response = PlainTextResponse("password?", 401, {"WWW-Authenticate": 'Basic realm="headtail"'})
        response.headers.update(_HEADERS)
        return response


def _knows(header: str, password: str) -> bool:
    scheme, _, value = header.partition(" ")
    if scheme.lower() != "basic":
        return False
    try:
        found = base64.b64decode(value, validate=True).partition(b":")[2]
    except ValueError:
        return False
    return hmac.compare_digest(found, password.encode())
