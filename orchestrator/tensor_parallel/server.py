"""The HTTP server: OpenAI's completions with server-sent events, models, health, Prometheus metrics; an API key."""

import asyncio
import contextlib
import hmac
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from device_profiles.errors import EdgeError
from orchestrator.tensor_parallel.api import Answer, ChatRequest, CompletionRequest, error_body, parse, to_request
from orchestrator.tensor_parallel.connections import HEAD_S
from orchestrator.tensor_parallel.control import Directory
from orchestrator.tensor_parallel.engine import Engine
from orchestrator.tensor_parallel.errors import (
    BusyError,
    ContextLengthError,
    MemoryLimitError,
    NodesLostError,
    PeerError,
    PromptError,
)
from orchestrator.tensor_parallel.generation import Generator
from orchestrator.tensor_parallel.jobs import Event, Job
from orchestrator.tensor_parallel.memory import resident_now, resident_peak
from orchestrator.tensor_parallel.text import Text

_BODY_LIMIT = 8 << 20
_BODY_S = HEAD_S  # until a request must be here whole


@dataclass(frozen=True)
class Service:
    """What the routes use."""

    engine: Engine
    generator: Generator
    text: Text
    lookup: int = 0
    drafts: int = 1
    api_key: str | None = None
    directory: Directory | None = None

    @property
    def model(self) -> str:
        """The served model's name."""
        return self.engine.cluster.shard_set.model


def build_app(service: Service) -> Starlette:
    """The application."""
    chat, text = asyncio.Semaphore(1), asyncio.Semaphore(1)  # a slow chat template holds up no other prompt
    routes = [
        Route("/v1/chat/completions", partial(_complete, service=service, kind="chat", turn=chat), methods=["POST"]),
        Route("/v1/completions", partial(_complete, service=service, kind="text", turn=text), methods=["POST"]),
        Route("/v1/models", partial(_models, service=service)),
        Route("/v1/models/{model:path}", partial(_models, service=service)),
        Route("/health", partial(_health, service=service)),
        Route("/metrics", partial(_metrics, service=service)),
    ]
    return Starlette(
        routes=routes,
        middleware=[Middleware(_Ending), Middleware(_KeyCheck, api_key=service.api_key)],
        exception_handlers={HTTPException: _no_route},
    )


async def _no_route(request: Request, error: Exception) -> Response:
    """Another path or method, as OpenAI's clients read it."""
    assert isinstance(error, HTTPException)
    found = f"Wanted a path of this API, found {request.method} {request.url.path}. See docs/tensor_parallel.md."
    return _error(error.status_code, found, "not_found")


class _Ending:
    """Ends what is cut off because the server ends: with an error that its client can read."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on; a task that is cancelled says so."""
        began = False

        async def noting(message: Message) -> None:
            nonlocal began
            began = began or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, noting)
        except asyncio.CancelledError:  # of the whole server: a client that leaves cancels a job, not a task
            found = "Wanted an answer, found that the server ends. Ask again."
            if began:  # only streams begin before they end
                last = b"data: " + error_body(found, "server_error", "CancelledError") + b"\n\n"
                await send({"type": "http.response.body", "body": last, "more_body": False})
            else:
                await _error(503, found, "CancelledError")(scope, receive, send)


class _KeyCheck:
    """Refuses requests below /v1 that do not bear the API key."""

    def __init__(self, app: ASGIApp, api_key: str | None) -> None:
        self._app, self._api_key = app, api_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, or answer 401."""
        if scope["type"] == "http" and self._api_key is not None and scope["path"].startswith("/v1/"):
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, b"Bearer " + self._api_key.encode()):
                await _error(401, "Wanted the API key as a bearer token.", "invalid_api_key")(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _error(status: int, message: str, code: str) -> Response:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return Response(error_body(message, kind, code), status, media_type="application/json")


def _from(error: EdgeError) -> Response:
    if isinstance(error, PromptError):
        code = "context_length_exceeded" if isinstance(error, ContextLengthError) else "PromptError"
        return _error(400, str(error), code)
    if isinstance(error, BusyError):
        return _error(429, str(error), "BusyError")
    unavailable = isinstance(error, NodesLostError | PeerError | MemoryLimitError)
    return _error(503 if unavailable else 500, str(error), type(error).__name__)


async def _complete(
    request: Request, *, service: Service, kind: Literal["chat", "text"], turn: asyncio.Semaphore
) -> Response:
    try:
        body = await asyncio.wait_for(_body(request), _BODY_S)
        asked = parse(body, ChatRequest if kind == "chat" else CompletionRequest)
        context, guessing = service.engine.settings.context, (service.lookup, service.drafts)
        # beside the streams, and one prompt of a kind at a time: a long one takes a processor for seconds
        async with turn:
            if await request.is_disconnected():
                return Response(status_code=499)
            wanted = await asyncio.to_thread(to_request, asked, service.text, guessing=guessing, context=context)
        events: asyncio.Queue[Event] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def put(event: Event) -> None:
            with contextlib.suppress(RuntimeError):  # the server ended
                loop.call_soon_threadsafe(events.put_nowait, event)

        job = service.generator.submit(wanted, put)
    except ClientDisconnect:
        return Response(status_code=499)
    except asyncio.TimeoutError:
        return _error(408, f"Wanted the whole request within {_BODY_S:g} s, found a part of it.", "timeout")
    except EdgeError as error:
        return _from(error)
    answer = Answer(service.model, kind, len(wanted.prompt))
    if asked.stream:
        usage = asked.stream_options is not None and bool(asked.stream_options.include_usage)
        return StreamingResponse(_stream(job, events, answer, usage=usage), media_type="text/event-stream")
    return await _collect(request, job, events, answer)


async def _body(request: Request) -> bytes:
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > _BODY_LIMIT:
            raise PromptError(f"Wanted a request of at most {_BODY_LIMIT} B, found more.")
    return body


async def _collect(request: Request, job: Job, events: "asyncio.Queue[Event]", answer: Answer) -> Response:
    """Wait for the end; a client that leaves cancels its request."""
    watch = asyncio.create_task(_cancel_when_left(request, job))
    text = ""
    try:
        while True:
            event = await events.get()
            text += event.text
            if event.error is not None:
                return _from(event.error)
            if event.finish is not None:
                return Response(answer.whole(text, event.finish, job.generated), media_type="application/json")
    finally:
        watch.cancel()


async def _cancel_when_left(request: Request, job: Job) -> None:
    """The body was read whole, so the next message is that the client left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    job.cancel()


async def _stream(job: Job, events: "asyncio.Queue[Event]", answer: Answer, *, usage: bool) -> AsyncIterator[bytes]:
    """Server-sent events; closing the connection cancels the request."""
    first = True
    try:
        while True:
            event = await events.get()
            if event.error is not None:
                error = event.error
                yield b"data: " + error_body(str(error), "server_error", type(error).__name__) + b"\n\n"
                return
            if event.text or event.finish or first:
                yield answer.chunk(event.text, event.finish, first=first)
                first = False
            if event.finish is not None:
                break
        if usage:
            yield answer.usage(job.generated)
        yield b"data: [DONE]\n\n"
    finally:
        job.cancel()


async def _models(request: Request, *, service: Service) -> Response:
    """All models, which is one, or the one that is named."""
    model = {"id": service.model, "object": "model", "created": int(time.time()), "owned_by": "headtail"}
    named = request.path_params.get("model")
    if named is not None and named != service.model:
        return _error(404, f"Wanted model {named}, found {service.model} alone.", "model_not_found")
    if named is not None:
        return Response(msgspec.json.encode(model), media_type="application/json")
    return Response(msgspec.json.encode({"object": "list", "data": [model]}), media_type="application/json")


async def _health(_request: Request, *, service: Service) -> Response:
    """Nodes and what they do; 503 while none can answer."""
    cluster = service.engine.cluster
    running, waiting = service.generator.load
    doing = service.engine.doing()
    nodes: list[dict[str, object]] = [
        {"name": node.name, "rank": rank, "alive": rank in cluster.alive, **doing.get(rank, {})}
        for rank, node in enumerate(cluster.nodes)
    ]
    announced = {} if service.directory is None else service.directory.nodes
    for node in nodes:
        heard = announced.get(str(node["name"]))
        if heard is not None:
            node |= {"announced": heard.state, "address": heard.address}
    healthy = not service.generator.broken
    body = {"status": "ok" if healthy else "unavailable", "nodes": nodes, "running": running, "waiting": waiting}
    return Response(msgspec.json.encode(body), 200 if healthy else 503, media_type="application/json")


async def _metrics(_request: Request, *, service: Service) -> Response:
    """Prometheus text format."""
    counters, (running, waiting) = service.generator.counters, service.generator.load
    rows: list[tuple[str, str, str, float]] = [
        ("requests_total", "counter", "Requests that got a slot.", counters.requests),
        ("requests_failed_total", "counter", "Requests that ended with an error.", counters.failed),
        ("prompt_tokens_total", "counter", "Tokens of prompts.", counters.prompt_tokens),
        ("prompt_tokens_reused_total", "counter", "Of these, found in a cache.", counters.reused_tokens),
        ("generated_tokens_total", "counter", "Tokens generated.", counters.generated_tokens),
        ("guessed_tokens_total", "counter", "Tokens guessed by prompt lookup.", counters.guessed_tokens),
        ("accepted_tokens_total", "counter", "Of these, right.", counters.accepted_tokens),
        ("steps_total", "counter", "Passes through the model.", counters.steps),
        ("step_seconds_total", "counter", "Time in them.", counters.step_s),
        ("communication_seconds_total", "counter", "Of this, sums over ranks.", counters.communicated_s),
        ("restarts_total", "counter", "Epochs begun again after a loss.", counters.restarts),
        ("requests_running", "gauge", "Requests that run.", running),
        ("requests_waiting", "gauge", "Requests that wait for a slot.", waiting),
        ("nodes_alive", "gauge", "Nodes of the epoch.", len(service.engine.cluster.alive)),
        ("resident_bytes", "gauge", "Memory of the master.", resident_now()),
        ("resident_peak_bytes", "gauge", "Its peak.", resident_peak()),
    ]
    lines = []
    for name, kind, help_text, value in rows:
        full = f"headtail_llm_{name}"
        # all digits of the value: a counter goes on by ones
        lines += [f"# HELP {full} {help_text}", f"# TYPE {full} {kind}", f"{full} {value}"]
    return PlainTextResponse("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4")
