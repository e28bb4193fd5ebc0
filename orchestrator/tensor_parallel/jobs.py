"""What a client wants, what happens to it, and where a running request stands."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch

from device_profiles.errors import EdgeError
from orchestrator.tensor_parallel.lookup import Guess, Pace
from orchestrator.tensor_parallel.sampling import SamplingOptions
from orchestrator.tensor_parallel.text import Text, TextStream


@dataclass(frozen=True)
class Request:
    """What a client wants."""

    prompt: tuple[int, ...]
    max_tokens: int
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    stops: tuple[str, ...] = ()
    ignore_end: bool = False
    lookup: int = 0  # most tokens to guess at a time by prompt lookup
    drafts: int = 1  # guesses that are checked together


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
        self.guesses: tuple[Guess, ...] = ()
        self.pace = Pace(request.lookup)
        self.moved_from = self.moved = 0  # of an accepted guess: keys and values that do not lie in their place yet
        self.random = torch.Generator()
        seed = request.sampling.seed
        self.random.seed() if seed is None else self.random.manual_seed(seed)
        self.stream = None if text is None else TextStream(text, request.stops)

    @property
    def generated(self) -> int:
        """Tokens so far."""
        return len(self.tokens) - len(self.request.prompt)

    @property
    def settled(self) -> int:
        """Tokens at the beginning whose keys and values are cached in their places."""
        return min(self.cached - self.moved, len(self.tokens))

    def cancel(self) -> None:
        """End it before the next step."""
        self.cancelled = True

    def forget(self) -> None:
        """Nothing is cached any more."""
        self.cached = self.moved = self.moved_from = 0
