"""Requests to text: prefill in chunks and decoding share each step (continuous batching), and a lost rank is survived.

A sequence is its tokens and how many of them are cached. Every step runs what is not cached yet, so a restart only sets
that number to 0: the next steps fill the caches from the tokens again, and the same stream goes on.
"""

import collections
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from device_profiles.errors import EdgeError
from orchestrator.tensor_parallel.engine import Engine, Piece
from orchestrator.tensor_parallel.errors import BusyError, CancelledError, ContextLengthError, PeerError, PromptError
from orchestrator.tensor_parallel.jobs import Counters, Event, Job, Request
from orchestrator.tensor_parallel.lookup import Guess, guess
from orchestrator.tensor_parallel.protocol import MAX_BRANCHES
from orchestrator.tensor_parallel.sampling import choose
from orchestrator.tensor_parallel.text import Text

log = logging.getLogger(__name__)

_RESTARTS_IN_A_ROW = 5
_HEARTBEAT_S = 5.0  # between looks at whether every node is there, while there is nothing to do
_LOOK_S = 2.0  # between looks for lost nodes, while requests run
_PATIENCE_S = 30.0  # until a node that answered and then failed is tried again


class Generator:
    """Runs submitted requests on a thread of its own.

    Args:
        engine: Used by that thread alone.
        text: For streamed text and end tokens; null gives tokens only.
        queue: Requests that may wait for a slot.
    """

    def __init__(self, engine: Engine, text: Text | None, *, queue: int = 64) -> None:
        self._engine, self._text, self._queue = engine, text, queue
        self._look_after = 0.0  # monotonic
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
            BusyError: Too many wait already.
        """
        request.sampling.check()
        context = self._engine.settings.context
        if not request.prompt or len(request.prompt) >= context:
            kind = ContextLengthError if request.prompt else PromptError
            raise kind(
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
            present, most = len(self._waiting) + len(self._active), len(self._slots) + self._queue
            if present >= most:
                raise BusyError(
                    f"Wanted a slot or a place in the queue, found {present} requests for {len(self._slots)} slots and "
                    f"{self._queue} places. "
                    "Try again later, or serve with more --slots or a longer --queue."
                )
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
                if not (self._waiting or self._active or self._closed):
                    self._changed.wait(_HEARTBEAT_S)
                if self._closed:
                    break
                idle = not (self._waiting or self._active)
            try:
                if idle:
                    self._look_around()
                    continue
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
        if self._waiting and len(self._active) < len(self._slots):
            if self._broken or not self._engine.running:
                self._restart()
                self._broken = False
            elif self._returned():
                self._restart()
        free = [slot for slot in range(len(self._slots)) if slot not in {job.slot for job in self._active}]
        while free and self._waiting:
            with self._changed:  # it counts all the while
                job = self._waiting.popleft()
                self._active.append(job)
            job.slot = max(free, key=lambda slot: _common(self._slots[slot], job.tokens))
            free.remove(job.slot)
            job.cached = min(_common(self._slots[job.slot], job.tokens), len(job.tokens) - 1)
            self.counters.requests += 1
            self.counters.prompt_tokens += len(job.tokens)
            self.counters.reused_tokens += job.cached

    def _returned(self) -> bool:
        """Whether a lost node answers again, looked for now and then: it costs a connection."""
        now = time.monotonic()
        if now < self._look_after:
            return False
        came = self._engine.cluster.came_back()
        self._look_after = now + (_PATIENCE_S if came else _LOOK_S if self._active else 0.0)
        return came

    def _look_around(self) -> None:
        """A heartbeat: a node that is lost meanwhile is known before the next request, which begins without it."""
        try:
            self._engine.check()
        except PeerError as error:
            log.warning("a node is lost while nothing runs: %s", error)

    def _turn(self) -> None:
        """One step for everybody."""
        self._drop_cancelled()
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
                self._slots[job.slot] = job.tokens[: job.settled]

    def _drop_cancelled(self) -> None:
        """End what its client gave up, also where it still waits: others may have its place."""
        with self._changed:
            dropped = [job for job in self._waiting if job.cancelled]
            self._waiting = collections.deque(job for job in self._waiting if not job.cancelled)
        for job in [*dropped, *(job for job in self._active if job.cancelled)]:
            self._finish(job, Event(error=CancelledError("The request was cancelled.")))

    def _plan(self) -> list[tuple[Job, Piece]]:
        """Sequences that decode first, then prompts as far as the step's tokens go."""
        settings, work = self._engine.settings, []
        budget = settings.step_tokens
        for job in sorted(self._active, key=lambda one: len(one.tokens) - one.cached):
            pending = job.tokens[job.cached :][:budget]
            if not pending:
                continue
            complete = job.cached + len(pending) == len(job.tokens)
            job.guesses = self._guess(job, budget - len(pending)) if complete else ()
            guessed = [token for one in job.guesses for token in one]
            branches, depth = max(1, len(job.guesses)), len(job.guesses[0]) if job.guesses else 0
            piece = Piece(
                job.slot,
                job.cached,
                (*pending, *guessed),
                1 + len(guessed) if complete else 0,
                branches,
                depth,
                job.moved_from,
                job.moved,
            )
            job.moved_from = job.moved = 0
            work.append((job, piece))
            budget -= len(piece.tokens)
        return work

    def _guess(self, job: Job, budget: int) -> tuple[Guess, ...]:
        """Guesses that fit into the step and the context, and go no further than the request."""
        if not job.request.lookup:
            return ()
        left = job.request.max_tokens - job.generated - 1
        room = min(budget, self._engine.settings.context - len(job.tokens))
        count = min(left, room, job.pace.now)
        if count <= 0:
            return ()
        found = guess(job.tokens, count=count, branches=min(job.request.drafts, MAX_BRANCHES))
        return found[: room // len(found[0])] if found else ()

    def _take(self, job: Job, rows: Any) -> None:  # noqa: ANN401 - logits, (1 + guessed, vocabulary)
        """Choose a token behind what is certain, and on along the guesses that say the same."""
        options, guesses = job.request.sampling, job.guesses
        base, depth = len(job.tokens), len(guesses[0]) if guesses else 0
        chosen: list[int] = []
        branch, right = -1, list(range(len(guesses)))
        row = 0
        while True:
            place = len(chosen)
            chosen.append(choose(rows[row], options, job.tokens + chosen, job.random))
            right = [one for one in right if place < depth and guesses[one][place] == chosen[-1]]
            if not right:
                break
            branch = right[0]
            row = 1 + branch * depth + place
        agreed = len(chosen) - 1
        self.counters.guessed_tokens += depth
        self.counters.accepted_tokens += agreed
        job.pace.note(depth, agreed)
        job.cached = base + agreed  # what was guessed wrong is written over
        if branch > 0:
            job.moved_from, job.moved = base + branch * depth, agreed
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
            self._slots[job.slot] = job.tokens[: job.settled]
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
            job.forget()
        for attempt in range(_RESTARTS_IN_A_ROW):
            try:
                self._engine.restart()
                break
            except PeerError as error:
                if attempt == _RESTARTS_IN_A_ROW - 1:
                    raise
                log.warning("restart failed: %s", error)
        if len(self._engine.cluster.alive) == len(self._engine.cluster.nodes):
            self._look_after = 0.0
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
