"""What is trained once the head is quantised, on the integers that it really makes: the tail's last layers, and an exit.

Both are cheap: the head is fixed, and what stands before the layers that learn is run once for each view of a picture.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from export.cut_check import Runner
from split.augment import Augmentation, without_chance
from split.bottleneck import LatentGrid
from split.early_exit import ExitClassifier, ExitOptions, exit_and_tail_logits, train_exit
from split.exit_policy import ExitPolicy, choose_policy
from split.inject import SplitNetwork, Teacher
from split.refine import Material, Refined, RefineOptions, refine_tail
from split.training_data import PictureSet


@dataclass(frozen=True, kw_only=True)
class LateTraining:
    """What to train behind a quantised head, and on what.

    Attributes:
        train: Training pictures.
        validation: Pictures that nothing was trained on: they choose the epoch, the temperature and the threshold.
        teacher: The unsplit network; the tail's last layers learn from it.
        refine: Of the tail's last layers; null to leave the tail as it is.
        exit: Of the exit; null for none.
        max_loss: Of accuracy on the validation pictures, as a share, which an exit may cost.
        augmentation: How training pictures are varied while the tail's last layers and the exit learn.
        say: Told what was reached.
    """

    train: PictureSet
    validation: PictureSet
    teacher: Teacher
    refine: RefineOptions | None = None
    exit: ExitOptions | None = None
    max_loss: float = 0.005
    augmentation: Augmentation
    say: Callable[[str], None] = lambda _: None


@dataclass(frozen=True)
class TrainedExit:
    """An exit for a head, and when pictures leave by it."""

    classifier: ExitClassifier
    policy: ExitPolicy


class RunOneByOne(nn.Module):
    """A quantised half as a module: each picture or latent of a batch by itself, as it is deployed."""

    def __init__(self, run: Runner) -> None:
        super().__init__()
        self._run = run

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """The same as its engine computes, on a CPU."""
        return torch.from_numpy(np.concatenate([self._run([one[None]])[0] for one in batch.cpu().numpy()]))


def refine_late(network: SplitNetwork, run_head: Runner, grid: LatentGrid, late: LateTraining) -> Refined | None:
    """Fine-tune the tail's last layers in place, where that is asked for.

    Raises:
        BottleneckError: The tail has no layer from which it could be fine-tuned.
    """
    if late.refine is None:
        return None
    material = Material(late.train, late.validation, late.augmentation)
    found = refine_tail(network, RunOneByOne(run_head), grid, late.teacher.cpu(), material, late.refine)
    late.say(
        f"Last layers of the tail fine-tuned on the head's integers: {100 * found.before:.1f} to {100 * found.after:.1f} % of "
        f"{len(late.validation)} validation pictures, epoch {found.epoch}"
    )
    return found


def exit_late(halves: Sequence[Runner], view: Augmentation, late: LateTraining) -> TrainedExit | None:
    """Train an exit on the integers of the deployed head, with the deployed tail as its teacher, where that is asked for.

    Args:
        halves: The quantised head and its tail.
        view: Size and normalisation of the pictures.
        late: What to train.

    Raises:
        ExitError: No validation pictures.
    """
    if late.exit is None:
        return None
    head, tail = (RunOneByOne(run) for run in halves)
    plain = without_chance(view)
    classifier = train_exit(head, tail, late.train, late.exit, late.augmentation)
    early, answers = exit_and_tail_logits(head, tail, classifier, late.validation, plain)
    labels = late.validation.labels.numpy()
    policy = choose_policy(early.numpy(), answers.numpy(), labels, max_loss=late.max_loss)
    late.say(f"Exit: temperature {policy.temperature:.2f}, threshold {policy.threshold:.3f}")
    return TrainedExit(classifier, policy)
