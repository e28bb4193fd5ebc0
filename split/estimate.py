"""What a training run will cost, measured on a few of its own steps (`--dry-run`)."""

import contextlib
import copy
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from split.distill import Progress, TrainOptions, fit, train
from split.inject import SplitNetwork, Teacher
from split.stages import Stage
from split.training_data import PictureSet

_STEPS = 3  # the first one warms up


@dataclass(frozen=True)
class Estimate:
    """Cost of a run.

    Attributes:
        seconds: Of each stage, on this machine as busy as it is now.
        fit_s: Of what the bottleneck computes from pictures before them.
        peak_bytes: Of the process on a CPU (data included), of the allocator on a GPU.
    """

    seconds: tuple[float, ...]
    fit_s: float
    peak_bytes: int


class _EnoughError(Exception):
    """Ends a measured stage."""


def estimate(
    student: SplitNetwork, teacher: Teacher, data: PictureSet, stages: Sequence[Stage], options: TrainOptions
) -> Estimate:
    """Run what comes before training, and a few steps of each stage, on copies; nothing is kept.

    Args:
        student: As for `train`.
        teacher: As for `train`.
        data: As for `train`.
        stages: As for `train`.
        options: As for `train`; the folder is not touched.

    Raises:
        TrainingError: As `train` would.
    """
    seconds = []
    student = copy.deepcopy(student)
    begun = time.monotonic()
    fit(student, data, options.augmentation)
    fit_s = time.monotonic() - begun
    student.bottleneck.fits = 0  # once is enough
    for stage in stages:
        times: list[float] = []

        def on_step(_: Progress, times: list[float] = times) -> None:
            times.append(time.monotonic())
            if len(times) == _STEPS:
                raise _EnoughError

        with tempfile.TemporaryDirectory() as folder:
            quick = replace(options, folder=Path(folder), on_step=on_step, time_budget_s=None)
            with contextlib.suppress(_EnoughError):
                train(student, teacher, data, [stage], quick)
        each = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 0.0
        seconds.append(each * (len(data) // stage.batch) * stage.epochs)
    scale = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
    if next(student.parameters()).is_cuda:
        peak = torch.cuda.max_memory_allocated()
    return Estimate(tuple(seconds), fit_s, int(peak))
