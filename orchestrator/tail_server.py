"""Serve tails and whole models over MQTT: requests wait in a queue by deadline, the engine runs in worker threads.

A worker that waits reads the connection itself, so that the thread which read a request also runs it; a model that takes
longer than a thread switch costs hands the connection back first. The reply topic is derived from the request's topic
(never from a field that the sender chose), and every reply says how long the request waited, was decoded and ran.
"""

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from edge_runtime.artefact import open_artefact
from edge_runtime.messages import requests_filter
from edge_runtime.mqtt import LinkOptions, MqttError, MqttLink
from edge_runtime.preprocess import ImageError
from edge_runtime.session import InputError
from edge_runtime.wire import (
    ENVELOPE_BYTES,
    FLAG_DIRECT,
    FLAG_TRACED,
    FormatError,
    Reply,
    Status,
    WireError,
    decode_frame,
    encode_tensors,
    pack_reply,
    unpack_envelope,
)
from orchestrator.request_queue import Request, RequestQueue, batch_due_at
from orchestrator.serving.arrivals import Arrivals
from orchestrator.serving.fair_share import FairShare
from orchestrator.serving.route import derive_route
from orchestrator.serving.served import Served, ServeError, by_key, read_inputs, serve_artefact
from orchestrator.serving.statistics import ModelStatistics, ServerCounters

__all__ = [
    "ServeError",
    "Served",
    "ServerOptions",
    "TailServer",
    "derive_route",
    "read_inputs",
    "serve_artefact",
    "serve_tail",
]

log = logging.getLogger(__name__)
_IDLE_S = 1.0
_QUICK_S = 0.001  # a model this quick runs before anybody else could read the connection


class DataPlane(Protocol):
    """A second way for requests and replies, beside MQTT."""

    def admit(self, device: str, public_key: bytes) -> bytes:
        """Let a device in; the offer to send to it."""

    def send(self, peer: bytes, pieces: Sequence[bytes | memoryview]) -> None:
        """Answer whoever asked."""


class Tracer(Protocol):
    """Notes what became of a traced request."""

    def served(self, trace_id: bytes, model: str, times: Sequence[float]) -> None:
        """A request was answered; `times` are when it was received, taken, decoded and ran (perf_counter)."""


@dataclass(frozen=True)
class ServerOptions:
    """How to serve. `group` is the shared subscription; None when the broker has none."""

    workers: int = 1
    queue_limit: int = 64
    group: str | None = "tails"
    qos: int = 1  # upper limit: a request's own QoS decides
    nodelay: bool = True
    batch_wait_ms: float = 0.0  # how long a batch may wait for more requests, where a model takes batches
    device_rate: float = 0.0  # requests a second that one device may send; 0: any number
    device_burst: int = 16


@dataclass(slots=True)
class _Work:
    """A request under way: its frame is decoded, or it was refused."""

    request: Request
    taken: float
    arrays: list[np.ndarray]
    decoded: float


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
        self._models: Mapping[str, Served] = by_key(models)
        self._queue = RequestQueue(self._options.queue_limit)
        self._arrivals = Arrivals(self._queue)
        self._lock = threading.Lock()  # guards queue, shares and counters; never held while publishing
        self._shares = FairShare(self._options.device_rate, self._options.device_burst)
        self._order = 0
        self._busy_workers = 0
        self._statistics = {id(model): ModelStatistics(model.name, model.keys) for model in models}
        self._needs_s: dict[str, float] = {}
        self._closing = False
        self.counters = ServerCounters()
        self.data_plane: DataPlane | None = None
        self.tracer: Tracer | None = None
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

    @property
    def waiting(self) -> int:
        """Requests that wait for a worker."""
        return len(self._queue)

    @property
    def statistics(self) -> list[ModelStatistics]:
        """Of each model; read them under no lock, they only grow."""
        return list(self._statistics.values())

    def drain(self, *, timeout_s: float = 10.0) -> None:
        """Take no new request, answer those that are here, and close: other workers of the group go on meanwhile."""
        self._link.unsubscribe(timeout_s=timeout_s / 2)
        deadline = time.monotonic() + timeout_s / 2
        while (len(self._queue) or self._busy_workers) and time.monotonic() < deadline:
            time.sleep(0.005)
        self.close()

    def close(self) -> None:
        """Stop answering; requests in the queue are not answered any more."""
        self._closing = True
        self._arrivals.close()
        self._link.close()
        for worker in self._workers:
            if worker.ident is not None:
                worker.join(timeout=5)

    def __enter__(self) -> "TailServer":
        """Start."""
        return self.start()

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def accept(self, topic: str, payload: bytes | memoryview, qos: int, peer: bytes | None = None) -> None:
        """Take a request in, from whichever plane.

        Args:
            topic: Its request topic: says which device asks for which model.
            payload: Envelope and frame.
            qos: Of the reply.
            peer: Who asked on the direct data plane.

        Raises:
            MessageError: Not a request topic.
            WireError: Not an envelope.
        """
        now = time.perf_counter()
        key, reply_topic, device = derive_route(topic)
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
            traced=bool(envelope.flags & FLAG_TRACED),
            peer=peer,
        )
        if envelope.flags & FLAG_DIRECT:
            self._offer_direct(request, device)
            return
        with self._lock:
            self.counters.received += 1
            allowed = self._shares.allows(device, now)
            refused = self._queue.push(request) if allowed else request
        if refused is None:  # else as many wait as before
            self._arrivals.announce()
            if peer is not None:
                self._link.loop.wake()  # a worker may be waiting for MQTT
        elif allowed:
            self._refuse(refused, Status.BUSY, f"{self._options.queue_limit} requests wait already")
        else:
            self._refuse(
                request, Status.BUSY, f"{device} sends more than {self._shares.per_second:g} requests a second"
            )

    def _on_request(self, topic: str, payload: bytes, qos: int) -> None:
        self.accept(topic, payload, qos)

    def _offer_direct(self, request: Request, device: str) -> None:
        if self.data_plane is None:
            self._refuse(request, Status.UNKNOWN_MODEL, "this tail has no direct data plane")
            return
        offer = self.data_plane.admit(device, bytes(request.frame))
        self._send(request, (pack_reply(Reply(request.request_id, Status.OK)), offer))

    def _work(self) -> None:
        self._arrivals.enrol()
        while not self._closing:
            if not self._link.wait_for(self._arrivals, _IDLE_S):
                continue
            batch, hopeless = self._take()
            for late in hopeless:
                self._refuse(late, Status.EXPIRED, "the request's budget ends before the model could")
            if not batch:
                continue
            try:
                self._answer(batch)
            except Exception:
                log.exception("a request for %s could not be answered", batch[0].key)
                for request in batch:
                    self._refuse(request, Status.FAILED, "the model failed; see the tail's log")
            finally:
                with self._lock:
                    self._busy_workers -= 1

    def _take(self) -> tuple[list[Request], list[Request]]:
        """A batch for this worker; waits for more requests where that was asked for and deadlines allow it."""
        wait_s = self._options.batch_wait_ms / 1000
        with self._lock:
            first = self._queue.first
            model = self._models.get(first.key) if first is not None else None
            limit = model.batch_limit if model is not None else 1
        if first is not None and wait_s > 0 and limit > 1:
            due = batch_due_at(first, wait_s=wait_s, needs_s=self._needs_s.get(first.key, 0.0))
            self._link.loop.hand_back()
            while (left := due - time.perf_counter()) > 0 and self._queue.count(first.key) < limit:
                self._arrivals.wait_for_more(left)
        with self._lock:
            first = self._queue.first
            model = self._models.get(first.key) if first is not None else None
            limit = model.batch_limit if model is not None else 1
            batch, hopeless = self._queue.take(time.perf_counter(), limit=limit, needs_s=self._needs_s)
            self._busy_workers += bool(batch)
        return batch, hopeless

    def _answer(self, batch: Sequence[Request]) -> None:
        model = self._models.get(batch[0].key)
        if model is None:
            for request in batch:
                self._refuse(request, Status.UNKNOWN_MODEL, f"no model with key {request.key} here")
            return
        if self._needs_s.get(batch[0].key, 1.0) > _QUICK_S or len(self._queue):
            self._link.loop.hand_back()
        works = [work for request in batch if (work := self._decode(model, request)) is not None]
        if not works:
            return
        begun = time.perf_counter()
        try:
            if len(works) > 1 and model.run_batch is not None:
                outputs = model.run_batch([work.arrays for work in works])
            else:
                outputs = [model.run(work.arrays) for work in works]
        except InputError as error:
            for work in works:
                self._refuse(work.request, Status.BAD_REQUEST, str(error))
            return
        ended = time.perf_counter()
        with self._lock:
            statistics = self._statistics[id(model)]
            statistics.ran(ended - begun)
            for key in model.keys:
                self._needs_s[key] = statistics.estimate.mean_s if statistics.estimate else 0.0
        for work, arrays in zip(works, outputs, strict=True):
            self._reply(model, work, arrays, ended)

    def _decode(self, model: Served, request: Request) -> _Work | None:
        taken = time.perf_counter()
        try:
            frame = decode_frame(request.frame, model.limits)
            if frame.cut_id != model.cut_ids[request.key]:
                raise FormatError(f"Wanted a frame of cut {request.key} as its topic says, found {frame.cut_id.hex()}.")
            return _Work(request, taken, model.read(frame), time.perf_counter())
        except (WireError, ImageError, InputError) as error:
            self._refuse(request, Status.BAD_REQUEST, str(error))
            return None

    def _reply(self, model: Served, work: _Work, outputs: Sequence[np.ndarray], ended: float) -> None:
        request = work.request
        queue_us = _us(work.taken - request.received)
        decode_us, tail_us = _us(work.decoded - work.taken), _us(ended - work.decoded)
        times = (queue_us, decode_us, tail_us, _us(request.received))
        reply = Reply(request.request_id, Status.OK, *times)
        pieces = encode_tensors(outputs, cut_id=model.cut_ids[request.key])
        with self._lock:  # counted first: who has the answer may look at once
            self.counters.answered += 1
            self._statistics[id(model)].add(len(request.frame), queue_us, decode_us, tail_us)
        self._send(request, (pack_reply(reply), *pieces))
        if request.traced and self.tracer is not None:
            self.tracer.served(request.request_id, model.name, (request.received, work.taken, work.decoded, ended))

    def _refuse(self, request: Request, status: Status, text: str) -> None:
        reply = Reply(request.request_id, status, queue_us=_us(time.perf_counter() - request.received))
        with self._lock:
            if status is Status.BUSY:
                self.counters.busy += 1
            elif status is Status.EXPIRED:
                self.counters.expired += 1
                self._relax(request.key)
            else:
                self.counters.refused += 1
        self._send(request, (pack_reply(reply), text.encode()[:500]))

    def _relax(self, key: str) -> None:
        """Forget outliers, when the estimate itself is why nothing is measured any more. Under the lock."""
        model = self._models.get(key)
        estimate = self._statistics[id(model)].estimate if model is not None else None
        if estimate is not None and key in self._needs_s:
            estimate.relax()
            self._needs_s[key] = estimate.mean_s

    def _send(self, request: Request, pieces: Sequence[bytes | memoryview]) -> None:
        if request.peer is not None and self.data_plane is not None:
            self.data_plane.send(request.peer, pieces)
            return
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


def _us(seconds: float) -> int:
    return int(1_000_000 * seconds)
