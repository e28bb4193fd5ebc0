"""The training loop of both bottlenecks: one process or `torchrun`, resumable after a kill at any moment.

All chance of a step (order of the data, augmentation, noise, dropout) is drawn from the seed and the step's number, so a
run that was killed continues from its checkpoint with the same numbers; on a CPU the result is the same to the last bit.
"""

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from split.augment import Augmentation, augment, draw
from split.checkpoint import Checkpoint, MetricsFile, Position, load_checkpoint, make_folder, save_checkpoint
from split.inject import SplitNetwork, StudentOutput, Teacher
from split.latents import input_batches
from split.processes import Place, TrainingError, processes
from split.stage_loss import stage_loss
from split.stages import Stage
from split.teacher_cache import TeacherCache
from split.training_data import PictureSet

_MOMENTUM, _WEIGHT_DECAY = 0.9, 5e-4
_LAYOUT = torch.channels_last  # a CPU's depthwise convolutions take half as long, and a GPU's half precision wants it


@dataclass(frozen=True)
class Progress:
    """After each step, for whoever shows it."""

    stage: str
    step: int  # of the stage, from 1
    steps: int  # of the stage, as planned
    loss: float  # on a GPU that of the last row of metrics: reading it at each step would make the GPU wait
    left_s: float  # estimate, for the whole run


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """How to run, not what to learn.

    Attributes:
        folder: Checkpoint and metrics; one folder for each run.
        seed: Of everything that is random.
        augmentation: Of the training pictures.
        time_budget_s: Seconds for all stages, shared by their planned pictures; a stage ends early when its share is used
            up, its learning rates come earlier then. Null for no limit. With a budget a run is not repeatable.
        checkpoint_every_s: Seconds between checkpoints.
        log_every: Steps between rows of metrics.
        device: "cuda", "cpu", or "" for what is there.
        mixed_precision: bfloat16 where the GPU has it.
        cache_bytes: Main memory for teacher outputs, which are kept where the augmentation repeats pictures.
        on_step: Is called after each step of the first process.
    """

    folder: Path
    augmentation: Augmentation
    seed: int = 0
    time_budget_s: float | None = None
    checkpoint_every_s: float = 60.0
    log_every: int = 10
    device: str = ""
    mixed_precision: bool = True
    cache_bytes: int = 1 << 30
    on_step: Callable[[Progress], None] | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class StageSteps:
    """How far a stage came: `step` of `steps` as planned, in all processes that ran it."""

    stage: str
    step: int
    steps: int


@dataclass(frozen=True)
class TrainReport:
    """What was done."""

    stages: tuple[StageSteps, ...]
    resumed_at: Position | None
    seconds: float  # of this process

    @property
    def steps(self) -> tuple[int, ...]:
        """Of each stage."""
        return tuple(one.step for one in self.stages)


def train(
    student: SplitNetwork, teacher: Teacher, data: PictureSet, stages: Sequence[Stage], options: TrainOptions
) -> TrainReport:
    """Train a network with a bottleneck, in place; continue where the folder's checkpoint stands.

    Args:
        student: From `split.inject.inject`.
        teacher: Its counterpart.
        data: Training pictures.
        stages: One after another; each starts with a new optimiser.
        options: Folder, seed, device, limits.

    Raises:
        TrainingError: Fewer pictures than a batch, no such device, or a loss that is not finite.
        CheckpointError: The folder holds another run, or cannot be written.
    """
    for stage in stages:
        if stage.targets == "deep" and len(student.compared) < 2:
            raise TrainingError(
                f"Wanted a compared layer behind the cut at {student.layer!r} for deep targets in stage {stage.name!r}, found none. "
                "Cut earlier, or use the targets all or cut."
            )
        if len(data) < stage.batch:
            raise TrainingError(
                f"Wanted at least one batch of {stage.batch} pictures for stage {stage.name!r}, found {len(data)}. Use a smaller batch."
            )
        if options.augmentation.mixes and stage.task and (stage.task.kind == "ce" or stage.task.alpha):
            raise TrainingError(
                f"Wanted a loss against the teacher alone in stage {stage.name!r}, because the augmentation mixes pictures, found "
                f"{stage.task}. Use alpha 0, or pictures that are not mixed."
            )
    with processes(options.device) as place:
        fit(student.to(device=place.device, memory_format=_LAYOUT), data, options.augmentation)
        return _Run(student, teacher, data, stages, options, place).go()


def fit(student: SplitNetwork, data: PictureSet, augmentation: Augmentation) -> None:
    """Compute what the bottleneck takes from pictures before training, in place; nothing for most methods.

    Args:
        student: From `split.inject.inject`.
        data: Training pictures; the bottleneck says how many, evenly spaced.
        augmentation: Its centre counts.
    """
    if count := student.bottleneck.fits:
        batches = input_batches(data.evenly(count), augmentation)
        student.bottleneck.fit((one.contiguous(memory_format=_LAYOUT) for one in batches), student.tail)


class _Run:
    """One run: state that changes from step to step."""

    def __init__(
        self,
        student: SplitNetwork,
        teacher: Teacher,
        data: PictureSet,
        stages: Sequence[Stage],
        options: TrainOptions,
        place: Place,
    ) -> None:
        cuda = place.device.type == "cuda"
        self.student, self.teacher = student, teacher.to(device=place.device, memory_format=_LAYOUT)
        kept = 0 if cuda else options.cache_bytes  # a GPU computes them faster than it copies them
        self.cache = TeacherCache(self.teacher, data, options.augmentation, limit_bytes=kept)
        self.images, self.labels = _on_device(data, place.device)
        self.loss = 0.0  # the last one that was read; on a GPU only some are, so that it need not wait
        self.looks = True
        self.data, self.stages, self.options, self.place = data, stages, options, place
        self.run = run_identity((student, teacher), data, stages, options)
        self.position = Position()
        self.last_save = self.begin = time.monotonic()
        self.mixed = options.mixed_precision and cuda and torch.cuda.is_bf16_supported()
        self.wrapped: nn.Module = student
        self.optimiser: torch.optim.Optimizer | None = None
        self.metrics: MetricsFile | None = None

    def go(self) -> TrainReport:
        make_folder(self.options.folder)
        if self.place.world > 1:
            distributed.barrier()  # the first process may still be writing the checkpoint of a run before
        checkpoint = load_checkpoint(self.options.folder, run=self.run, device=self.place.device)
        self.position = checkpoint.position if checkpoint else Position()
        if self.place.rank == 0:
            self.metrics = MetricsFile(self.options.folder, self.position.metrics_bytes)
        before = [self._planned(stage) for stage in self.stages[: self.position.stage]]
        if len(self.position.finished) < len(before):  # a checkpoint from before these were kept
            self.position = replace(self.position, finished=tuple(before))
        try:
            for number, stage in enumerate(self.stages):
                self._enter(stage)
                if number < self.position.stage:
                    continue
                if checkpoint and number == checkpoint.position.stage:
                    self._restore(checkpoint)
                self._run_stage(number, stage)
                finished = (*self.position.finished, self.position.step)
                self.position = replace(self.position, stage=number + 1, step=0, elapsed_s=0.0, finished=finished)
                self.optimiser = None
                self._save()
            if checkpoint and checkpoint.position.stage == len(self.stages):
                self._restore(checkpoint)
        finally:
            if self.metrics:
                self.metrics.close()
        self.student.eval()
        for one in (self.student, self.teacher):  # a LiteRT tail of weights in another layout computed something else
            one.to(memory_format=torch.contiguous_format)
        resumed = checkpoint.position if checkpoint else None
        taken = zip(self.stages, self.position.finished, strict=True)
        reached = tuple(StageSteps(stage.name, step, self._planned(stage)) for stage, step in taken)
        return TrainReport(reached, resumed, time.monotonic() - self.begin)

    def _enter(self, stage: Stage) -> None:
        """Freeze what this stage freezes, and make its optimiser."""
        if stage.quantises_encoder:
            self.student.bottleneck.quantise_encoder()
        if stage.fixes_encoder:
            self.student.bottleneck.fix_encoder()
        self.student.tail.requires_grad_(stage.task is not None)
        self.student.train()
        tail = [one for one in self.student.tail.parameters() if one.requires_grad]
        block = self.student.bottleneck
        new, kept = ([one for one in some if one.requires_grad] for some in (block.untrained(), block.pretrained()))
        parts = ((new, 1.0), (kept, stage.tail_lr), (tail, stage.tail_lr))
        groups = [{"params": part, "factor": factor} for part, factor in parts if part]
        fused = self.place.device.type == "cuda" or None
        if stage.optimiser == "adam":
            self.optimiser = torch.optim.Adam(groups, lr=stage.lr, fused=fused)
        else:
            self.optimiser = torch.optim.SGD(
                groups, lr=stage.lr, momentum=_MOMENTUM, weight_decay=_WEIGHT_DECAY, fused=fused
            )
        self.wrapped = self.student
        if self.place.world > 1:
            ids = [self.place.device.index] if self.place.device.type == "cuda" else None
            self.wrapped = DistributedDataParallel(self.student, device_ids=ids, find_unused_parameters=True)

    def _restore(self, checkpoint: Checkpoint) -> None:
        self.student.load_state_dict(checkpoint.student)
        if checkpoint.optimiser is not None and self.optimiser is not None:
            self.optimiser.load_state_dict(dict(checkpoint.optimiser))

    def _run_stage(self, number: int, stage: Stage) -> None:
        per_epoch, planned = len(self.data) // stage.batch, self._planned(stage)
        share = self._share(stage)
        while self.position.step < planned:
            step, elapsed = self.position.step, self.position.elapsed_s
            progress = max(step / planned, elapsed / share if share else 0.0)
            progress = self._agreed(progress)
            if progress >= 1:
                break
            start = time.monotonic()
            seed = _mix(self.options.seed, number, step)
            order = _order(len(self.data), _mix(self.options.seed, number, -1 - step // per_epoch))
            first = step % per_epoch * stage.batch
            lr = stage.rate_at(progress)
            saves = time.monotonic() - self.last_save >= self.options.checkpoint_every_s
            row = (step + 1) % self.options.log_every == 0 or step + 1 in (1, planned)
            self.looks = row or saves or self.place.device.type == "cpu"
            terms = self._step(stage, order[first : first + stage.batch], seed, lr)
            self.position = replace(self.position, step=step + 1, elapsed_s=elapsed + time.monotonic() - start)
            if row:
                self._note(stage, lr, terms)
            self._tell(stage, planned)
            if saves:
                self._save()

    def _step(self, stage: Stage, indices: torch.Tensor, seed: int, lr: float) -> dict[str, torch.Tensor]:
        """One optimiser step; returns the terms of this process's part of the loss."""
        place, optimiser = self.place, self.optimiser
        assert optimiser is not None
        mine = slice(place.rank, None, place.world)
        draws, own = draw(len(indices), seed).part(mine), indices[mine]
        there = own.to(self.images.device)
        x = augment(self.images[there].to(place.device), self.options.augmentation, draws)
        x = x.contiguous(memory_format=_LAYOUT)
        labels = self.labels[there].to(place.device)
        torch.manual_seed(_mix(seed, place.rank, 1))
        for group in optimiser.param_groups:
            group["lr"] = lr * group["factor"]
        with torch.autocast(place.device.type, dtype=torch.bfloat16, enabled=self.mixed):
            wanted = self.cache.outputs(x, own, draws, saliency=stage.saliency)
            output: StudentOutput = self.wrapped(x)
        loss, parts = stage_loss(stage, output, wanted, labels)
        if self.looks:
            self._check(stage, float(loss.detach()))
        optimiser.zero_grad(set_to_none=True)
        if stage.task is None:
            loss = loss * place.world  # sums over the batch; the processes' gradients are averaged
        loss.backward()
        optimiser.step()
        return {"loss": loss.detach()} | parts

    def _check(self, stage: Stage, loss: float) -> None:
        """Before a step whose result is kept or written."""
        self.loss = loss
        if not math.isfinite(loss):
            raise TrainingError(
                f"Wanted a finite loss in stage {stage.name!r}, found {loss} at step {self.position.step}. Use a smaller learning "
                "rate, or look at the data."
            )

    def _note(self, stage: Stage, lr: float, terms: dict[str, torch.Tensor]) -> None:
        """A row of metrics."""
        if self.metrics:
            values = {key: float(value.detach()) for key, value in terms.items()}
            self.metrics.add({"stage": stage.name, "step": self.position.step, "lr": lr, **values})
            self.position = replace(self.position, metrics_bytes=self.metrics.length)

    def _tell(self, stage: Stage, planned: int) -> None:
        if self.place.rank:
            return
        step = self.position.step
        if self.options.on_step:
            each = self.position.elapsed_s / step
            left = each * (planned - step)
            share = self._share(stage)
            if share:
                left = min(left, max(share - self.position.elapsed_s, 0.0))
            later = self.stages[self.position.stage + 1 :]
            left += sum(self._share(one) or each * self._pictures(one) / stage.batch for one in later)
            self.options.on_step(Progress(stage.name, step, planned, self.loss, left))

    def _save(self) -> None:
        self.last_save = time.monotonic()
        if self.place.rank:
            return
        optimiser = self.optimiser.state_dict() if self.optimiser else None
        save_checkpoint(
            self.options.folder, Checkpoint(self.position, self.student.state_dict(), optimiser), run=self.run
        )

    def _planned(self, stage: Stage) -> int:
        return len(self.data) // stage.batch * stage.epochs

    def _pictures(self, stage: Stage) -> int:
        return self._planned(stage) * stage.batch

    def _share(self, stage: Stage) -> float:
        """Seconds of the budget that belong to a stage; 0 for no limit."""
        if self.options.time_budget_s is None:
            return 0.0
        return self.options.time_budget_s * self._pictures(stage) / sum(map(self._pictures, self.stages))

    def _agreed(self, progress: float) -> float:
        """The first process's clock counts for all."""
        if self.place.world == 1 or self.options.time_budget_s is None:
            return progress
        value = torch.tensor(progress, dtype=torch.float64, device=self.place.device)
        distributed.broadcast(value, 0)
        return float(value)


def run_identity(
    networks: tuple[SplitNetwork, Teacher], data: PictureSet, stages: Sequence[Stage], options: TrainOptions
) -> str:
    """16 hex digits that are equal when the student's form and options, the teacher, data, stages, seed and augmentation are.

    Args:
        networks: Student and teacher.
        data: Labels count in full, pictures by a sample of 64.
        stages: The recipe.
        options: Only what changes the result counts.
    """
    student, teacher = networks
    shapes = [(name, tuple(one.shape)) for name, one in student.state_dict().items()]
    settings = (student.bottleneck.form, tuple(stages), options.seed, options.augmentation, options.cache_bytes)
    digest = hashlib.sha256(repr((shapes, settings, tuple(data.images.shape), data.classes)).encode())
    for one in teacher.state_dict().values():
        digest.update(one.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    digest.update(data.labels.numpy().tobytes())
    digest.update(data.images[:: max(1, len(data) // 64)].contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _on_device(data: PictureSet, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures and labels on the GPU where they take at most half of what is free there."""
    if device.type != "cuda" or data.images.nbytes > torch.cuda.mem_get_info(device)[0] // 2:
        return data.images, data.labels
    return data.images.to(device), data.labels.to(device)


def _mix(*numbers: int) -> int:
    """A seed from numbers: independent for each combination."""
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:7], "little")


@lru_cache(maxsize=1)
def _order(count: int, seed: int) -> torch.Tensor:
    """A permutation; all steps of an epoch ask for the same one."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))
