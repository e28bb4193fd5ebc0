"""Choose between engines by running them: TensorRT against ONNX Runtime's GPU providers on the same file."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from edge_runtime.backends.trt_cache import RaceResult
from edge_runtime.session import EngineError, Session

WARM_UP = 3
RUNS = 20


def run_race(
    contenders: Mapping[str, Callable[[], Session]],
    inputs: Sequence[np.ndarray],
    *,
    runs: int = RUNS,
    clock: Callable[[], float] = time.perf_counter,
) -> RaceResult:
    """Open every contender in turn, run it, and name the one with the lowest median; ties go to the first.

    Only one is open at a time: a small board has memory for one.

    Args:
        contenders: Opens each engine, in the order of preference.
        inputs: One set of inputs for all.
        runs: Timed runs, after `WARM_UP` untimed ones.
        clock: Seconds.

    Raises:
        EngineError: None of them runs; the message holds each reason.
    """
    medians: dict[str, float] = {}
    failed: dict[str, str] = {}
    for name, opener in contenders.items():
        try:
            session = opener()
        except EngineError as error:
            failed[name] = str(error)[:500]
            continue
        try:
            medians[name] = _median_ms(session, inputs, runs, clock)
        except EngineError as error:
            failed[name] = str(error)[:500]
        finally:
            session.close()
    if not medians:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
        raise EngineError(f"Wanted one engine that runs this network, found none. {reasons}")
    winner = min(medians, key=lambda name: medians[name])  # min keeps the first of equals
    return RaceResult(winner=winner, median_ms=medians, failed=failed)


def _median_ms(session: Session, inputs: Sequence[np.ndarray], runs: int, clock: Callable[[], float]) -> float:
    for _ in range(WARM_UP):
        session.run(inputs)
    times = []
    for _ in range(runs):
        start = clock()
        session.run(inputs)
        times.append((clock() - start) * 1000)
    return statistics.median(times)
