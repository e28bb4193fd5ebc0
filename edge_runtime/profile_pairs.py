"""Plain and instrumented runs of one model in turn, run by run, in one process: what single kernels are compared with.

A machine that gets slower for a while (another process on the same memory, a clock that falls) gets slower for both
runs of a pair.
"""

import itertools
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field

from device_profiles.measurement import CONTENTION_LIMIT

Run = Callable[[], object]


@dataclass
class Times:
    """Milliseconds of single runs, in order."""

    wall: "array[float]" = field(default_factory=lambda: array("d"))
    cpu: "array[float]" = field(default_factory=lambda: array("d"))

    def time(self, run: Run) -> None:
        """Run once."""
        cpu, wall = time.process_time_ns(), time.perf_counter_ns()
        run()
        wall_end, cpu_end = time.perf_counter_ns(), time.process_time_ns()
        self.wall.append((wall_end - wall) / 1e6)
        self.cpu.append(max(cpu_end - cpu, 1) / 1e6)

    def kept_core(self, index: int) -> bool:
        """Whether nothing else had the core during a run of one thread."""
        return self.wall[index] <= CONTENTION_LIMIT * self.cpu[index]


@dataclass
class Pairs:
    """Run i of either was the neighbour of run i of the other."""

    plain: Times = field(default_factory=Times)
    instrumented: Times = field(default_factory=Times)

    def __len__(self) -> int:
        return len(self.plain.wall)

    def kept_core(self, index: int) -> bool:
        """Whether both runs of a pair did."""
        return self.plain.kept_core(index) and self.instrumented.kept_core(index)

    def measure(self, plain: Run, instrumented: Run, *, runs: int, limit_s: float) -> int:
        """More pairs, at least one; how many."""
        begun = time.monotonic()
        for count in itertools.count(1):
            self.plain.time(plain)
            self.instrumented.time(instrumented)
            if count >= runs or time.monotonic() - begun >= limit_s:
                break
        return count
