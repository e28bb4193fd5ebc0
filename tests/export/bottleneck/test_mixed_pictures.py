"""Training on blended pictures from a command's options."""

from pathlib import Path

import pytest

from export.bottleneck_run import BottleneckOptions, late_training, prepare
from split.distill import train
from split.processes import TrainingError


def _options(tmp_path, task="kd"):
    return BottleneckOptions(
        method="slim",
        layer="layer2",
        data="colour_network:pictures",
        out=Path(tmp_path),
        settings={"epochs": "1,1", "batch": "12", "task": task},
        augmentation="mixed",
        refine=1,
        device="cpu",
    )


def test_blended_pictures_are_learned_from_the_teacher_alone(colour, tmp_path):
    ready = prepare("colour_network:network", _options(tmp_path))
    assert ready.options.augmentation.mixes
    assert [one.task.alpha for one in ready.stages] == [0, 0]
    train(ready.student, ready.teacher, ready.train_data, ready.stages, ready.options)
    assert not late_training(
        ready, _options(tmp_path)
    ).augmentation.mixes  # the tail's last layers learn from labels too


def test_labels_alone_say_nothing_of_blended_pictures(colour, tmp_path):
    ready = prepare("colour_network:network", _options(tmp_path, task="ce"))
    with pytest.raises(TrainingError, match="mixes pictures"):
        train(ready.student, ready.teacher, ready.train_data, ready.stages, ready.options)
