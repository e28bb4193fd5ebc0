"""How many bytes a rank takes: the promise behind a memory limit. Arithmetic, and a look at this process."""

import ctypes
import re
from dataclasses import dataclass
from pathlib import Path

from orchestrator.tensor_parallel.config import ModelConfig
from orchestrator.tensor_parallel.errors import MemoryLimitError
from orchestrator.tensor_parallel.kv_cache import bytes_per_token
from orchestrator.tensor_parallel.loads import RankLoads, choose_resident, smallest_budget
from orchestrator.tensor_parallel.partition import Share
from orchestrator.tensor_parallel.protocol import RunSettings

# Allocator slack, thread stacks, TLS buffers, the libraries' own scratch, and code that comes back after `forget_code`.
SLACK_BYTES = 32 << 20
# What the program takes differs by so much from start to start: a limit that is named must work then.
_SPREAD_BYTES = 4 << 20
# An interpreter with torch imported and its code forgotten, where it cannot be measured as the node is another machine.
TYPICAL_BASE_BYTES = 180 << 20
_MADV_DONTNEED = 4
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S+) \S+ \S+ \d+ +(/.*)")


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of a rank, by what they are for."""

    base: int  # interpreter, libraries, tokenizer
    cache: int  # keys and values at the full context
    work: int  # activations, scores, messages, logits
    resident: int  # weights that stay
    buffers: int  # the window's
    streamed: int  # weights loaded again for each step; not in memory
    kept: frozenset[int]

    @property
    def total(self) -> int:
        """Bytes at the peak."""
        return self.base + self.cache + self.work + self.resident + self.buffers


def cache_bytes(config: ModelConfig, share: Share, settings: RunSettings) -> int:
    """Keys and values when every slot is full."""
    return settings.slots * settings.context * bytes_per_token(config, share.kv_heads, settings.kv_cache)


def work_bytes(config: ModelConfig, share: Share, settings: RunSettings, *, ranks: int, master: bool) -> int:
    """Activations of the largest step; scores at the full context exist three times while softmax runs."""
    tokens, heads = settings.step_tokens, share.kv_heads * config.group
    hidden = (8 + 3 * ranks) * config.hidden  # residual, norms, partial sums, and each message twice
    projections = 4 * (heads + 2 * share.kv_heads) * config.head_dim
    scores = 3 * heads * settings.context
    rows = min(tokens, settings.slots * (1 + settings.guessed))
    logits = 4 * rows * config.vocabulary if master else 0
    cached = 0 if settings.kv_cache == "float32" else 2 * share.kv_heads * settings.context * config.head_dim
    return 4 * (tokens * (hidden + max(projections + scores, 4 * share.columns)) + logits + cached)


def plan_memory(
    config: ModelConfig,
    share: Share,
    loads: RankLoads,
    settings: RunSettings,
    *,
    ranks: int,
    master: bool,
    limit: int | None,
    base: int,
    started: int = 0,
) -> MemoryPlan:
    """Divide a limit: what must be there first, then as many weights as fit.

    Args:
        config: The model.
        share: What the rank computes.
        loads: What it reads.
        settings: Of the run.
        ranks: How many there are.
        master: It has the embedding and lm_head.
        limit: Bytes that it may take; null is no limit.
        base: Of the program before any weights.
        started: The most that the program took while it started; a smaller limit is broken already.

    Raises:
        MemoryLimitError: The window's buffers do not fit; the message names the limit that would do.
    """
    cache = cache_bytes(config, share, settings)
    work = work_bytes(config, share, settings, ranks=ranks, master=master)
    fixed = base + cache + work + SLACK_BYTES
    total = sum(load.nbytes for load in loads.cycle)
    if settings.paper:
        kept: frozenset[int] = frozenset()
        buffers = settings.window * max((load.nbytes for load in loads.cycle), default=0)
        smallest = buffers
    else:
        smallest = smallest_budget(loads.cycle, window=settings.window)
        budget = None if limit is None else max(limit - fixed, smallest)
        kept, buffers = choose_resident(loads.cycle, budget, window=settings.window)
    if limit is not None and max(started, fixed + smallest) > limit:
        needed = -(-(max(started, fixed + smallest) + _SPREAD_BYTES) // 10**6)
        raise MemoryLimitError(
            f"Wanted to stay within {limit / 1e6:.0f} MB, found that {needed} MB are needed: {base / 1e6:.0f} MB program, "
            f"{cache / 1e6:.0f} MB cache of {settings.slots} x {settings.context} tokens, {work / 1e6:.0f} MB activations, "
            f"{smallest / 1e6:.0f} MB weights in flight, the rest in reserve. Give --memory-limit {needed}MB, or less --context or --slots."
        )
    resident = sum(loads.cycle[index].nbytes for index in kept)
    return MemoryPlan(base, cache, work + SLACK_BYTES, resident, buffers, total - resident, kept)


def forget_code() -> None:
    """Give pages of programs and libraries back; those that are executed again are read again from the page cache.

    Importing torch runs through far more code than a rank does later. Linux only; elsewhere nothing happens.
    """
    try:
        text = Path("/proc/self/smaps").read_text()
        advise = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return
    place: re.Match[str] | None = None
    for line in text.splitlines():
        place = _MAPPING.match(line) or (None if line[:1].isdigit() else place)
        if (
            line == "Anonymous:             0 kB" and place is not None and place[3] == "r-xp"
        ):  # nothing of it was changed
            start, stop = int(place[1], 16), int(place[2], 16)
            advise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), _MADV_DONTNEED)


def resident_now() -> int:
    """Bytes of this process that are in memory now (VmRSS)."""
    return _status("VmRSS")


def resident_peak() -> int:
    """The most bytes of this process that were in memory at once (VmHWM)."""
    return _status("VmHWM")


def _status(name: str) -> int:
    match = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(match[1]) * 1024 if match else 0
