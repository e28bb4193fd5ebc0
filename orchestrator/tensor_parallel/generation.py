"""Requests to text: prefill in chunks and decoding share each step (continuous batching), and a lost rank is survived.

A sequence is its tokens and how many of them are cached. Every step runs what is not cached yet, so a restart only sets
that number to 0: the next steps fill the caches from the tokens again, and the same stream goes on.
"""

import collections
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from device_profiles.errors import EdgeError
from orchestrator.tensor_parallel.engine import Engine, Piece
from orchestrator.tensor_parallel.errors import CancelledError, PeerError, PromptError
from orchestrator.tensor_parallel.lookup import accepted, guess
from orchestrator.tensor_parallel.sampling import SamplingOptions, choose
from orchestrator.tensor_parallel.text import Text, TextStream

log = logging.getLogger(__name__)

_RESTARTS_IN_A_ROW = 5


@dataclass(frozen=True)
class Request:
    """What a client wants."""

    prompt: tuple[int, ...]
    max_tokens: int
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    stops: tuple[str, ...] = ()
    ignore_end: bool = False
    lookup: int = 0  # tokens to guess by prompt lookup; greedy requests only


@dataclass(frozen=True)
class Event:
    """What happened to a request: a piece of text, then once either its end or an error."""

    text: str = ""
    tokens: tuple[int, ...] = ()
    finish: Literal["stop", "length"] | None = None
    error: EdgeError | None = None

    @property
    def last(self) -> bool:
        """Whether nothing follows."""
        return self.finish is not None or self.error is not None


@dataclass
class Counters:
    """Since the start."""

    requests: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    reused_tokens: int = 0  # of prompts, found in a slot's cache
    generated_tokens: int = 0
    guessed_tokens: int = 0
    accepted_tokens: int = 0
    steps: int = 0
    step_s: float = 0.0
    communicated_s: float = 0.0
    restarts: int = 0
    last_restart_s: float = 0.0


class Job:
    """A submitted request. `cancel` may be called by any thread."""

    def __init__(self, request: Request, on_event: Callable[[Event], None], text: Text | None) -> None:
        self.request, self.on_event = request, on_event
        self.tokens = list(request.prompt)
        self.cached = 0
        self.slot = -1
        self.cancelled = False
        self.guessed: tuple[int, ...] = ()
        self.random = torch.Generator()
        seed = request.sampling.seed
        self.random.seed() if seed is None else self.random.manual_seed(seed)
        self.stream = None if text is None else TextStream(text, request.stops)

    @property
    def generated(self) -> int:
        """Tokens so far."""
        return len(self.tokens) - len(self.request.prompt)

    def cancel(self) -> None:
        """End it before the next step."""
        self.cancelled = True


class Generator:
    """Runs submitted requests on a thread of its own.

    Args:
        engine: Used by that thread alone.
        text: For streamed text and end tokens; null gives tokens only.
    """

    def __init__(self, engine: Engine, text: Text | None) -> None:
        self._engine, self._text = engine, text
        self.counters = Counters()
        self._changed = threading.Condition()
        self._waiting: collections.deque[Job] = collections.deque()
        self._active: list[Job] = []
        self._slots: list[list[int]] = [[] for _ in range(engine.settings.slots)]  # tokens whose keys are cached
        self._closed = False
        self._broken = False
        self._thread = threading.Thread(target=self._run, name="generation", daemon=True)
        self._thread.start()

    def submit(self, request: Request, on_event: Callable[[Event], None]) -> Job:
        """Queue a request; events come on the generator's thread.

        Raises:
            PromptError: It cannot run: empty, too long for the context, or values out of range.
        """
        request.sampling.check()
        context = self._engine.settings.context
        if not request.prompt or len(request.prompt) >= context:
            raise PromptError(
                f"Wanted a prompt of 1 to {context - 1} tokens, found {len(request.prompt)}. "
                "Shorten it, or serve with a larger --context."
            )
        if request.max_tokens < 1:
            raise PromptError(f"Wanted max_tokens >= 1, found {request.max_tokens}.")
        vocabulary = self._engine.config.vocabulary
        if not 0 <= min(request.prompt) <= max(request.prompt) < vocabulary:
            raise PromptError(f"Wanted tokens from 0 and below {vocabulary}, found others in the prompt.")
        job = Job(request, on_event, self._text)
        with self._changed:
            self._waiting.append(job)
            self._changed.notify_all()
        return job

    @property
    def broken(self) -> bool:
        """Whether the last step failed for good; the next request tries again."""
        return self._broken

    @property
    def load(self) -> tuple[int, int]:
        """Requests that run and that wait."""
        return len(self._active), len(self._waiting)

    def close(self) -> None:
        """End all requests and the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._active or self._closed):
                    self._changed.wait()
                if self._closed:
                    break
            try:
                self._admit()
                self._turn()
            except EdgeError as error:
                self._fail_all(error)
            except Exception as error:
                log.exception("a step failed")
                self._fail_all(EdgeError(f"Wanted a step, found {error!r}. This is a defect of headtail."))
        self._fail_all(CancelledError("Wanted an answer, found that the server ends."))

    def _admit(self) -> None:
        """Give waiting requests a slot, that with the longest common beginning first; let lost nodes in again."""
        if not self._active and self._waiting and (self._broken or self._engine.cluster.came_back()):
            self._restart()
            self._broken = False
        free = [slot for slot in range(len(self._slots)) if slot not in {job.slot for job in self._active}]
        while free and self._waiting:
            job = self._waiting.popleft()
            job.slot = max(free, key=lambda slot: _common(self._slots[slot], job.tokens))
            free.remove(job.slot)
            job.cached = min(_common(self._slots[job.slot], job.tokens), len(job.tokens) - 1)
            self.counters.requests += 1
            self.counters.prompt_tokens += len(job.tokens)
            self.counters.reused_tokens += job.cached
            self._active.append(job)

    def _turn(self) -> None:
        """One step for everybody."""
        for job in [job for job in self._active if job.cancelled]:
            self._finish(job, Event(error=CancelledError("The request was cancelled.")))
        work = self._plan()
        if not work:
            return
        try:
            logits = self._engine.step([piece for _, piece in work])
        except PeerError as error:
            log.warning("a rank is lost: %s", error)
            self._restart()
            return
        self.counters.steps += 1
        self.counters.step_s += self._engine.times.total_s
        self.counters.communicated_s += self._engine.times.communicated_s
        for (job, piece), rows in zip(work, logits, strict=True):
            job.cached = piece.start + len(piece.tokens)
            if piece.wanted:
                self._take(job, rows)
            if job in self._active:
                self._slots[job.slot] = job.tokens[: job.cached]

    def _plan(self) -> list[tuple[Job, Piece]]:
        """Sequences that decode first, then prompts as far as the step's tokens go."""
        settings, work = self._engine.settings, []
        budget = settings.step_tokens
        for job in sorted(self._active, key=lambda one: len(one.tokens) - one.cached):
            pending = job.tokens[job.cached :][:budget]
            if not pending:
                continue
            complete = job.cached + len(pending) == len(job.tokens)
            job.guessed = ()
            if complete and job.request.lookup and job.request.sampling.greedy:
                room = min(budget - len(pending), settings.context - len(job.tokens) - 1, job.request.lookup)
                job.guessed = guess(job.tokens, count=room) if room > 0 else ()
            tokens = (*pending, *job.guessed)
            work.append((job, Piece(job.slot, job.cached, tokens, 1 + len(job.guessed) if complete else 0)))
            budget -= len(tokens)
        return work

    def _take(self, job: Job, rows: Any) -> None:  # noqa: ANN401 - logits, (1 + guessed, vocabulary)
        """Choose a token for each row until one is not what was guessed."""
        guessed, options = job.guessed, job.request.sampling
        base = len(job.tokens)
        chosen: list[int] = []
        for place in range(rows.shape[0]):
            chosen.append(choose(rows[place], options, job.tokens + chosen, job.random))
            if place < len(guessed) and guessed[place] != chosen[-1]:
                break
        agreed = accepted(guessed, chosen)
        self.counters.guessed_tokens += len(guessed)
        self.counters.accepted_tokens += agreed
        job.cached = base + agreed  # what was guessed wrong is written over
        for token in chosen:
            if self._emit(job, token):
                return

    def _emit(self, job: Job, token: int) -> bool:
        """Add one token to a request; true when that ends it."""
        request = job.request
        job.tokens.append(token)
        self.counters.generated_tokens += 1
        ended = self._text is not None and token in self._text.end_ids and not request.ignore_end
        text = "" if ended or job.stream is None else job.stream.add(token)
        full = job.generated >= request.max_tokens or len(job.tokens) >= self._engine.settings.context
        stopped = ended or (job.stream is not None and job.stream.stopped)
        if not (stopped or full):
            job.on_event(Event(text=text, tokens=(token,)))
            return False
        text += job.stream.finish() if job.stream is not None else ""
        self._finish(job, Event(text=text, tokens=() if ended else (token,), finish="stop" if stopped else "length"))
        return True

    def _finish(self, job: Job, event: Event) -> None:
        if job in self._active:
            self._slots[job.slot] = job.tokens[: min(job.cached, len(job.tokens))]
            self._active.remove(job)
        self.counters.failed += event.error is not None
        job.on_event(event)

    def _restart(self) -> None:
        """Begin another epoch; all caches are empty then.

        Raises:
            EdgeError: It cannot, or ranks are lost again and again.
        """
        began = time.perf_counter()
        self._slots = [[] for _ in self._slots]
        for job in self._active:
            job.cached = 0
        for attempt in range(_RESTARTS_IN_A_ROW):
            try:
                self._engine.restart()
                break
            except PeerError as error:
                if attempt == _RESTARTS_IN_A_ROW - 1:
                    raise
                log.warning("restart failed: %s", error)
        self.counters.restarts += 1
        self.counters.last_restart_s = time.perf_counter() - began

    def _fail_all(self, error: EdgeError) -> None:
        self._broken = True
        with self._changed:
            waiting, self._waiting = list(self._waiting), collections.deque()
        for job in [*self._active, *waiting]:
            self._finish(job, Event(error=error))
        self._slots = [[] for _ in self._slots]


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common beginning."""
    length = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        length += 1
    return length


def generate(generator: Generator, request: Request, *, on_event: Callable[[Event], None] | None = None) -> list[int]:
    """Run one request to its end and return its tokens.

    Raises:
        EdgeError: What ended it instead.
    """
    done = threading.Event()
    events: list[Event] = []

    def take(event: Event) -> None:
        events.append(event)
        if on_event is not None:
            on_event(event)
        if event.last:
            done.set()

    generator.submit(request, take)
    done.wait()
    failed = events[-1].error
    if failed is not None:
        raise failed
    return [token for event in events for token in event.tokens]
