"""Instructions of every layer of the bench models, kernel by kernel, in QEMU.

Usage: HEADTAIL_DATA=<folder> python benchmarks/mcu_kernels/bench_kernels.py [--variant m4] [--layers] [model ...]

A layer is measured on its first, a middle and its last output row and counted as first + (rows - 2) * middle + last.
Glue between rows is not part of it; the budget column is the bar less 5 %.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "export" / "mcu_kernels")]

import kernel_harness as kh  # noqa: E402
from kernel_cases import conv_words, rq_bytes  # noqa: E402
from kernel_harness import Case, block, words  # noqa: E402

from export.mcu import kernels_pack as kp  # noqa: E402
from export.mcu import scratch  # noqa: E402
from export.mcu.network import lower  # noqa: E402
from export.mcu.softmax_table import softmax_exp_table  # noqa: E402

MODELS = {  # file, bar on M4 and M55 in millions
    "ic": ("mlcommons-tiny/pretrainedResnet_quant.tflite", 31.0, 5.2),
    "kws": ("mlcommons-tiny/kws_ref_model.tflite", 8.5, 2.0),
    "vww": ("mlcommons-tiny/vww_96_int8.tflite", 26.5, None),
    "ad": ("mlcommons-tiny/ad01_int8.tflite", 0.60, None),
    "person": ("tflite-micro/person_detect.tflite", 25.0, None),
    "mcunet": ("tinyengine/vww.tflite", 49.0, None),
}
TICK = {"m3": 40.0, "m4": 40.0, "m55": 31.25}  # instructions per SysTick at -icount shift=0


def quantization(op: Any, in_zero: int, clamp: tuple[int, int]) -> kp.Quantization:
    return kp.Quantization(op.requant.bias, op.requant.multiplier, op.requant.shift, in_zero, clamp)


def window_rows(rng: np.random.Generator, source: Any, frame: Any, out: Any, row: int) -> bytes:
    image_rows = [row * frame.stride_height - frame.pad_top + k for k in range(frame.kernel_height)]
    body = b"".join(
        block(
            rng.integers(-128, 128, source.width * source.channels).astype(np.int8) if 0 <= y < source.height else None
        )
        for y in image_rows
    )
    return words(0, source.width, 0, out.width) + body


def sliding_cases(rng: np.random.Generator, op: Any, values: Any) -> Iterator[tuple[Case, int]]:
    """(case, times) for a convolution or pool."""
    source, out = values[op.inputs[0]], values[op.output]
    rows = {0: 1} if out.height == 1 else {0: 1, out.height // 2: out.height - 2, out.height - 1: 1}
    zeros, clamp = (source.quant.zero_point, out.quant.zero_point), (op.clamp.low, op.clamp.high)
    f = op.frame
    for row, times in rows.items():
        tail = window_rows(rng, source, f, out, row)
        if op.kind == "CONV_2D":
            packed = kp.pack_conv(op.weights, quantization(op, zeros[0], clamp))
            head = conv_words(packed, op.weights.shape, f.stride_width, f.pad_left, zeros, clamp)
            need = scratch.conv_scratch_bytes(f.kernel_height, f.kernel_width, source.channels, padded=True)
            kind = 1
        elif op.kind == "DEPTHWISE_CONV_2D":
            packed = kp.pack_depthwise(op.weights, quantization(op, zeros[0], clamp))
            fields = (source.channels, out.channels, f.kernel_height, f.kernel_width, f.stride_width, f.pad_left)
            head = block(packed.weights) + block(rq_bytes(packed)) + words(packed.rq_step, *fields)
            head += words(op.multiplier, packed.flags, *zeros, *clamp)
            need, kind = scratch.depthwise_scratch_bytes(f.kernel_height, f.kernel_width), 3
        else:
            head = words(source.channels, f.kernel_height, f.kernel_width, f.stride_width, f.pad_left, *clamp)
            need, kind = 0, 4 if op.average else 5
        yield Case(op.kind, kind, head + tail + words(need), bytes(out.width * out.channels)), times


def dense_cases(rng: np.random.Generator, op: Any, values: Any) -> Iterator[tuple[Case, int]]:
    source, out = values[op.inputs[0]], values[op.output]
    clamp = (op.clamp.low, op.clamp.high)
    packed = kp.pack_fully_connected(op.weights, quantization(op, source.quant.zero_point, clamp))
    outputs, taps = op.weights.shape
    head = conv_words(packed, (outputs, 1, 1, taps), 1, 0, (source.quant.zero_point, out.quant.zero_point), clamp)
    x = rng.integers(-128, 128, taps).astype(np.int8)
    need = scratch.fully_connected_scratch_bytes(taps)
    yield Case(op.kind, 2, head + block(x) + words(need), bytes(outputs)), op.batch


def add_cases(rng: np.random.Generator, op: Any, values: Any) -> Iterator[tuple[Case, int]]:
    out = values[op.output]
    s = op.scaling
    n = out.width * out.channels
    zeros = [q.zero_point for q in op.quants]
    fields = (s.first[0], s.second[0], s.output[0], -s.first[1], -s.second[1], -s.output[1], *zeros)
    head = words(*fields, op.output_zero_point, op.clamp.low, op.clamp.high, out.channels, 0, n, 0)
    data = block(rng.integers(-128, 128, n).astype(np.int8))
    yield Case(op.kind, 8, head + data + data, bytes(n)), out.height


def other_cases(rng: np.random.Generator, op: Any, values: Any) -> Iterator[tuple[Case, int]]:
    source = values[op.inputs[0]]
    data = block(rng.integers(-128, 128, source.size_bytes).astype(np.int8))
    if op.kind == "SOFTMAX":
        table = softmax_exp_table(op.multiplier, op.left_shift, op.diff_min)
        head = block(table) + words(table.size, source.channels, 1)
        yield Case(op.kind, 11, head + data, bytes(source.channels)), source.height * source.width
    elif op.kind in ("MEAN", "AVERAGE_POOL_2D"):
        payload = words(source.height, source.width, source.channels, 2**30, -3, 9, 0, 0, -128, 127) + data
        yield Case(op.kind, 6 if op.kind != "MEAN" else 7, payload, bytes(source.channels)), 1
    else:
        print(f"not measured: {op.kind}", file=sys.stderr)


def layer_cases(rng: np.random.Generator, op: Any, values: Any) -> list[tuple[Case, int]]:
    if op.kind in ("CONV_2D", "DEPTHWISE_CONV_2D"):
        return list(sliding_cases(rng, op, values))
    if op.kind.endswith("POOL_2D") and not op.is_global(values):
        return list(sliding_cases(rng, op, values))
    if op.kind == "FULLY_CONNECTED":
        return list(dense_cases(rng, op, values))
    if op.kind == "ADD":
        return list(add_cases(rng, op, values))
    return list(other_cases(rng, op, values))


def measure(model: str, variant: kh.Variant, binary: Path, *, layers: bool) -> None:
    rng = np.random.default_rng(0)
    net = lower((Path(os.environ["HEADTAIL_DATA"]) / "models" / MODELS[model][0]).read_bytes())
    plan = [(op, layer_cases(rng, op, net.values)) for op in net.ops]
    results = iter(kh.run(variant, binary, [case for _, cases in plan for case, _ in cases]))
    total, macs = 0.0, 0
    for op, cases in plan:
        count = sum(next(results)[1] * TICK[variant.name] * times for _, times in cases)
        total, macs = total + count, macs + op.macs(net.values)
        if layers:
            out, work = net.values[op.output], op.macs(net.values)
            shapes = " -> ".join("x".join(map(str, v.shape)) for v in (net.values[op.inputs[0]], out))
            per_mac = f"{count / work:6.2f}/MAC" if work else " " * 10
            print(f"  {op.kind:18} {shapes:24} {count / 1e3:9.1f} k {per_mac} {count / out.size_bytes:8.1f}/output")
    bar = MODELS[model][2 if variant.name == "m55" else 1]
    budget = f"budget {bar * 0.95:6.2f} M (bar {bar})" if bar else ""
    print(f"{model:8} {variant.name}: {total / 1e6:7.3f} M instructions, {total / macs:5.2f} per MAC  {budget}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=[])
    parser.add_argument("--variant", default="m4")
    parser.add_argument("--layers", action="store_true")
    args = parser.parse_args()
    variant = kh.VARIANTS[args.variant]
    with tempfile.TemporaryDirectory() as folder:
        binary = kh.build(variant, Path(folder))
        for model in args.models or MODELS:
            measure(model, variant, binary, layers=args.layers)


if __name__ == "__main__":
    main()
