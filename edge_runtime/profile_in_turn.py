"""Several artefacts measured in turn, so that each of them sees every speed that the machine has meanwhile."""

import statistics
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec

from device_profiles.measurement import Profile
from edge_runtime import profile_child as child
from edge_runtime import profile_system as system
from edge_runtime.artefact import Artefact
from edge_runtime.profile_process import MeasuringProcess
from edge_runtime.profile_rounds import fastest_blocks
from edge_runtime.profile_runs import kernel_request, read_pairs, runs_of_blocks
from edge_runtime.profiler import ProfileOptions, assemble, make_request, threads_of

SETTLE_S = 0.03  # a turn is short: rounds shall be many


def profile_in_turn(
    artefacts: Sequence[Artefact], options: ProfileOptions, *, rounds: int,
    beside: Callable[[int], object] = lambda _round: None, on_step: Callable[[str], None] = lambda _text: None,
) -> list[Profile]:  # fmt: skip
    """Measure the kernels of several artefacts, block by block in turn; of each only its fastest blocks count.

    Args:
        artefacts: For ONNX Runtime; each has a process of its own all the while.
        options: `runs` and `limit_s` are those of all rounds together; energy, `seconds` and `minutes` have no meaning here.
        rounds: In each of which every artefact runs one block.
        beside: Called at the end of each round with its number, for what shall see the same speeds of the machine.
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
            request = msgspec.structs.replace(kernel_request(request, runs=request.runs), settle_s=SETTLE_S)
            process = MeasuringProcess(request, folder, turns=rounds, processes=len(artefacts))
            if not stack.enter_context(process).wait_ready():
                process.finish()  # says why it ended
            begun.append((artefact, threads, process, folder))
        for number in range(rounds):
            on_step(f"round {number + 1} of {rounds}")
            for _, _, process, _ in begun:
                process.turn()
            beside(number)
        profiles = []
        for artefact, threads, process, folder in begun:
            answer = process.finish()
            measured = read_pairs(artefact, folder, answer, threads, fastest_blocks(_block_times(answer)))
            profiles.append(assemble(artefact, options, threads, measured, load))
    return profiles


def _block_times(answer: child.Answer) -> list[float]:
    """Median CPU time of the pairs of each block; idle threads cost none, so that this is a speed for several threads too."""
    both = [plain + other for plain, other in zip(answer.plain_cpu_ms, answer.cpu_ms, strict=True)]
    runs = [runs_of_blocks(answer.block_runs, [block]) for block in range(len(answer.block_runs))]
    return [statistics.median(both[index] for index in each) for each in runs]
