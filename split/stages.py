"""One stage of training as data: how long, with which optimiser, on which loss, with what frozen."""

import math
from dataclasses import dataclass
from typing import Literal

from device_profiles.errors import EdgeError
from split.losses import TaskLoss

Targets = Literal["all", "cut", "deep"]


class StageError(EdgeError):
    """A stage that cannot be run."""


@dataclass(frozen=True)
class Stage:
    """A stage.

    Attributes:
        name: In metrics and messages.
        epochs: Passes over the data, at least 1.
        batch: Pictures for each step, over all processes.
        optimiser: "adam", or "sgd" with momentum 0.9 and weight decay 5e-4.
        lr: At the start.
        milestones: Parts of the stage after which the learning rate falls, in (0, 1), rising.
        gamma: Factor at each milestone.
        cosine: Let the learning rate fall along half a cosine instead.
        beta: Weight of the bits: of the batch's sum in the loss on features, of the mean picture's beside a loss on logits.
        task: Loss on logits; null for the loss on features, with the tail frozen.
        features: Weight of the relative feature error beside a loss on logits.
        targets: Whose errors these are: of all compared layers, of the cut alone, or of those behind it.
        saliency: Weigh feature errors by how much the teacher's decision depends on the place.
        tail_lr: Factor of the learning rate for what starts trained: the tail, and first layers that the head keeps.
        fixes_encoder: From this stage on the encoder stays as it is.
        quantises_encoder: From this stage on the encoder computes what its int8 form will.
    """

    name: str
    epochs: int
    batch: int
    optimiser: Literal["adam", "sgd"] = "adam"
    lr: float = 1e-3
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1
    cosine: bool = False
    beta: float = 0.0
    task: TaskLoss | None = None
    features: float = 0.0
    targets: Targets = "all"
    saliency: bool = False
    tail_lr: float = 1.0
    fixes_encoder: bool = False
    quantises_encoder: bool = False

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch < 1 or not self.lr > 0:
            raise StageError(
                f"Wanted at least 1 epoch, a batch of at least 1 and a learning rate above 0 in stage {self.name!r}, found "
                f"{self.epochs}, {self.batch} and {self.lr}."
            )

    def rate_at(self, progress: float) -> float:
        """The learning rate when this part of the stage, in [0, 1], is done."""
        if self.cosine:
            return self.lr * (1 + math.cos(math.pi * min(progress, 1.0))) / 2
        return self.lr * self.gamma ** sum(progress >= milestone for milestone in self.milestones)
