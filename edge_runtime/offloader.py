"""Run a head here and its tail on the host, with a deadline for every request and a local fallback.

Every call of `Offloader.infer` ends once: with the tail's answer, the local model's, or a named error.
"""

import logging
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from edge_runtime.answer import Answer
from edge_runtime.artefact import Artefact
from edge_runtime.attempt import Attempt, ms_since
from edge_runtime.broker_url import MqttError
from edge_runtime.clock_offset import ClockOffset, Exchange
from edge_runtime.codecs import codec_of, encode_first
from edge_runtime.early_exit import ExitGate
from edge_runtime.local_model import LocalInputs, LocalModel, local_inputs
from edge_runtime.messages import Topics
from edge_runtime.mqtt import LinkOptions, MqttLink
from edge_runtime.offload import (
    Breaker,
    Counters,
    DeadlineError,
    OffloadError,
    Pending,
    TailError,
    TailUnavailableError,
    Ticket,
    remote_wait_s,
)
from edge_runtime.offload_options import OffloadOptions, check_roles
from edge_runtime.session import open_session
from edge_runtime.tail_route import RouteOptions, TailRoute
from edge_runtime.wire import (
    FLAG_TRACED,
    REPLY_BYTES,
    Envelope,
    FormatError,
    Header,
    Limits,
    Reply,
    Status,
    WireError,
    decode_frame,
    decode_tensors,
    encode_image_file,
    frame_layers,
    pack_envelope,
    pack_heads,
    unpack_reply,
)

__all__ = ["OffloadOptions", "Offloader"]

log = logging.getLogger(__name__)
_MAX_MARGIN_S = 0.01  # to wake up and start the fallback
_REPLY_LIMITS = Limits(payload_bytes=64 << 20, tensor_bytes=64 << 20)  # not copied: a packet's size bounds a reply


class Offloader:
    """Head here, tail there.

    Args:
        broker_url: mqtt://host:port.
        device: This device's name on the wire.
        head: The head artefact; None sends the input itself to a whole model on the host.
        fallback: A whole model that answers when the tail cannot; a `LocalModel` stays open when this is closed.
        key: Route key of the whole model on the host, when there is no head.
        options: See `OffloadOptions`.

    Raises:
        OffloadError: Neither head nor key, a key that is none, or an artefact of another role.
    """

    def __init__(
        self,
        broker_url: str,
        device: str,
        *,
        head: Artefact | None = None,
        fallback: Artefact | LocalModel | None = None,
        key: str | None = None,
        options: OffloadOptions | None = None,
    ) -> None:
        self._options = options or OffloadOptions()
        check_roles(head, fallback.artefact if isinstance(fallback, LocalModel) else fallback, key)
        self.key = head.key if head is not None else str(key)
        self._cut_id = bytes.fromhex(self.key)
        self._code, self._codec = codec_of(head)
        self._artefact = head
        self._head = open_session(head, threads=self._options.threads) if head else None
        self._gate = ExitGate.of(head.manifest) if head else None
        self._fallback_is_ours = isinstance(fallback, Artefact)
        self._fallback = (
            LocalModel(fallback, threads=self._options.threads) if isinstance(fallback, Artefact) else fallback
        )
        self._head_lock = threading.Lock()
        self._lock = threading.Lock()  # guards what follows; never held while publishing
        self._clock = ClockOffset()
        self._pending = Pending(self._options.in_flight)
        self.breaker = Breaker(failures=self._options.breaker_failures)
        self._counters = Counters()
        self.boot = os.urandom(8).hex()
        self._id_prefix, self._next_id = os.urandom(8), 0
        topics = Topics(self._options.tenant, device)
        subscriptions = ((topics.reply(self.boot), self._options.qos),)
        link_options = LinkOptions(subscriptions=subscriptions, nodelay=self._options.nodelay, on_lost=self._on_lost)
        self.link = MqttLink(broker_url, link_options, self._on_reply)
        route = RouteOptions(self._options.qos, self._options.hedge_ms, self._options.direct_above_bytes)
        self._route = TailRoute(
            self.link,
            topics.request(self.key, self.boot),
            self._cut_id,
            route,
            lambda data: self._on_reply("", data, 0),
        )
        self.link.start()

    def wait_connected(self, timeout_s: float = 10.0) -> None:
        """Wait for the broker; without it, requests go to the fallback at once.

        Raises:
            NotConnectedError: Not within the time.
            SubscriptionError: The broker refuses the replies' topic.
        """
        self.link.wait_connected(timeout_s)

    def infer(
        self, *arrays: np.ndarray, deadline_ms: float | None = None, layers: int | None = None,
        local: LocalInputs | None = None,
    ) -> Answer:  # fmt: skip
        """Run one request to its end.

        Args:
            arrays: The model's inputs, as the head's (or whole model's) manifest says, batch 1.
            deadline_ms: From now; the options' deadline when null.
            layers: Of a progressive stream at most so many, the first ones, are sent; 0 for all, the options' number when
                null. Other heads send what they have.
            local: Makes the fallback's inputs if it has to answer; null where `arrays` are its inputs too.

        Raises:
            OffloadError: A deadline that is no finite number, a negative number of layers, or arrays alone that are no
                input of the fallback.
            DeadlineError: No answer in time and neither fallback nor exit that could give one.
            TailUnavailableError: The tail cannot be asked now, and there is neither fallback nor exit.
            TailError: The tail answered with an error, and there is neither fallback nor exit.
            EngineError: Inputs that do not match, or the head failed.
        """
        attempt = self._begin(deadline_ms, local_inputs(self._fallback, self._artefact, arrays, local))
        try:
            outputs = self._run_head(arrays, attempt)
            if attempt.leaving is not None and attempt.leaving.leaves:
                return self._leave(attempt, None)
            return self._finish(attempt, self._encode(outputs, attempt, layers))
        except Exception as error:
            self._fail(attempt, error)
            raise

    def infer_image(
        self, data: bytes, *arrays: np.ndarray, deadline_ms: float | None = None, local: LocalInputs | None = None
    ) -> Answer:
        """Send an encoded picture (JPEG, PNG, WebP file) to a whole model on the host; the fallback has `arrays` or `local`.

        Raises:
            OffloadError: As `infer`; also when this offloader has a head.
        """
        if self._head is not None:
            raise OffloadError("Wanted an offloader without a head for whole pictures, found one with a head.")
        attempt = self._begin(deadline_ms, local_inputs(self._fallback, None, arrays, local))
        try:
            begun = time.perf_counter()
            pieces = encode_image_file(data, cut_id=self._cut_id)
            attempt.serialise_ms = ms_since(begun)
            return self._finish(attempt, pieces)
        except Exception as error:
            self._fail(attempt, error)
            raise

    @property
    def local(self) -> LocalModel | None:
        """The whole model here."""
        return self._fallback

    @property
    def counters(self) -> Counters:
        """How requests ended so far."""
        with self._lock:
            return replace(self._counters, late=self._pending.late)

    @property
    def open_requests(self) -> int:
        """Requests that wait for the tail now."""
        return len(self._pending)

    @property
    def connected(self) -> bool:
        """Whether there is a connection to the broker."""
        return self.link.connected

    def close(self) -> None:
        """Disconnect and free the engines."""
        self._route.close()
        self.link.close()
        if self._head is not None:
            self._head.close()
        if self._fallback is not None and self._fallback_is_ours:
            self._fallback.close()

    def __enter__(self) -> "Offloader":
        """Nothing more to start."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def _begin(self, deadline_ms: float | None, local: LocalInputs | None) -> Attempt:
        budget_ms = self._options.deadline_ms if deadline_ms is None else deadline_ms
        return Attempt.begin(budget_ms, self._options.tracer, local)

    def _run_head(self, arrays: Sequence[np.ndarray], attempt: Attempt) -> Sequence[np.ndarray]:
        """What is to be sent; the exit's answer goes into the attempt."""
        if self._head is None:
            return arrays
        begun = time.perf_counter()
        with self._head_lock:
            outputs = self._head.run(arrays)
        if self._gate is not None:
            outputs, attempt.leaving = self._gate.divide(outputs)
        attempt.head_ms = ms_since(begun)
        return outputs

    def _encode(self, outputs: Sequence[np.ndarray], attempt: Attempt, most: int | None) -> list[bytes | memoryview]:
        begun = time.perf_counter()
        heads = pack_heads(outputs)
        layers = encode_first(self._codec, outputs, self._options.layers if most is None else most)
        encoded = time.perf_counter()
        pieces = frame_layers(Header(self._code, self._cut_id, self._codec.table_id), layers, heads, len(outputs))
        attempt.encode_ms, attempt.serialise_ms = 1000 * (encoded - begun), ms_since(encoded)
        return pieces

    def _finish(self, attempt: Attempt, pieces: list[bytes | memoryview]) -> Answer:
        try:
            answer = self._ask_tail(attempt, pieces)
        except (OffloadError, MqttError, WireError) as error:
            model, left_s = self._fallback, attempt.deadline - time.perf_counter()
            if attempt.local is None or model is None or not model.fits(left_s):
                if attempt.leaving is None:
                    raise
                return self._leave(attempt, error)
            answer = _answer_locally(model, attempt.local, attempt, error)
            self._count(local=1)
            return answer
        self._count(remote=1)
        return answer

    def _ask_tail(self, attempt: Attempt, pieces: list[bytes | memoryview]) -> Answer:
        now = time.perf_counter()
        margin_s = min(_MAX_MARGIN_S, 0.05 * (attempt.deadline - attempt.started))
        left_s = attempt.deadline - now
        reserve_s = None if self._fallback is None else self._fallback.reserve_s(left_s, others=len(self._pending))
        wait_s = remote_wait_s(now, attempt.deadline, reserve_s, margin_s=margin_s)
        if wait_s <= 0:
            raise DeadlineError(
                f"Wanted time for the tail before the deadline, found {1000 * (attempt.deadline - now):.1f} ms left."
            )
        self.link.check_subscribed()  # an answer could not come
        ended = threading.Lock()
        ended.acquire()
        ticket = self._open(attempt, ended, now)
        try:
            budget_ms = max(1, int(1000 * wait_s))
            flags = 0 if attempt.trace_id is None else FLAG_TRACED
            envelope = pack_envelope(Envelope(ticket.request_id, budget_ms, flags))
            attempt.sent_at = time.perf_counter()
            request = (envelope, *pieces)
            attempt.bytes_sent, direct = self._route.send(request)
            left_s = wait_s - (time.perf_counter() - now)
            answered = self._route.wait(ended, max(0.0, left_s), request, direct=direct)
        except BaseException:  # Ctrl-C too: an open ticket would hold its place for ever
            self._abandon(ticket)
            raise
        if not answered and self._abandon(ticket):
            raise DeadlineError(
                f"Wanted the tail's answer within {1000 * wait_s:.0f} ms, found none. "
                "Is `headtail tail serve` running with this model, and the link fast enough?"
            )
        return self._read_answer(ticket, attempt)

    def _open(self, attempt: Attempt, ended: threading.Lock, now: float) -> Ticket:
        with self._lock:
            if not self.breaker.allow(now):
                raise TailUnavailableError(
                    "Wanted the tail, found that the last requests went without an answer; it is asked again soon."
                )
            self._next_id += 1
            request_id = attempt.trace_id or self._id_prefix + self._next_id.to_bytes(8, "little")
            ticket = Ticket(request_id, attempt.deadline, ended.release)
            if not self._pending.add(ticket):
                self.breaker.released()
                raise TailUnavailableError(
                    f"Wanted fewer than {self._options.in_flight} open requests, found as many. Call less often."
                )
            return ticket

    def _abandon(self, ticket: Ticket) -> bool:
        """End a request without an answer; False when its answer came at the last moment."""
        with self._lock:
            ours = self._pending.give_up(ticket.request_id)
            if ours:
                self.breaker.failed(time.perf_counter())
            return ours

    def _on_reply(self, _topic: str, payload: bytes | memoryview, _qos: int) -> None:
        now = time.perf_counter()
        view = memoryview(payload)
        reply = unpack_reply(view)
        if self._route.take(reply, view[REPLY_BYTES:]):
            return
        with self._lock:
            if self._pending.answer(reply, view[REPLY_BYTES:], now):
                self.breaker.succeeded()

    def _on_lost(self) -> None:
        with self._lock:
            self._pending.give_up_all()  # their answers go to a session that is no more
            self.breaker.released()  # one of them may have been the probe

    def _read_answer(self, ticket: Ticket, attempt: Attempt) -> Answer:
        reply = ticket.reply
        if reply is None or ticket.body is None:
            raise TailUnavailableError(
                "Wanted the tail's answer, found that the connection to the broker was lost meanwhile."
            )
        attempt.answered_at = ticket.answered_at
        if reply.status is not Status.OK:
            text = bytes(ticket.body[:500]).decode("utf-8", "replace")
            raise TailError(f"Wanted an answer of the tail, found {reply.status.name.lower()}: {text}")
        begun = time.perf_counter()
        outputs = decode_tensors(frame := decode_frame(ticket.body, _REPLY_LIMITS))
        self._check_answer(frame.cut_id, outputs)
        uplink_s, downlink_s = self._divide(reply, attempt, len(ticket.body) + REPLY_BYTES)
        breakdown = attempt.breakdown(
            uplink_ms=1000 * uplink_s,
            queue_ms=reply.queue_us / 1000,
            decode_ms=reply.decode_us / 1000,
            tail_ms=reply.tail_us / 1000,
            downlink_ms=1000 * downlink_s,
            postprocess_ms=ms_since(begun),
        )
        return Answer(outputs, "remote", breakdown, attempt.bytes_sent, trace_id=attempt.trace_id)

    def _divide(self, reply: Reply, attempt: Attempt, down_bytes: int) -> tuple[float, float]:
        """Seconds up and down."""
        at_host_s = (reply.queue_us + reply.decode_us + reply.tail_us) / 1e6
        link_s = max(0.0, attempt.answered_at - attempt.sent_at - at_host_s)
        if not reply.received_us:
            return link_s / 2, link_s / 2
        exchange = Exchange(attempt.sent_at, reply.received_us / 1e6, link_s, attempt.bytes_sent, down_bytes)
        round_trip_ms = self.link.round_trip_ms
        with self._lock:
            return self._clock.divide(exchange, round_trip_s=None if round_trip_ms is None else round_trip_ms / 1000)

    def _check_answer(self, cut_id: bytes, outputs: Sequence[np.ndarray]) -> None:
        """The answer is of this cut, and of the form that the local model gives."""
        if cut_id != self._cut_id:
            raise FormatError(f"Wanted an answer of cut {self.key}, found one of {cut_id.hex()}. Restart the tail.")
        if self._fallback is not None:
            self._fallback.check_outputs(outputs)

    def _leave(self, attempt: Attempt, why: Exception | None) -> Answer:
        """The exit's answer: it is sure, or nobody else answered."""
        assert attempt.leaving is not None
        waited_ms = ms_since(attempt.sent_at) if attempt.sent_at else 0.0
        self._count(local=1)
        stages, reason = attempt.breakdown(waited_ms=waited_ms), None if why is None else str(why)
        return Answer([attempt.leaving.logits], "exit", stages, attempt.bytes_sent, reason, trace_id=attempt.trace_id)

    def _fail(self, attempt: Attempt, error: Exception) -> None:
        self._count(failed=1)
        if attempt.trace_id is not None and self._options.tracer is not None:
            self._options.tracer.failed(attempt.trace_id, time.perf_counter() - attempt.started, error)

    def _count(self, *, remote: int = 0, local: int = 0, failed: int = 0) -> None:
        with self._lock:
            self._counters.remote += remote
            self._counters.local += local
            self._counters.failed += failed


def _answer_locally(model: LocalModel, inputs: LocalInputs, attempt: Attempt, why: Exception) -> Answer:
    waited_ms = ms_since(attempt.sent_at) if attempt.sent_at else 0.0
    outputs, preprocess_ms, local_ms = model.answer(inputs)
    breakdown = attempt.breakdown(preprocess_ms=preprocess_ms, waited_ms=waited_ms, local_ms=local_ms)
    return Answer(outputs, "local", breakdown, attempt.bytes_sent, str(why), trace_id=attempt.trace_id)
