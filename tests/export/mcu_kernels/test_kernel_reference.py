"""The NumPy model that the kernels are tested against equals TensorFlow Lite Micro, operator by operator."""

import kernel_reference as ref
import numpy as np
import pytest
import tflm_models as tm
from ai_edge_litert import schema_py_generated as tfl
from kernel_cases import tensor
from kernel_harness import Case, block, words

from export.mcu.fixedpoint import quantize_multiplier
from export.mcu.softmax_table import softmax_exp_table

SEEDS = range(12)
FULL = (-128, 127)


def multipliers(in_scale, w_scales, out_scale):
    pairs = [
        quantize_multiplier(float(np.float32(in_scale)) * float(w) / float(np.float32(out_scale))) for w in w_scales
    ]
    return np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])


def scale(rng, low=0.003, high=0.1):
    return np.float32(rng.uniform(low, high))


def zeros(rng, n):
    return [int(v) for v in rng.integers(-128, 128, n)]


def same(size, kernel, stride):
    out = -(-size // stride)
    return out, max((out - 1) * stride + kernel - size, 0) // 2


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("depthwise", [False, True])
def test_convolutions(seed, depthwise):
    rng = np.random.default_rng(seed)
    h, w, channels, kh, kw = (int(v) for v in rng.integers((4, 4, 1, 1, 1), (9, 9, 6, 6, 6)))
    outs = channels * int(rng.integers(1, 3)) if depthwise else int(rng.integers(1, 7))
    stride = tuple(int(v) for v in rng.integers(1, 3, 2))
    zx, zy = zeros(rng, 2)
    in_scale, out_scale = scale(rng), scale(rng, 0.02, 0.5)
    w_scales = rng.uniform(0.001, 0.02, outs).astype(np.float32)
    shape = (1, kh, kw, outs) if depthwise else (outs, kh, kw, channels)
    weights = rng.integers(-127, 128, shape).astype(np.int8)
    bias = rng.integers(-9000, 9000, outs).astype(np.int32)
    (oh, top), (ow, left) = same(h, kh, stride[0]), same(w, kw, stride[1])
    options = tfl.DepthwiseConv2DOptionsT() if depthwise else tfl.Conv2DOptionsT()
    options.padding, options.strideH, options.strideW = tfl.Padding.SAME, *stride
    options.dilationHFactor = options.dilationWFactor = 1
    if depthwise:
        options.depthMultiplier = outs // channels
    x = tensor(rng, (1, h, w, channels), zx)
    name = "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D"
    kind = tfl.BuiltinOptions.DepthwiseConv2DOptions if depthwise else tfl.BuiltinOptions.Conv2DOptions
    op = tm.OneOp(getattr(tfl.BuiltinOperator, name), kind, options)
    op.tensors = [
        tm.Tensor(x.shape, (in_scale,), (zx,)),
        tm.Tensor(shape, tuple(w_scales), (0,) * outs, weights, 3 if depthwise else 0),
        tm.Tensor((outs,), tuple(in_scale * w_scales), (0,) * outs, bias, 0, tfl.TensorType.INT32),
        tm.Tensor((1, oh, ow, outs), (out_scale,), (zy,)),
    ]
    mult, shift = multipliers(in_scale, w_scales, out_scale)
    kernel = weights[0] if depthwise else weights
    function = ref.depthwise if depthwise else ref.conv
    want = function(x[0], kernel, bias, mult, shift, (zx, zy), stride, (top, left), FULL, (oh, ow))
    assert np.array_equal(tm.run(op, x)[0], want)


@pytest.mark.parametrize("seed", SEEDS)
def test_fully_connected(seed):
    rng = np.random.default_rng(seed)
    taps, outs = (int(v) for v in rng.integers(1, 60, 2))
    zx, zy = zeros(rng, 2)
    in_scale, w_scale, out_scale = scale(rng), scale(rng, 0.001, 0.02), scale(rng, 0.02, 0.5)
    weights = rng.integers(-127, 128, (outs, taps)).astype(np.int8)
    bias = rng.integers(-9000, 9000, outs).astype(np.int32)
    x = tensor(rng, (1, taps), zx)
    op = tm.OneOp(
        tfl.BuiltinOperator.FULLY_CONNECTED, tfl.BuiltinOptions.FullyConnectedOptions, tfl.FullyConnectedOptionsT()
    )
    op.tensors = [
        tm.Tensor(x.shape, (in_scale,), (zx,)),
        tm.Tensor(weights.shape, (w_scale,), (0,), weights),
        tm.Tensor((outs,), (in_scale * w_scale,), (0,), bias, 0, tfl.TensorType.INT32),
        tm.Tensor((1, outs), (out_scale,), (zy,)),
    ]
    mult, shift = multipliers(in_scale, [w_scale], out_scale)
    args = (bias, mult[0], shift[0], (zx, zy), (1, 1), (0, 0), FULL, (1, 1))
    want = ref.conv(x.reshape(1, 1, taps), weights.reshape(outs, 1, 1, taps), *args)
    assert np.array_equal(tm.run(op, x).reshape(-1), want.reshape(-1))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("average", [False, True])
def test_pools(seed, average):
    rng = np.random.default_rng(seed)
    h, w, channels, kh, kw = (int(v) for v in rng.integers((4, 4, 1, 1, 1), (9, 9, 6, 5, 5)))
    stride = tuple(int(v) for v in rng.integers(1, 3, 2))
    (oh, top), (ow, left) = same(h, kh, stride[0]), same(w, kw, stride[1])
    options = tfl.Pool2DOptionsT()
    options.padding, options.strideH, options.strideW = tfl.Padding.SAME, *stride
    options.filterHeight, options.filterWidth = kh, kw
    code = tfl.BuiltinOperator.AVERAGE_POOL_2D if average else tfl.BuiltinOperator.MAX_POOL_2D
    op = tm.OneOp(code, tfl.BuiltinOptions.Pool2DOptions, options)
    x = tensor(rng, (1, h, w, channels))
    op.tensors = [tm.Tensor(x.shape, (0.1,), (3,)), tm.Tensor((1, oh, ow, channels), (0.1,), (3,))]
    want = ref.pool(x[0], (kh, kw), stride, (top, left), FULL, (oh, ow), average=average)
    assert np.array_equal(tm.run(op, x)[0], want)


@pytest.mark.parametrize("seed", SEEDS)
def test_add(seed):
    rng = np.random.default_rng(seed)
    shape = (1, 3, 5, 7)
    scales = [scale(rng, 0.001, 0.2) for _ in range(3)]
    if seed % 3 == 0:
        scales[1] = scales[0]
    z = zeros(rng, 3)
    a, b = tensor(rng, shape, z[0]), tensor(rng, shape, z[1])
    op = tm.OneOp(tfl.BuiltinOperator.ADD, tfl.BuiltinOptions.AddOptions, tfl.AddOptionsT())
    op.tensors = [tm.Tensor(shape, (s,), (z[i],)) for i, s in enumerate(scales)]
    twice = 2 * float(max(scales[:2]))
    reals = (float(scales[0]) / twice, float(scales[1]) / twice, twice / (2**20 * float(scales[2])))
    pairs = [quantize_multiplier(r) for r in reals]
    p = {"mults": [q for q, _ in pairs], "shifts": [-s for _, s in pairs], "zeros": z, "clamp": FULL}
    assert np.array_equal(tm.run(op, a, b), ref.add(a, b, p))


@pytest.mark.parametrize("seed", SEEDS)
def test_mul(seed):
    rng = np.random.default_rng(seed)
    shape = (1, 3, 5, 7)
    scales = [scale(rng, 0.004, 0.2) for _ in range(3)]
    z = zeros(rng, 3)
    a, b = tensor(rng, shape, z[0]), tensor(rng, shape, z[1])
    op = tm.OneOp(tfl.BuiltinOperator.MUL, tfl.BuiltinOptions.MulOptions, tfl.MulOptionsT())
    op.tensors = [tm.Tensor(shape, (s,), (z[i],)) for i, s in enumerate(scales)]
    mult, shift = quantize_multiplier(float(scales[0]) * float(scales[1]) / float(scales[2]))
    assert np.array_equal(tm.run(op, a, b), ref.mul(a, b, mult, shift, z, FULL))


@pytest.mark.parametrize("seed", SEEDS)
def test_mean(seed):
    rng = np.random.default_rng(seed)
    h, w, channels = (int(v) for v in rng.integers(1, 9, 3))
    scales, z = [scale(rng), scale(rng)], zeros(rng, 2)
    x = tensor(rng, (1, h, w, channels), z[0])
    options = tfl.ReducerOptionsT()
    options.keepDims = True
    op = tm.OneOp(tfl.BuiltinOperator.MEAN, tfl.BuiltinOptions.ReducerOptions, options)
    op.tensors = [
        tm.Tensor(x.shape, (scales[0],), (z[0],)),
        tm.Tensor((2,), (), (), np.array([1, 2], np.int32), 0, tfl.TensorType.INT32),
        tm.Tensor((1, 1, 1, channels), (scales[1],), (z[1],)),
    ]
    q, exponent = quantize_multiplier(float(scales[0]) / float(scales[1]))
    count = h * w
    extra = min(count.bit_length() - 1, 32, 31 + exponent)
    want = ref.mean(x[0], (q << extra) // count, exponent - extra, z)
    assert np.array_equal(tm.run(op, x).reshape(-1), want)


def test_softmax_kernel_equals_the_interpreter(runner):
    rng = np.random.default_rng(0)
    cases = []
    for _ in range(40):
        rows, depth = int(rng.integers(1, 5)), int(rng.integers(1, 40))
        in_scale = scale(rng, 0.001, 0.5)
        x = tensor(rng, (rows, depth))
        options = tfl.SoftmaxOptionsT()
        options.beta = float(rng.choice([1.0, 0.5, 2.0]))
        op = tm.OneOp(tfl.BuiltinOperator.SOFTMAX, tfl.BuiltinOptions.SoftmaxOptions, options)
        op.tensors = [tm.Tensor(x.shape, (in_scale,), (3,)), tm.Tensor(x.shape, (1 / 256,), (-128,))]
        q, left = quantize_multiplier(min(options.beta * float(in_scale) * 2**26, 2**31 - 1.0))
        table = softmax_exp_table(q, left, -int(31 * 2**26 // 2**left))
        payload = block(table) + words(table.size, depth, rows) + block(x)
        cases.append(Case(f"softmax {rows}x{depth} {in_scale}", 11, payload, tm.run(op, x).tobytes()))
    assert runner("native")(cases) == []
