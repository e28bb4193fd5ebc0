"""Serve tails and whole models over MQTT: requests come in on paho's thread, the engine runs in worker threads.

The reply topic is derived from the request's topic (never from a field that the sender chose), and every reply says how
long the request waited, was decoded and ran.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from queue import SimpleQueue

import numpy as np

from device_profiles.errors import EdgeError
from edge_runtime.artefact import Artefact, open_artefact
from edge_runtime.codecs import codecs_of
from edge_runtime.manifest import Manifest
from edge_runtime.messages import MessageError, parse_topic, requests_filter
from edge_runtime.mqtt import LinkOptions, MqttError, MqttLink
from edge_runtime.preprocess import ImageError, decode_image, prepare
from edge_runtime.session import InputError, open_session
from edge_runtime.wire import (
    CODEC_IMAGE,
    ENVELOPE_BYTES,
    RAW_CODECS,
    Codec,
    FormatError,
    Frame,
    Limits,
    Reply,
    Status,
    WireError,
    decode_frame,
    decode_tensors,
    encode_tensors,
    limits_of,
    pack_reply,
    unpack_envelope,
)
from orchestrator.request_queue import Request, RequestQueue

log = logging.getLogger(__name__)
MAX_IMAGE_BYTES = 32 << 20


class ServeError(EdgeError):
    """An artefact cannot be served."""


@dataclass(frozen=True)
class Served:
    """One model as the server sees it: the keys it answers to, what it accepts, how it reads and runs."""

    name: str
    keys: tuple[str, ...]
    limits: Limits
    read: Callable[[Frame], list[np.ndarray]]
    run: Callable[[Sequence[np.ndarray]], list[np.ndarray]]

    @cached_property
    def cut_ids(self) -> dict[str, bytes]:
        """The keys as they stand in a frame."""
        return {key: bytes.fromhex(key) for key in self.keys}


@dataclass(frozen=True)
class ServerOptions:
    """How to serve. `group` is the shared subscription; None when the broker has none."""

    workers: int = 1
    queue_limit: int = 64
    group: str | None = "tails"
    qos: int = 1  # upper limit: a request's own QoS decides
    nodelay: bool = True


@dataclass(slots=True)
class ServerCounters:
    """What became of the requests since the start."""

    received: int = 0
    answered: int = 0
    busy: int = 0
    expired: int = 0
    refused: int = 0  # unknown model, not decodable, model failed


def serve_artefact(artefact: Artefact, *, threads: int | None = None) -> Served:
    """Open a tail or a whole model.

    Raises:
        ServeError: A head.
        EngineError: The engine refuses it.
    """
    manifest = artefact.manifest
    if manifest.role == "head":
        raise ServeError(f"Wanted a tail or whole model to serve, found the head {artefact.folder}.")
    session = open_session(artefact, threads=threads)
    lock = threading.Lock()  # a session takes one caller at a time

    def run(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        with lock:
            return session.run(arrays)

    keys = manifest.cut.accepts if manifest.cut is not None else (artefact.key,)
    limits = limits_of(manifest.inputs)
    if manifest.preprocessing is not None:
        limits = Limits(max(limits.payload_bytes, MAX_IMAGE_BYTES), limits.tensor_bytes)
    codecs = codecs_of(artefact)
    return Served(manifest.model.name, keys, limits, lambda frame: read_inputs(frame, manifest, codecs), run)


def read_inputs(frame: Frame, manifest: Manifest, codecs: Mapping[int, Codec] = RAW_CODECS) -> list[np.ndarray]:
    """The model's inputs: from tensors, or for a whole model from an encoded picture.

    Raises:
        FormatError: A picture for a model that takes none.
        WireError: As the codec says.
        ImageError: The picture cannot be decoded.
    """
    if frame.codec != CODEC_IMAGE:
        return decode_tensors(frame, codecs)
    if manifest.preprocessing is None or len(manifest.inputs) != 1 or len(frame.layers) != 1:
        raise FormatError(f"Wanted tensors for {manifest.model.name}, found an encoded picture.")
    image = decode_image(bytes(frame.layers[0]))
    return [prepare(image, manifest.inputs[0], manifest.preprocessing)]


@lru_cache(maxsize=4096)
def derive_route(topic: str) -> tuple[str, str]:
    """Route key and reply topic of a request topic.

    Raises:
        MessageError: Not a request topic.
    """
    parsed = parse_topic(topic)
    if len(parsed.rest) != 4 or parsed.rest[:2] != ("off", "req"):
        raise MessageError(f"Wanted a request topic, found {topic[:200]!r}.")
    return parsed.rest[2], parsed.topics.reply(parsed.rest[3])


class TailServer:
    """Answers requests for several models until closed.

    Args:
        broker_url: mqtt://host:port.
        models: What to serve; no key twice.
        options: See `ServerOptions`.

    Raises:
        ServeError: Two models with one key.
    """

    def __init__(self, broker_url: str, models: Sequence[Served], options: ServerOptions | None = None) -> None:
        self._options = options or ServerOptions()
        self._models = _by_key(models)
        self._queue = RequestQueue(self._options.queue_limit)
        self._lock = threading.Lock()  # guards the queue and the counters; never held while publishing
        self._wake: SimpleQueue[bool] = SimpleQueue()  # one entry for each request, False to end a worker
        self._order = 0
        self.counters = ServerCounters()
        filters = tuple((requests_filter(key, group=self._options.group), self._options.qos) for key in self._models)
        link_options = LinkOptions(subscriptions=filters, nodelay=self._options.nodelay)
        self._link = MqttLink(broker_url, link_options, self._on_request)
        self._workers = [
            threading.Thread(target=self._work, name=f"tail-{index}", daemon=True)
            for index in range(self._options.workers)
        ]

    def start(self, *, timeout_s: float = 10.0) -> "TailServer":
        """Connect and begin to answer.

        Raises:
            NotConnectedError: No broker within the time.
            SubscriptionError: The broker refuses the requests' topics.
        """
        for worker in self._workers:
            worker.start()
        self._link.start()
        try:
            self._link.wait_connected(timeout_s)
        except BaseException:  # nobody else will: a `with` block was not entered
            self.close()
            raise
        return self

    @property
    def connected(self) -> bool:
        """Whether there is a connection to the broker."""
        return self._link.connected

    def close(self) -> None:
        """Stop answering; requests in the queue are not answered any more."""
        self._link.close()
        for _ in self._workers:
            self._wake.put(False)
        for worker in self._workers:
            worker.join(timeout=5)

    def __enter__(self) -> "TailServer":
        """Start."""
        return self.start()

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def _on_request(self, topic: str, payload: bytes, qos: int) -> None:
        now = time.perf_counter()
        key, reply_topic = derive_route(topic)
        view = memoryview(payload)
        envelope = unpack_envelope(view)
        self._order += 1
        request = Request(
            deadline=now + envelope.budget_ms / 1000,
            order=self._order,
            received=now,
            request_id=envelope.request_id,
            frame=view[ENVELOPE_BYTES:],
            reply_topic=reply_topic,
            key=key,
            qos=qos,
        )
        with self._lock:
            self.counters.received += 1
            refused = self._queue.push(request)
        if refused is None:  # else as many wait as before
            self._wake.put(True)
        else:
            self._refuse(refused, Status.BUSY, f"{self._options.queue_limit} requests wait already")

    def _work(self) -> None:
        while self._wake.get():
            with self._lock:
                request, expired = self._queue.pop(time.perf_counter())
            for late in expired:
                self._refuse(late, Status.EXPIRED, "the request's budget ended in the queue")
            if request is None:
                continue
            try:
                self._answer(request)
            except Exception:
                log.exception("a request for %s could not be answered", request.key)
                self._refuse(request, Status.FAILED, "the model failed; see the tail's log")

    def _answer(self, request: Request) -> None:
        taken = time.perf_counter()
        model = self._models.get(request.key)
        if model is None:
            self._refuse(request, Status.UNKNOWN_MODEL, f"no model with key {request.key} here")
            return
        try:
            frame = decode_frame(request.frame, model.limits)
            if frame.cut_id != model.cut_ids[request.key]:
                raise FormatError(f"Wanted a frame of cut {request.key} as its topic says, found {frame.cut_id.hex()}.")
            arrays = model.read(frame)
            decoded = time.perf_counter()
            outputs = model.run(arrays)
        except (WireError, ImageError, InputError) as error:
            self._refuse(request, Status.BAD_REQUEST, str(error))
            return
        ran = time.perf_counter()
        reply = Reply(
            request.request_id,
            Status.OK,
            queue_us=_us(taken - request.received),
            decode_us=_us(decoded - taken),
            tail_us=_us(ran - decoded),
            received_us=_us(request.received),
        )
        pieces = encode_tensors(outputs, cut_id=model.cut_ids[request.key])
        with self._lock:  # counted first: who has the answer may look at once
            self.counters.answered += 1
        self._send(request, (pack_reply(reply), *pieces))

    def _refuse(self, request: Request, status: Status, text: str) -> None:
        reply = Reply(request.request_id, status, queue_us=_us(time.perf_counter() - request.received))
        with self._lock:
            if status is Status.BUSY:
                self.counters.busy += 1
            elif status is Status.EXPIRED:
                self.counters.expired += 1
            else:
                self.counters.refused += 1
        self._send(request, (pack_reply(reply), text.encode()[:500]))

    def _send(self, request: Request, pieces: Sequence[bytes | memoryview]) -> None:
        try:
            self._link.publish_pieces(request.reply_topic, pieces, request.qos)
        except MqttError as error:  # the device has its own deadline
            log.warning("a reply on %s was not sent: %s", request.reply_topic, error)


def serve_tail(broker_url: str, *artefacts: Path | str, options: ServerOptions | None = None) -> TailServer:
    """Open tails and whole models; the returned server answers in a `with` block, or from `start` to `close`.

    Args:
        broker_url: mqtt://host:port.
        artefacts: Folders or .zip files.
        options: See `ServerOptions`.

    Raises:
        EdgeError: An artefact is refused, or two answer to one key.
    """
    return TailServer(broker_url, [serve_artefact(open_artefact(path)) for path in artefacts], options)


def _by_key(models: Sequence[Served]) -> Mapping[str, Served]:
    by_key: dict[str, Served] = {}
    for model in models:
        for key in model.keys:
            if key in by_key:
                raise ServeError(f"Wanted each route key once, found {key} for {by_key[key].name} and {model.name}.")
            by_key[key] = model
    return by_key


def _us(seconds: float) -> int:
    return int(1_000_000 * seconds)
