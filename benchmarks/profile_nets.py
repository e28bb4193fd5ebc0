"""Networks with random weights in the shapes of well-known ones, as artefacts: what the profiler's benchmark measures."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from edge_runtime.artefact import Artefact, write_artefact
from edge_runtime.manifest import Engine, Manifest, ModelInfo, TensorSpec, Tool


class Builder:
    """Adds layers to a graph; tensors are (name, channels)."""

    def __init__(self, size: int, seed: int = 0) -> None:
        self.size = size
        self.nodes: list[object] = []
        self.weights: list[object] = []
        self._generator = np.random.default_rng(seed)

    def conv(
        self, source: tuple[str, int], out: int, kernel: int, stride: int = 1, *, groups: int = 1, relu: bool = True
    ) -> tuple[str, int]:
        """A convolution with bias, and ReLU."""
        name, channels = source
        index = len(self.nodes)
        weight = self._weight(f"w{index}", out, channels // groups, kernel, kernel)
        bias = self._weight(f"b{index}", out)
        pads = [kernel // 2] * 4
        self._add("Conv", [name, weight, bias], f"c{index}", group=groups, strides=[stride] * 2, pads=pads)
        if not relu:
            return f"c{index}", out
        self._add("Relu", [f"c{index}"], f"r{index}")
        return f"r{index}", out

    def add(self, a: tuple[str, int], b: tuple[str, int]) -> tuple[str, int]:
        """A residual sum with ReLU."""
        index = len(self.nodes)
        self._add("Add", [a[0], b[0]], f"s{index}")
        self._add("Relu", [f"s{index}"], f"r{index}")
        return f"r{index}", a[1]

    def concat(self, a: tuple[str, int], b: tuple[str, int]) -> tuple[str, int]:
        """Channels of both."""
        index = len(self.nodes)
        self._add("Concat", [a[0], b[0]], f"j{index}", axis=1)
        return f"j{index}", a[1] + b[1]

    def pool(self, source: tuple[str, int]) -> tuple[str, int]:
        """Largest of 3x3, every second."""
        index = len(self.nodes)
        self._add("MaxPool", [source[0]], f"p{index}", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
        return f"p{index}", source[1]

    def finish(self, source: tuple[str, int], classes: int = 1000) -> bytes:
        """Mean over the picture and a linear layer; the model's bytes."""
        weight, bias = self._weight("wl", classes, source[1]), self._weight("bl", classes)
        self._add("GlobalAveragePool", [source[0]], "mean")
        self._add("Flatten", ["mean"], "flat")
        self._add("Gemm", ["flat", weight, bias], "y", transB=1)
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, self.size, self.size])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, classes])],
            self.weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        data: bytes = model.SerializeToString()
        return data

    def _add(self, op: str, inputs: list[str], output: str, **attributes: object) -> None:
        self.nodes.append(helper.make_node(op, inputs, [output], name=f"{op.lower()}_{len(self.nodes)}", **attributes))

    def _weight(self, name: str, *shape: int) -> str:
        fan_in = int(np.prod(shape[1:])) or 1
        values = self._generator.standard_normal(shape) / np.sqrt(fan_in)
        self.weights.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name


def mobile_v1(size: int = 224, width: float = 0.5) -> bytes:
    """Depthwise-separable chain after MobileNetV1."""
    net = Builder(size)
    x = net.conv(("x", 3), int(32 * width), 3, 2)
    plan = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
    for out, stride in plan:
        x = net.conv(x, x[1], 3, stride, groups=x[1])
        x = net.conv(x, int(out * width), 1)
    return net.finish(x)


def residual_18(size: int = 128, width: int = 32) -> bytes:
    """Residual blocks after ResNet18."""
    net = Builder(size)
    x = net.pool(net.conv(("x", 3), width, 7, 2))
    for stage in range(4):
        for block in range(2):
            stride = 2 if stage and not block else 1
            out = width << stage
            y = net.conv(net.conv(x, out, 3, stride), out, 3, relu=False)
            x = net.add(y, x if stride == 1 and x[1] == out else net.conv(x, out, 1, stride, relu=False))
    return net.finish(x)


def squeeze(size: int = 224) -> bytes:
    """Fire modules after SqueezeNet."""
    net = Builder(size)
    x = net.pool(net.conv(("x", 3), 64, 3, 2))
    for index, (thin, wide) in enumerate([(16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (64, 256)]):
        narrow = net.conv(x, thin, 1)
        x = net.concat(net.conv(narrow, wide, 1), net.conv(narrow, wide, 3))
        if index in (1, 3):
            x = net.pool(x)
    return net.finish(x)


def plain(size: int = 224, width: int = 32) -> bytes:
    """Plain 3x3 convolutions after VGG."""
    net = Builder(size)
    x: tuple[str, int] = ("x", 3)
    for stage in range(4):
        x = net.conv(x, width << stage, 3)
        x = net.pool(net.conv(x, width << stage, 3))
    return net.finish(x)


def chain(seed: int) -> tuple[bytes, int]:
    """A chain of 5 to 12 random convolutions, and the size of its input: what a fit learns from."""
    choose = random.Random(seed)
    size = choose.choice([96, 128, 160, 224])
    net = Builder(size, seed)
    x = net.conv(("x", 3), choose.choice([16, 32, 64]), 3, 2)
    for index in range(choose.randint(5, 12)):
        kind = choose.choice(["conv", "pointwise", "depthwise"])
        out = min(512, x[1] * choose.choice([1, 1, 2]))
        stride = choose.choice([1, 1, 2]) if index < 8 else 1
        if kind == "depthwise":
            x = net.conv(x, x[1], 3, stride, groups=x[1])
        else:
            x = net.conv(x, out, 3 if kind == "conv" else 1, stride)
    return net.finish(x), size


NETS: dict[str, Callable[[], bytes]] = {
    "mobile_v1": mobile_v1,
    "residual_18": residual_18,
    "squeeze": squeeze,
    "plain": plain,
}


def write_net(folder: Path, name: str, data: bytes, size: int) -> Artefact:
    """The model as an fp32 artefact for ONNX Runtime, one thread."""
    manifest = Manifest(
        schema=1,
        tool=Tool(name="headtail", version="bench"),
        model=ModelInfo(name=name, source_sha256="0" * 64),
        role="whole",
        target="this",
        precision="fp32",
        engine=Engine(name="onnxruntime", built="bench"),
        entry="model.onnx",
        inputs=(TensorSpec(name="x", engine_name="x", dtype="float32", shape=(1, 3, size, size)),),
        outputs=(TensorSpec(name="y", engine_name="y", dtype="float32", shape=(1, 1000)),),
        files=(),
    )
    return write_artefact(folder / name, manifest, {"model.onnx": data})
