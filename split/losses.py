"""Losses of distillation: features against the teacher's, logits against the teacher's and the labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn import functional


@dataclass(frozen=True)
class TaskLoss:
    """Loss on logits.

    Attributes:
        kind: "ce": labels only. "kd": labels and forward divergence from the teacher. "balanced": labels and both
            divergences, mixed for each picture by which of the two networks is less sure.
        alpha: Weight of the labels; the divergence has the rest.
        temperature: Softens both networks' probabilities; the divergence is multiplied by its square.
    """

    kind: Literal["ce", "kd", "balanced"] = "kd"
    alpha: float = 0.5
    temperature: float = 1.0


TASK = TaskLoss()  # both papers' second stage


def feature_loss(
    student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor], saliency: torch.Tensor | None = None
) -> torch.Tensor:
    """Sum of squared errors over all layers, elements and pictures: GHND's loss with weight 1 each.

    Args:
        student: Outputs of the target layers, the cut's first.
        teacher: The same of the teacher.
        saliency: Weights of the places, (batch, 1, h, w); other resolutions take their means. Null for 1.

    Source: Matsubara and Levorato 2020 (arXiv:2007.15818), eq. 2; weights: Furutanpey et al. 2023 (arXiv:2302.10681).
    """
    errors = [_squared(s, t, saliency) for s, t in zip(student, teacher, strict=True)]
    return torch.stack(errors).sum()


def relative_feature_loss(
    student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor], saliency: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean over the layers of the squared error against the teacher's square: 1 where the student knows nothing.

    Unlike `feature_loss` it means the same in every geometry. Arguments as there.
    """
    errors = [
        _squared(s, t, saliency) / t.float().square().sum().clamp(min=1e-12)
        for s, t in zip(student, teacher, strict=True)
    ]
    return torch.stack(errors).mean()


def _squared(student: torch.Tensor, teacher: torch.Tensor, saliency: torch.Tensor | None) -> torch.Tensor:
    if saliency is None or student.ndim != 4:
        return functional.mse_loss(student.float(), teacher.float(), reduction="sum")
    weights = functional.adaptive_avg_pool2d(saliency, student.shape[2:])
    return (weights * (student.float() - teacher.float()).square()).sum()


def task_loss(logits: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, options: TaskLoss) -> torch.Tensor:
    """Mean loss over the batch.

    Args:
        logits: Of the student, (batch, classes).
        teacher: Logits of the teacher.
        labels: int64, (batch,).
        options: Which loss.

    Source: Hinton et al. 2015 (arXiv:1503.02531).
    """
    hard = functional.cross_entropy(logits.float(), labels)
    if options.kind == "ce":
        return hard
    student_log = functional.log_softmax(logits.float() / options.temperature, 1)
    teacher_log = functional.log_softmax(teacher.float() / options.temperature, 1)
    divergence = _divergence(student_log, teacher_log, balanced=options.kind == "balanced")
    return options.alpha * hard + (1 - options.alpha) * options.temperature**2 * divergence


def _divergence(student_log: torch.Tensor, teacher_log: torch.Tensor, *, balanced: bool) -> torch.Tensor:
    """Mean over the batch of KL(teacher || student), or of its mixture with KL(student || teacher).

    The mixture follows the idea of BD-KD (Amara et al. 2022, arXiv:2212.12965): where the student is more certain than
    the teacher, the forward divergence (which spreads it) counts double, elsewhere the reverse one. Divided by 3, so that it
    weighs about as much as one divergence.
    """
    forward = (teacher_log.exp() * (teacher_log - student_log)).sum(1)
    if not balanced:
        return forward.mean()
    reverse = (student_log.exp() * (student_log - teacher_log)).sum(1)
    student_entropy = -(student_log.exp() * student_log).sum(1)
    teacher_entropy = -(teacher_log.exp() * teacher_log).sum(1)
    sure = (student_entropy < teacher_entropy).float().detach()
    return ((1 + sure) * forward + (2 - sure) * reverse).mean() / 3
