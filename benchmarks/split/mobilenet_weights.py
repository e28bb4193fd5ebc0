"""ImageNet weights for MobileNetV2 out of an int8 .tflite, in which batch norm is folded.

    python -m benchmarks.split.mobilenet_weights OUT.pt    writes them for a machine without HEADTAIL_DATA
    python -m benchmarks.split.mobilenet_weights --check   accuracy on ImageNet samples, beside the file's own

Each convolution gets its folded weights. Each batch norm measures its input on training pictures, and starts by undoing what
it does to it, but for the folded bias: the network computes what the file does, and trains as one with batch norm.
"""

import argparse
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from benchmarks.data import data_path, imagenet_samples
from benchmarks.split.nets import MobileNetV2
from export.cut_litert import load_tflite
from split.augment import IMAGENET_MEAN, IMAGENET_STD, Augmentation, centre
from split.training_data import DataOptions, open_pictures

FILE = "models/tflite-micro/mobilenet_v2_quantized_1x3x224x224.tflite"
MEASURED = 1000  # training pictures behind the statistics of batch norm
_SIZE = 160
_WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")

Folded = list[tuple[torch.Tensor, torch.Tensor]]


def imagenet_state() -> dict[str, torch.Tensor]:
    """Everything but the classifier, with statistics of grocery's training pictures."""
    network = folded_network(read_folded(data_path(FILE)))
    pictures = open_pictures(data_path("data/grocery/train.npz"), DataOptions(_SIZE, label_key="coarse_label"))
    chosen = torch.from_numpy(np.random.default_rng(0).permutation(len(pictures))[:MEASURED])
    view = Augmentation(_SIZE, "none", 0, IMAGENET_MEAN, IMAGENET_STD)
    measure(network, [centre(one, view) for one in pictures.images[chosen].split(50)])
    return {name: one for name, one in network.state_dict().items() if not name.startswith("classifier.")}


def read_folded(path: Path) -> Folded:
    """Weights and biases in float, in the order of the layers, in torch's layout (outputs, inputs, height, width)."""
    network = load_tflite(path)
    found = []
    for node, operator in zip(network.graph.nodes, network.model.subgraphs[0].operators, strict=True):
        if node.op in _WEIGHTED:
            weights, bias = (_real(network.model, int(index)) for index in operator.inputs[1:3])
            if node.op == "DEPTHWISE_CONV_2D":  # (1, height, width, channels)
                weights = weights.permute(3, 0, 1, 2)
            elif node.op == "CONV_2D":  # (outputs, height, width, inputs)
                weights = weights.permute(0, 3, 1, 2)
            found.append((weights.contiguous(), bias))
    return found


def _real(model: Any, index: int) -> torch.Tensor:
    """A constant tensor times its scales, which lie along one dimension; weights and biases have no zero points."""
    tensor = model.subgraphs[0].tensors[index]
    kind = np.int8 if len(tensor.shape) > 1 else np.int32
    values = np.asarray(model.buffers[tensor.buffer].data, np.uint8).view(kind).reshape(tensor.shape)
    scales = np.asarray(tensor.quantization.scale, np.float64)
    along = [1] * values.ndim
    along[tensor.quantization.quantizedDimension] = len(scales)
    return torch.from_numpy((values * scales.reshape(along)).astype(np.float32))


def folded_network(folded: Folded) -> MobileNetV2:
    """In evaluation mode; each batch norm adds the folded bias and does nothing else."""
    network = MobileNetV2().eval()
    layers = [one for one in network.modules() if isinstance(one, nn.Conv2d | nn.BatchNorm2d | nn.Linear)]
    layers, classifier = layers[:-1], layers[-1]
    with torch.no_grad():
        for convolution, norm, (weights, bias) in zip(layers[::2], layers[1::2], folded[:-1], strict=True):
            convolution.weight.copy_(weights)
            norm.weight.fill_((1 + norm.eps) ** 0.5)
            norm.bias.copy_(bias)
        classifier.weight.copy_(folded[-1][0])
        classifier.bias.copy_(folded[-1][1])
    return network


@torch.no_grad()
def measure(network: nn.Module, batches: list[torch.Tensor]) -> None:
    """Give each batch norm the mean and variance of its input, and weights that keep what it computes (in place)."""
    norms = [one for one in network.modules() if isinstance(one, nn.BatchNorm2d)]
    sums = {norm: [torch.zeros(norm.num_features, dtype=torch.float64) for _ in range(2)] for norm in norms}

    def look(norm: nn.BatchNorm2d, inputs: tuple[torch.Tensor]) -> None:
        x = inputs[0].double()
        for total, one in zip(sums[norm], (x, x.square()), strict=True):
            total += one.mean((0, 2, 3)) * len(x)

    handles = [norm.register_forward_pre_hook(look) for norm in norms]
    for batch in batches:
        network(batch)
    for handle in handles:
        handle.remove()
    count = sum(len(one) for one in batches)
    for norm, (first, second) in sums.items():
        mean = first / count
        variance = (second / count - mean.square()).clamp(min=0)
        gain = norm.weight / (norm.running_var + norm.eps).sqrt()
        norm.bias += gain * (mean.float() - norm.running_mean)
        norm.weight.copy_(gain * (variance.float() + norm.eps).sqrt())
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)


def check() -> tuple[float, float, float]:
    """Accuracy on the ImageNet samples, centre of 224 px: float network, the .tflite itself; how often both agree."""
    from ai_edge_litert.interpreter import Interpreter

    network = folded_network(read_folded(data_path(FILE)))
    engine = Interpreter(str(data_path(FILE)), num_threads=1)
    engine.allocate_tensors()
    into, out = engine.get_input_details()[0], engine.get_output_details()[0]
    scale, zero = into["quantization"]
    samples, found = imagenet_samples(), []
    for blob in samples.pictures:
        x = _picture(blob)
        integers = np.clip(np.round(x.numpy() / scale) + zero, -128, 127).astype(np.int8)
        engine.set_tensor(into["index"], integers)
        engine.invoke()
        with torch.no_grad():
            found.append((int(network(x).argmax()), int(engine.get_tensor(out["index"]).argmax())))
    ours, file = np.array(found).T
    return float((ours == samples.labels).mean()), float((file == samples.labels).mean()), float((ours == file).mean())


def _picture(blob: bytes) -> torch.Tensor:
    """Short side 256, centre 224, normalised: (1, 3, 224, 224)."""
    image = Image.open(io.BytesIO(blob)).convert("RGB")
    factor = 256 / min(image.size)
    image = image.resize([round(side * factor) for side in image.size], Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None]
    top, left = ((side - 224) // 2 for side in pixels.shape[2:])
    return centre(pixels[:, :, top : top + 224, left : left + 224], Augmentation(224, "none"))


def main() -> None:
    """Write the weights, or check them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    if options.check:
        ours, file, agree = check()
        print(f"float network {ours:.4f}, the .tflite {file:.4f}, same class {agree:.4f}")
    if options.out:
        torch.save(imagenet_state(), options.out)


if __name__ == "__main__":
    main()
