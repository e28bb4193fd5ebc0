"""Fine-tuning a tail's last layers: the two parts are the tail, only the last one learns, the best epoch stays."""

import copy

import pytest
import torch
from torch import nn

from split.augment import Augmentation, centre
from split.bottlefit import BottleFit, BottleFitOptions
from split.bottleneck import BottleneckError
from split.early_exit import ExitOptions
from split.estimate_late import estimate_late
from split.inject import inject, trace_network
from split.latents import IntegerHead, IntegerTail, fit_grid
from split.losses import TaskLoss
from split.refine import Front, Material, RefineOptions, divide_tail, refine_tail
from split.training_data import PictureSet

VIEW = Augmentation(16, "crop", 2)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
        self.two = nn.Sequential(nn.Conv2d(8, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.ReLU())
        self.last = nn.Linear(12, 3)

    def forward(self, x):
        x = self.two(self.one(x))
        return self.last(x.view(x.size(0), 12, -1).mean(2))


@pytest.fixture
def parts():
    torch.manual_seed(0)
    trace = trace_network(Net().eval(), torch.zeros(1, 3, 16, 16))
    student, teacher = inject(
        trace, "one", lambda at: BottleFit(8, BottleFitOptions(channels=4, stride=at.stride)), size=(16, 16)
    )
    labels = torch.arange(60) % 3
    images = torch.randint(0, 90, (60, 3, 16, 16), dtype=torch.uint8)
    images[torch.arange(60), labels] += 120
    student.train()
    for _ in range(60):  # statistics: without them the features vanish
        student(centre(images, VIEW))
    student.eval()
    data = PictureSet(images, labels, ("r", "g", "b"))
    grid = fit_grid(student, [centre(images, VIEW)])
    return student, teacher, data, grid, IntegerHead(student.bottleneck, grid)


def test_the_two_parts_are_the_tail(parts):
    student, _, _, grid, head = parts
    first, last = divide_tail(student)
    latent = head(torch.randn(5, 3, 16, 16))
    with torch.no_grad():
        wanted = IntegerTail(student, grid)(latent)
        assert torch.equal(last(Front(student, grid, first)(latent)), wanted)
    with pytest.raises(BottleneckError, match=r"\['two'\] behind the cut at 'one', found 'last'"):
        divide_tail(student, "last")


def test_only_the_last_layers_learn_and_validation_gets_no_worse(parts):
    student, teacher, data, grid, head = parts
    before = copy.deepcopy(student.state_dict())
    options = RefineOptions(epochs=20, views=2, batch=16, lr=5e-2, task=TaskLoss("ce"))
    found = refine_tail(student, head, grid, teacher, Material(data, data, VIEW), options)
    changed = {name for name, value in student.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"tail.last.weight", "tail.last.bias"}
    assert found.after > found.before
    assert 1 <= found.epoch <= 20


def test_weights_of_no_better_epoch_do_not_stay(parts):
    student, teacher, data, grid, head = parts
    before = copy.deepcopy(student.state_dict())
    wrong = PictureSet(data.images, (data.labels + 1) % 3, data.classes)  # nothing that is learnt here helps there
    options = RefineOptions(epochs=1, views=1, batch=16, lr=0.0)
    assert refine_tail(student, head, grid, teacher, Material(wrong, data, VIEW), options).epoch == 0
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_what_comes_behind_the_head_is_estimated_on_copies(parts):
    student, teacher, data, *_ = parts
    before = copy.deepcopy(student.state_dict())
    more = PictureSet(data.images.repeat(4, 1, 1, 1), data.labels.repeat(4), data.classes)
    material = Material(more, data, VIEW)
    few = estimate_late(student, teacher, material, RefineOptions(epochs=1, views=1), ExitOptions(epochs=1))
    many = estimate_late(student, teacher, material, RefineOptions(epochs=400, views=400), ExitOptions(epochs=2000))
    assert set(few.seconds) == {"refine", "exit"}
    for what, value in few.seconds.items():
        assert 0 < 5 * value < many.seconds[what]
    features = (
        400 * len(more) * 12 * 4 * 4 * 2
    )  # the layers that learn begin with 12 channels of 4 x 4, in half precision
    assert many.peak_bytes - few.peak_bytes > features
    assert estimate_late(student, teacher, material).seconds == {}
    assert all(torch.equal(value, student.state_dict()[name]) for name, value in before.items())
