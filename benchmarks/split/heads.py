"""Our int8 head against sc2bench's head as it ships (float, GDN), both on onnxruntime with one thread, interleaved.

The weights do not matter for time and size: both are new ones. The peer's head is built as our twin of it, which row
`es_weights` shows to be equal; its GDN parameters are folded, which only helps it. An int8 form of it is an extra row.
"""

import statistics
import time
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import numpy as np
import onnxruntime
import torch

from export.head_graph import IMAGE, fold_head, head_to_onnx
from export.source import ModelSource
from export.to_onnx import torch_to_onnx
from split.bottleneck import Bottleneck, LatentGrid
from split.entropic_student import EntropicStudent
from split.inject import CutLayer
from split.latents import IntegerHead
from split.slim import Slim
from split.slim_stages import SlimOptions

SIZE, STRIDE, TARGET = 224, 4, 256  # the published cut: ResNet-50 behind layer1
ROUNDS, RUNS, CALIBRATION = 15, 5, 8
SPEED_BAR, SIZE_BAR = 3, 4


def rows() -> Iterator[dict[str, Any]]:
    """Rows head_speed and head_size, with the times and sizes themselves."""
    torch.manual_seed(0)
    layer = CutLayer("layer1", (TARGET, SIZE // STRIDE, SIZE // STRIDE), STRIDE)
    slim, published = Slim(layer, SlimOptions()), EntropicStudent(TARGET)
    models = {"ours": int8(slim), "theirs": real(published), "theirs_int8": int8(published)}
    times = measure(models)
    peer = {
        "peer": "sc2bench FPBasedResNetBottleneck, encoder, float",
        "peer_version": f"0.1.1, onnxruntime {version('onnxruntime')}",
    }
    for others, suffix, said in (("theirs", "", ""), ("theirs_int8", ".int8", " in int8")):
        faster = statistics.median(b / a for a, b in zip(times["ours"], times[others], strict=True))
        smaller = len(models[others]) / len(models["ours"])
        held = f"({len(models[others])}) over ours in int8 ({len(models['ours'])}), ONNX"
        for name, what, ratio, bar in (
            (
                "head_speed",
                f"CPU time of sc2bench's head{said} over ours in int8, {SIZE} px, 1 thread",
                faster,
                SPEED_BAR,
            ),
            ("head_size", f"bytes of sc2bench's head{said} {held}", smaller, SIZE_BAR),
        ):
            yield {
                "id": name + suffix,
                "what": what,
                "value": round(ratio, 2),
                "unit": "x",
                "direction": "info" if suffix else ">=",
                "bar": None if suffix else bar,
                **peer,
            }
    for name, taken in times.items():
        what = f"CPU time of the head, {name.replace('_', ' in ')}, {SIZE} px, 1 thread, median"
        yield {
            "id": f"head_ms.{name}",
            "what": what,
            "value": round(1000 * statistics.median(taken), 3),
            "unit": "ms",
            "direction": "info",
        }


def real(block: Bottleneck) -> bytes:
    """The encoder as a float ONNX file."""
    example = torch.zeros(1, 3, SIZE, SIZE)
    encoder = _head(block).encoder
    return torch_to_onnx(
        ModelSource(module=encoder, example=(example,), input_names=(IMAGE,), output_names=("latent",))
    )


def int8(block: Bottleneck) -> bytes:
    """The head as it is deployed."""
    rng = np.random.default_rng(0)
    pictures = [[rng.normal(size=(1, 3, SIZE, SIZE)).astype(np.float32)] for _ in range(CALIBRATION)]
    return head_to_onnx(fold_head(_head(block)), torch.from_numpy(pictures[0][0]), pictures)


def measure(models: dict[str, bytes]) -> dict[str, list[float]]:
    """Seconds of CPU time of one run, one value a round, the heads in turn."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    sessions = {
        name: onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        for name, data in models.items()
    }
    given = {IMAGE: np.random.default_rng(1).normal(size=(1, 3, SIZE, SIZE)).astype(np.float32)}
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(ROUNDS):
        for name, session in sessions.items():
            session.run(None, given)
            start = time.process_time()
            for _ in range(RUNS):
                session.run(None, given)
            times[name].append((time.process_time() - start) / RUNS)
    return times


def _head(block: Bottleneck) -> IntegerHead:
    block.eval()
    with torch.no_grad():
        channels = block.encoder(torch.zeros(1, 3, SIZE, SIZE)).shape[1]
    return IntegerHead(block, LatentGrid((1.0,) * channels, (0.0,) * channels)).eval()
