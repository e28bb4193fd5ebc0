"""A model of one's own, from PyTorch to a board.

headtail export own_model:digits --target rpi-4b                                  fp32, for onnxruntime
python own_model.py calibration.npz                                               inputs like the device will see
headtail export own_model:digits --target rpi-4b --calibration calibration.npz    int8
headtail export own_model:digits --target nucleo-h743zi --calibration calibration.npz
headtail split build/digits-rpi-4b-u8s8/model.onnx --list
"""

import sys

import numpy as np
import torch
from torch import nn


def digits():
    """A network for 32 x 32 grey pictures: what `MODEL` names, (module, example input)."""
    torch.manual_seed(0)  # stands for loading your weights
    module = nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU6(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU6(), nn.Conv2d(8, 16, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip
    return module, torch.zeros(1, 1, 32, 32)


if __name__ == "__main__":
    generator = np.random.default_rng(0)
    np.savez(sys.argv[1], input=generator.standard_normal((64, 1, 32, 32)).astype(np.float32))
