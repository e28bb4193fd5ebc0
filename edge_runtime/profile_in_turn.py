"""Several artefacts measured in turn, so that each of them sees every speed that the machine has meanwhile."""

import statistics
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from device_profiles.measurement import Profile
from edge_runtime import profile_child as child
from edge_runtime import profile_system as system
from edge_runtime.artefact import Artefact
from edge_runtime.profile_process import MeasuringProcess
from edge_runtime.profile_rounds import steady_rounds
from edge_runtime.profile_runs import kernel_request, read_pairs, runs_of_blocks
from edge_runtime.profiler import ProfileOptions, assemble, make_request, threads_of


@dataclass(frozen=True)
class InTurn:
    """Profiles of artefacts that took turns, and which of how many rounds they are made of."""

    profiles: tuple[Profile, ...]
    kept: tuple[int, ...]
    rounds: int


def profile_in_turn(
    artefacts: Sequence[Artefact], options: ProfileOptions, *, rounds: int,
    beside: Callable[[], Sequence[float]] = tuple, on_step: Callable[[str], None] = lambda _text: None,
) -> InTurn:  # fmt: skip
    """Measure the kernels of several artefacts, block by block in turn; only rounds of one speed count.

    Args:
        artefacts: For ONNX Runtime; each has a process of its own all the while.
        options: `runs` and `limit_s` are those of all rounds together; energy, `seconds` and `minutes` have no meaning here.
        rounds: In each of which every artefact runs one block.
        beside: Measures at the end of each round what shall be compared with the profiles; its times, as many each time and > 0,
            say with the others how fast the machine was.
        on_step: Told what is done next.

    Raises:
        EngineError, ProfilerError: As `profile_artefact`.
    """
    load, begun = system.load_1m(), list[tuple[Artefact, int, MeasuringProcess, Path]]()
    with ExitStack() as stack:
        for number, artefact in enumerate(artefacts, 1):
            on_step(f"opening network {number} of {len(artefacts)}")
            threads = threads_of(artefact, options)
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="headtail-profile-")))
            request = make_request(artefact, options, threads, rounds)
            request = kernel_request(request, runs=request.runs)
            process = MeasuringProcess(request, folder, turns=rounds, processes=len(artefacts))
            if not stack.enter_context(process).wait_ready():
                process.finish()  # says why it ended
            begun.append((artefact, threads, process, folder))
        others = []
        for number in range(1, rounds + 1):
            on_step(f"round {number} of {rounds}")
            for _, _, process, _ in begun:
                process.turn()
            others.append(tuple(beside()))
        answers = [process.finish() for _, _, process, _ in begun]
        own = zip(*(_block_times(one) for one in answers), strict=True)
        kept = steady_rounds([mine + more for mine, more in zip(own, others, strict=True)])
        profiles = []
        for (artefact, threads, _, folder), answer in zip(begun, answers, strict=True):
            measured = read_pairs(artefact, folder, answer, threads, kept)
            profiles.append(assemble(artefact, options, threads, measured, load))
    return InTurn(tuple(profiles), tuple(kept), rounds)


def _block_times(answer: child.Answer) -> list[float]:
    """Median CPU time of the plain runs of each block; idle threads cost none, so that this is a speed for several threads too."""
    runs = [runs_of_blocks(answer.block_runs, [block]) for block in range(len(answer.block_runs))]
    return [statistics.median(answer.plain_cpu_ms[index] for index in each) for each in runs]
