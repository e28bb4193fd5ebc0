"""What measuring processes gave, read together: plain runs, and the kernels of the instrumented runs between them."""

import itertools
import statistics
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from device_profiles.measurement import KernelTime, MemoryUse, Percentiles
from edge_runtime import profile_child as child
from edge_runtime.artefact import Artefact
from edge_runtime.profile_energy import Sample
from edge_runtime.profile_graph import read_graph
from edge_runtime.profile_kernels import arena_bytes, build_kernels, weight_bytes
from edge_runtime.profile_pairs import Pairs, Times
from edge_runtime.profile_stats import percentiles
from edge_runtime.profile_trace import read_trace

KERNEL_WARM_UP = 5
MIN_QUIET_RUNS = 10  # of the instrumented ones


@dataclass(frozen=True)
class Measured:
    """What the two processes and the meter gave."""

    plain: child.Answer
    samples: list[Sample]
    meter: str | None
    kernels: tuple[KernelTime, ...] = ()
    profiled: Percentiles | None = None
    beside: Percentiles | None = None
    hook_ms: float | None = None
    memory: MemoryUse = field(default_factory=MemoryUse)
    provider: str | None = None
    interrupted: bool = False  # too few instrumented runs kept the core


def kernel_request(plain: child.Request, *, runs: int) -> child.Request:
    """The request for a process of kernels beside (or instead of) one of plain runs."""
    return msgspec.structs.replace(
        plain, mode="kernels", warm_up=KERNEL_WARM_UP, runs=runs, seconds=0.0, minutes=0.0, idle_s=0.0
    )


def read_pairs(
    artefact: Artefact, folder: Path, recorded: child.Answer, threads: int, blocks: Sequence[int]
) -> Measured:
    """What a process of kernels found in these blocks; its plain runs stand for the whole ones."""
    among = runs_of_blocks(recorded.block_runs, blocks)
    answer = msgspec.structs.replace(
        recorded,
        wall_ms=[recorded.plain_wall_ms[index] for index in among],
        cpu_ms=[recorded.plain_cpu_ms[index] for index in among],
    )
    measured = Measured(answer, [], None, memory=memory_of(answer))
    return read_kernels(artefact, folder, recorded, measured, threads, blocks)


def read_kernels(
    artefact: Artefact, folder: Path, recorded: child.Answer, measured: Measured, threads: int,
    blocks: Sequence[int] | None = None,
) -> Measured:  # fmt: skip
    """Map what the engine's profiler recorded to the names of the artefact's graph.

    Its clock runs on while another process has the core: with one thread only runs that kept it count, if enough did.
    """
    whole = read_trace(folder / child.TRACE)
    kept = kept_runs(len(whole.runs), recorded.settled_runs, recorded.block_runs)
    pairs = Pairs(
        Times(array("d", recorded.plain_wall_ms), array("d", recorded.plain_cpu_ms)),
        Times(array("d", recorded.wall_ms), array("d", recorded.cpu_ms)),
    )
    blocks = range(len(recorded.block_runs)) if blocks is None else blocks
    among = runs_of_blocks(recorded.block_runs, blocks)
    chosen = [index for index in among if threads > 1 or pairs.kept_core(index)]
    interrupted = threads == 1 and len(chosen) < MIN_QUIET_RUNS
    chosen = among if interrupted else chosen
    hook_ms = statistics.median(recorded.hook_ms[block] for block in blocks)
    trace = whole.keep([kept[index] for index in chosen])
    beside = pairs.plain.cpu if threads == 1 else pairs.plain.wall
    original = read_graph(artefact.entry)
    kernels = build_kernels(trace, original, read_graph(folder / child.OPTIMISED), hook_ms=hook_ms)
    peak, held = arena_bytes(whole)
    return replace(
        measured,
        kernels=kernels,
        profiled=percentiles([us / 1000 for us in trace.whole_us]),
        beside=percentiles([beside[index] for index in chosen]),
        hook_ms=hook_ms,
        memory=msgspec.structs.replace(
            measured.memory, weights=weight_bytes(original), arena_peak=peak, arena_held=held
        ),
        provider=recorded.provider,
        interrupted=interrupted,
    )


def kept_runs(total: int, settled: Sequence[int], block_runs: Sequence[int]) -> list[int]:
    """Indices of the runs that count: not the warm-up, and not those before each block, which find cold caches."""
    at = total - sum(block_runs) - sum(settled)  # runs before the first block
    kept: list[int] = []
    for before, count in zip(settled, block_runs, strict=True):
        kept += range(at + before, at + before + count)
        at += before + count
    return kept


def runs_of_blocks(block_runs: Sequence[int], blocks: Iterable[int]) -> list[int]:
    """Indices of the timed runs of some blocks."""
    ends = list(itertools.accumulate(block_runs))
    return [index for block in blocks for index in range(ends[block] - block_runs[block], ends[block])]


def memory_of(answer: child.Answer) -> MemoryUse:
    """Of the plain process: what it grew by when the model came."""
    if answer.rss_peak is None or answer.rss_bare is None:
        return MemoryUse()
    return MemoryUse(rss_bare=answer.rss_bare, rss_peak=answer.rss_peak - answer.rss_bare)
