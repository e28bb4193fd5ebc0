"""A small network of pictures, and pictures for it, made on the spot: what MODEL and --data name in these tests."""

import numpy as np
import torch
from torch import nn

from edge_runtime.manifest import Licence, Preprocessing
from export.source import ModelSource

PREPROCESSING = Preprocessing(resize_short=32, crop=(32, 32), mean=(127.5,) * 3, std=(127.5,) * 3)
LABELS = ("red", "green", "blue")


class Cells(nn.Module):
    """Four layers of strides 2, 4, 8, 16 that can be cut behind."""

    def __init__(self, width=8):
        super().__init__()
        sizes = (3, width, 2 * width, 2 * width, 4 * width)
        for number in range(4):
            layer = nn.Sequential(
                nn.Conv2d(sizes[number], sizes[number + 1], 3, 2, 1, bias=False),
                nn.BatchNorm2d(sizes[number + 1]),
                nn.ReLU(),
            )
            setattr(self, f"layer{number + 1}", layer)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(sizes[-1], len(LABELS))

    def forward(self, image):
        x = self.layer4(self.layer3(self.layer2(self.layer1(image))))
        return self.fc(torch.flatten(self.pool(x), 1))


def colours(count=48, seed=5):
    """uint8 (count, 3, 32, 32) and class ids: one colour channel is brighter than the others."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    images = rng.integers(0, 120, (count, 3, 32, 32), np.uint8)
    images[np.arange(count), labels] += 60
    return images, labels


def trained_network():
    """The network after a few steps on other pictures."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        network = Cells()
        images, labels = colours(96, seed=1)
        x, wanted = (torch.from_numpy(images).float() - 127.5) / 127.5, torch.from_numpy(labels)
        optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
        network.train()
        for _ in range(10):
            optimiser.zero_grad()
            nn.functional.cross_entropy(network(x), wanted).backward()
            optimiser.step()
    return network.eval()


def network():
    return ModelSource(
        module=trained_network(),
        example=(torch.zeros(1, 3, 32, 32),),
        preprocessing=PREPROCESSING,
        labels=LABELS,
        licences=(Licence(subject="weights", spdx="CC0-1.0", attribution="made in a test"),),
    )


def without_preprocessing():
    return trained_network(), torch.zeros(1, 3, 32, 32)


def sequences():
    """No network of pictures."""
    return nn.Sequential(nn.Linear(16, 3)), torch.zeros(1, 16)


def pictures():
    """Data as a function: 48 pictures and their class ids."""
    images, labels = colours()
    return list(images.transpose(0, 2, 3, 1)), labels
