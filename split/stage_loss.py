"""What a stage minimises, from what student and teacher computed of one batch."""

import torch

from split.inject import Features, StudentOutput
from split.losses import feature_loss, relative_feature_loss, task_loss
from split.stages import Stage

_COUNTED = {"all": slice(None), "cut": slice(1), "deep": slice(1, None)}  # the cut's layer comes first


def stage_loss(
    stage: Stage, output: StudentOutput, wanted: Features, labels: torch.Tensor
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """A stage's loss for this process's part of a batch, and its terms."""
    bits = output.coded.bits
    if stage.task is None:
        features = feature_loss(output.features, wanted.features, wanted.saliency)
        return features + stage.beta * bits + output.coded.auxiliary, {"features": features, "bits": bits}
    task = task_loss(output.logits, wanted.logits, labels, stage.task)
    loss, parts = task, {"task": task, "bits": bits}
    if stage.features:
        counted = _COUNTED[stage.targets]
        parts["features"] = relative_feature_loss(output.features[counted], wanted.features[counted], wanted.saliency)
        loss = loss + stage.features * parts["features"]
    if stage.beta or stage.features:  # the encoder still learns
        loss = loss + stage.beta * bits / len(labels) + output.coded.auxiliary
    return loss, parts
