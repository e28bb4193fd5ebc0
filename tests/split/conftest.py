"""Minimal backbones with the published layer tables, and a tiny network with data, made on the spot."""

import numpy as np
import pytest
import torch
from torch import nn

from split.training_data import PictureSet


class Block(nn.Module):
    """A residual block: 1x1, 3x3, 1x1 as in ResNet-50 and -152."""

    def __init__(self, inputs, width, stride):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 4 * width, 1, bias=False),
            nn.BatchNorm2d(4 * width),
        )
        same = stride == 1 and inputs == 4 * width
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, 4 * width, 1, stride, bias=False)

    def forward(self, x):
        return torch.relu(self.body(x) + self.shortcut(x))


class ResNet(nn.Module):
    """ResNet with bottleneck blocks; (3, 4, 6, 3) is ResNet-50, (3, 8, 36, 3) ResNet-152."""

    def __init__(self, depths, base=64, classes=1000):
        super().__init__()
        self.conv1 = nn.Conv2d(3, base, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(base)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inputs = base
        for number, depth in enumerate(depths, 1):
            width = base * 2 ** (number - 1)
            blocks = []
            for index in range(depth):
                blocks.append(Block(inputs, width, 2 if number > 1 and not index else 1))
                inputs = 4 * width
            setattr(self, f"layer{number}", nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


class DenseLayer(nn.Module):
    """BN, ReLU, 1x1, BN, ReLU, 3x3; its output joins the input."""

    def __init__(self, inputs, growth):
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.ReLU(),
            nn.Conv2d(inputs, 4 * growth, 1, bias=False),
            nn.BatchNorm2d(4 * growth),
            nn.ReLU(),
            nn.Conv2d(4 * growth, growth, 3, 1, 1, bias=False),
        )

    def forward(self, x):
        return torch.cat([x, self.body(x)], 1)


class DenseNet(nn.Module):
    """DenseNet; depths (6, 12, 32, 32) with growth 32 is DenseNet-169."""

    def __init__(self, depths=(6, 12, 32, 32), growth=32, classes=1000):
        super().__init__()
        channels = 2 * growth
        parts = {
            "conv0": nn.Conv2d(3, channels, 7, 2, 3, bias=False),
            "norm0": nn.BatchNorm2d(channels),
            "relu0": nn.ReLU(),
            "pool0": nn.MaxPool2d(3, 2, 1),
        }
        for number, depth in enumerate(depths, 1):
            layers = [DenseLayer(channels + growth * index, growth) for index in range(depth)]
            parts[f"denseblock{number}"] = nn.Sequential(*layers)
            channels += growth * depth
            if number < len(depths):
                halve = (nn.Conv2d(channels, channels // 2, 1, bias=False), nn.AvgPool2d(2, 2))
                parts[f"transition{number}"] = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(), *halve)
                channels //= 2
        parts["norm5"] = nn.BatchNorm2d(channels)
        self.features = nn.Sequential()
        for name, part in parts.items():
            self.features.add_module(name, part)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x):
        x = torch.relu(self.features(x))
        return self.classifier(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Tiny tensors: more threads only wait for each other, and one thread's sums are the same each time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def resnet():
    """Makes a ResNet of given depths."""
    return ResNet


@pytest.fixture(scope="session")
def densenet():
    """Makes a DenseNet."""
    return DenseNet


@pytest.fixture
def tiny(resnet):
    """A four-stage ResNet of a few thousand weights."""
    torch.manual_seed(7)
    return resnet((1, 1, 1, 1), base=2, classes=3).eval()


@pytest.fixture
def pictures():
    """48 pictures of 32 x 32 in three classes: one colour channel is brighter than the others."""
    rng = np.random.default_rng(5)
    labels = np.arange(48) % 3
    images = rng.integers(0, 120, (48, 3, 32, 32), np.uint8)
    images[np.arange(48), labels] += 100
    return PictureSet.of_arrays(images, labels, classes=("red", "green", "blue"))
