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

from edge_runtime.manifest import Preprocessing


def digits():
    """A network for 32 x 32 pictures: what `MODEL` names, (module, example input, how a picture becomes the input).

    The third is for pictures from a folder or a camera. Without it the device wants arrays of the example's shape.
    """
    torch.manual_seed(0)  # stands for loading your weights
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU6(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU6(), nn.Conv2d(8, 16, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip
    pictures = Preprocessing(resize_short=32, crop=(32, 32), mean=(127.5,) * 3, std=(127.5,) * 3)  # of pixels 0 to 255
    return module, torch.zeros(1, 3, 32, 32), pictures


if __name__ == "__main__":
    generator = np.random.default_rng(0)
    np.savez(sys.argv[1], input=generator.uniform(-1, 1, (64, 3, 32, 32)).astype(np.float32))
