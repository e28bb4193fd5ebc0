"""Every operator, alone: the generated C gives TensorFlow Lite Micro's integers."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from export.mcu.network import lower
from export.mcu.oracle import Oracle
from export.mcu.proof import prove_tensors
from export.mcu.vectors import proof_inputs

SLOW = settings(
    deadline=None, max_examples=20, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@pytest.fixture(scope="session")
def prove(kernel_library, fresh_folder, engines):
    def run(model: bytes, count: int = 5):
        network = lower(model)
        proof = prove_tensors(
            network,
            Oracle(model, network, process=engines),
            proof_inputs(network, count=count),
            library=kernel_library,
            folder=fresh_folder(),
        )
        assert proof.differences == ()
        assert proof.inputs == count
        return network

    return run


SIZES = st.integers(1, 11)
KERNELS = st.tuples(st.integers(1, 7), st.integers(1, 7))
STRIDES = st.tuples(st.integers(1, 3), st.integers(1, 3))
GAINS = st.sampled_from([0.2, 1.0, 8.0, 20000.0])  # the last makes multipliers above 1
ACTIVATIONS = st.sampled_from([0, 1, 3])
ZEROS = st.integers(-128, 127)


def grown(extent: int, kernel: int, padding: int) -> int:
    return extent if padding == 0 else max(extent, kernel)


@SLOW
@given(
    st.tuples(SIZES, SIZES, st.integers(1, 9), st.integers(1, 10)), KERNELS, STRIDES, st.integers(0, 1), GAINS,
    ACTIVATIONS, ZEROS, st.booleans(), st.integers(0, 999),
)  # fmt: skip
def test_conv2d_equals_the_reference(
    tflite_builder, prove, shape, kernel, stride, padding, gain, activation, zero, channels, seed
):
    net = tflite_builder(seed)
    height, width, inputs, outputs = shape
    inputs = inputs * 4 if channels else inputs
    size = (1, grown(height, kernel[0], padding), grown(width, kernel[1], padding), inputs)
    source = net.activation(size, 0.04, zero)
    out = net.conv(source, outputs, kernel, stride, padding, gain, activation, per_channel=seed % 3 > 0)
    prove(net.finish([source], [out]))


@SLOW
@given(
    st.tuples(SIZES, SIZES, st.integers(1, 9), st.integers(1, 4)), KERNELS, STRIDES, st.integers(0, 1), GAINS,
    ACTIVATIONS, ZEROS, st.booleans(), st.integers(0, 999),
)  # fmt: skip
def test_depthwise_equals_the_reference(
    tflite_builder, prove, shape, kernel, stride, padding, gain, activation, zero, channels, seed
):
    net = tflite_builder(seed)
    height, width, inputs, multiplier = shape
    inputs, multiplier = (inputs * 4, 1) if channels else (inputs, multiplier)
    size = (1, grown(height, kernel[0], padding), grown(width, kernel[1], padding), inputs)
    source = net.activation(size, 0.04, zero)
    # the reference wants equal strides of a depthwise convolution
    out = net.depthwise(source, multiplier, kernel, (stride[0], stride[0]), padding, gain, activation)
    prove(net.finish([source], [out]))


@SLOW
@given(st.integers(1, 300), st.integers(1, 20), GAINS, ACTIVATIONS, ZEROS, st.booleans(), st.integers(0, 999))
def test_fully_connected_equals_the_reference(
    tflite_builder, prove, inputs, outputs, gain, activation, zero, per_channel, seed
):
    net = tflite_builder(seed)
    source = net.activation((1, inputs), 0.04, zero)
    prove(net.finish([source], [net.dense(source, outputs, gain, activation, per_channel)]))


@SLOW
@given(
    st.sampled_from(["AVERAGE_POOL_2D", "MAX_POOL_2D"]), st.tuples(SIZES, SIZES, st.integers(1, 9)), KERNELS, STRIDES,
    st.integers(0, 1), ACTIVATIONS, ZEROS,
)  # fmt: skip
def test_pools_equal_the_reference(tflite_builder, prove, op, shape, kernel, stride, padding, activation, zero):
    net = tflite_builder()
    size = (1, grown(shape[0], kernel[0], padding), grown(shape[1], kernel[1], padding), shape[2])
    source = net.activation(size, 0.04, zero)
    prove(net.finish([source], [net.pool(source, op, kernel, stride, padding, activation)]))


BROADCASTS = [
    ((5, 6, 4), (5, 6, 4)), ((5, 6, 4), (1, 1, 4)), ((1, 1, 3), (5, 6, 3)), ((5, 6, 4), (1, 1, 1)),
    ((5, 6, 4), (5, 1, 4)), ((5, 6, 4), (1, 6, 4)), ((5, 6, 4), (5, 6, 1)), ((5, 1, 1), (5, 6, 4)),
    ((1, 6, 4), (5, 1, 1)), ((1, 1, 7), (1, 1, 7)),
]  # fmt: skip


@pytest.mark.parametrize("shapes", BROADCASTS, ids=str)
@pytest.mark.parametrize("op", ["ADD", "MUL"])
@pytest.mark.parametrize("constant", [None, 0, 1])
def test_add_and_mul_broadcast_as_the_reference(tflite_builder, prove, op, shapes, constant):
    net = tflite_builder(7)
    operands, inputs = [], []
    for place, (shape, scale, zero) in enumerate(zip(shapes, (0.03, 0.011), (-20, 77), strict=True)):
        if place == constant:
            data = net.rng.integers(-128, 128, (1, *shape)).astype(np.int8)
            operands.append(net.constant(data, [scale], zero_points=[zero]))
        else:
            operands.append(net.activation((1, *shape), scale, zero))
            inputs.append(operands[-1])
    prove(net.finish(inputs, [net.binary(op, *operands, activation=0)]))


@SLOW
@given(
    st.sampled_from(["ADD", "MUL"]), st.tuples(*[st.floats(1e-3, 0.5)] * 2), st.tuples(ZEROS, ZEROS),
    GAINS.filter(lambda gain: gain < 100), ACTIVATIONS, st.integers(0, 999),
)  # fmt: skip
def test_add_and_mul_equal_the_reference(tflite_builder, prove, op, scales, zeros, gain, activation, seed):
    net = tflite_builder(seed)
    sources = [net.activation((1, 4, 16, 16), scale, zero) for scale, zero in zip(scales, zeros, strict=True)]
    prove(net.finish(sources, [net.binary(op, *sources, activation, gain)]))


@SLOW
@given(
    st.sampled_from(["LOGISTIC", "HARD_SWISH", "RELU", "RELU6", "QUANTIZE"]),
    st.floats(1e-3, 0.4),
    ZEROS,
    st.floats(0.6, 1.5),
    ZEROS,
)
def test_functions_of_one_integer_equal_the_reference(tflite_builder, prove, engines, op, scale, zero, ratio, out_zero):
    if op == "RELU6" and 6 / scale + zero < -128:
        return
    net = tflite_builder()
    source = net.activation((1, 4, 8, 8), scale, zero)  # 256 elements: every integer below
    ratio = 1.01 if op == "HARD_SWISH" and ratio < 1 / 128 else ratio
    model = net.finish([source], [net.unary(op, source, scale * ratio, out_zero)])
    network = lower(model)
    every = np.arange(-128, 128).astype(np.int8).reshape(4, 8, 8)
    truth = Oracle(model, network, process=engines).run_all([(every,)])[0]
    (op_struct,) = network.ops
    assert (op_struct.table[every.astype(int) + 128] == truth.outputs[0]).all()


@SLOW
@given(st.integers(1, 40), st.integers(1, 5), st.floats(1e-4, 1.0), ZEROS)
def test_softmax_equals_the_reference(tflite_builder, prove, depth, rows, scale, zero):
    net = tflite_builder()
    source = net.activation((1, rows, 3, depth), scale, zero)
    prove(net.finish([source], [net.unary("SOFTMAX", source)]), 8)


def test_softmax_of_many_equal_values_is_zero_for_each(tmp_path):
    """The reference asserts on these, so what is compared with is the exact value: 256/1000, which rounds to 0."""
    program = """
    #include "ht_kernels.h"
    #include <stdint.h>
    int main(void) {
      static const int32_t table[] = {INT32_MAX};
      static int8_t values[1000];
      const ht_softmax op = {table, 1, 1000};
      ht_softmax_row(&op, values, values, 1);
      for (int i = 0; i < 1000; ++i) {
        if (values[i] != -128) return 1;
      }
      return 0;
    }
    """
    (tmp_path / "main.c").write_text(program)
    kernels = Path(__file__).parents[3] / "export" / "mcu" / "kernels"
    flags = ["-std=c99", "-O1", "-fsanitize=undefined", "-fno-sanitize-recover", f"-I{kernels}"]
    subprocess.run(["cc", *flags, "main.c", kernels / "ht_softmax.c", "-o", "many"], check=True, cwd=tmp_path)
    assert subprocess.run([tmp_path / "many"], check=False).returncode == 0


@pytest.mark.parametrize("axes", [[1, 2], [2, 1], [1], [2], [-2, -3]], ids=str)
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("shape", [(1, 5, 7, 6), (1, 1, 9, 8), (1, 6, 1, 5)], ids=str)
def test_mean_equals_the_reference(tflite_builder, prove, axes, keep, shape):
    net = tflite_builder(3)
    source = net.activation(shape, 0.05, -17)
    positive = [axis % 4 for axis in axes]
    for gain in (0.5, 1.0, 30.0):
        net = tflite_builder(3)
        source = net.activation(shape, 0.05, -17)
        prove(net.finish([source], [net.mean(source, positive, keep, gain)]))


def test_pad_alone_and_before_a_pool_is_computed(tflite_builder, prove):
    net = tflite_builder()
    source = net.activation((1, 4, 5, 3), 0.05, 9)
    padded = net.pad(source, 1, 2, 0, 3)
    network = prove(net.finish([source], [net.pool(padded, "MAX_POOL_2D"), padded]))
    assert [op.kind for op in network.ops] == ["PAD", "MAX_POOL_2D"]


@SLOW
@given(st.tuples(*[st.integers(0, 3)] * 4), st.integers(0, 1), st.integers(1, 2), st.booleans(), st.booleans())
def test_pad_folds_into_convolutions_exactly(tflite_builder, prove, amounts, padding, stride, twice, depthwise):
    net = tflite_builder(5)
    source = net.activation((1, 6, 7, 4), 0.05, 33)
    padded = net.pad(source, *amounts)
    layer = net.depthwise if depthwise else lambda s, **k: net.conv(s, 5, **k)
    outs = [layer(padded, kernel=(3, 3), stride=(stride, stride), padding=padding)]
    if twice:
        outs.append(net.conv(padded, 3, (2, 1), (1, 1), 1))
    network = prove(net.finish([source], outs))
    assert "PAD" not in [op.kind for op in network.ops]


@pytest.mark.parametrize("axis", [1, 2, 3, -1])
def test_concatenation_equals_the_reference(tflite_builder, prove, axis):
    net = tflite_builder()
    shapes = [[1, 4, 5, 3] for _ in range(3)]
    for i, shape in enumerate(shapes):
        shape[axis] += i
    sources = [net.activation(shape, 0.05, 4) for shape in shapes]
    prove(net.finish(sources, [net.concatenate(sources, axis)]))


@pytest.mark.parametrize("flags", [(False, False), (True, False), (False, True)], ids=str)
@pytest.mark.parametrize("size", [(6, 10), (3, 5), (4, 3), (9, 13), (1, 1), (2, 7)], ids=str)
def test_resize_nearest_equals_the_reference(tflite_builder, prove, flags, size):
    net = tflite_builder()
    source = net.activation((1, 3, 5, 4), 0.05, 4)
    prove(net.finish([source], [net.resize(source, size, *flags)]))


@pytest.mark.parametrize("height", [256, 258, 600])  # the last row is 127, 128 and 299 above where the halves begin
def test_resize_nearest_from_many_rows_to_two_equals_the_reference(tflite_builder, prove, height):
    net = tflite_builder()
    source = net.activation((1, height, 3, 4), 0.05, 4)
    prove(net.finish([source], [net.resize(source, (2, 2), align=True)]))


@pytest.mark.parametrize("order", [(0, 3, 1, 2), (0, 2, 1, 3), (0, 3, 2, 1), (0, 1, 3, 2)], ids=str)
def test_transpose_is_a_view_until_a_reader_needs_the_order(tflite_builder, prove, order):
    net = tflite_builder()
    source = net.activation((1, 4, 5, 8), 0.05, 4)
    mixed = net.conv(source, 8, (1, 1))
    turned = net.transpose(mixed, order)
    network = prove(net.finish([source], [net.conv(turned, 4, (1, 1))]))
    assert [op.kind for op in network.ops] == ["CONV_2D", "TRANSPOSE", "CONV_2D"]


def test_transpose_before_mean_and_dense_disappears(tflite_builder, prove):
    net = tflite_builder()
    source = net.activation((1, 4, 5, 8), 0.05, 4)
    turned = net.transpose(net.conv(source, 6, (1, 1)), (0, 3, 1, 2))
    means = net.mean(net.mean(turned, [3], keep=False), [2], keep=False)
    flat = net.dense(turned, 7)
    network = prove(net.finish([source], [net.dense(means, 3), flat]))
    assert "TRANSPOSE" not in [op.kind for op in network.ops]


def test_a_transposed_input_becomes_the_input_layout(tflite_builder, prove):
    net = tflite_builder()
    source = net.activation((1, 3, 6, 7), 0.05, 4)
    turned = net.transpose(source, (0, 2, 3, 1))
    network = prove(net.finish([source], [net.conv(turned, 4)]))
    assert [op.kind for op in network.ops] == ["CONV_2D"]
    assert network.values[network.inputs[0].key].shape == (6, 7, 3)


def test_reshapes_are_views(tflite_builder, prove):
    net = tflite_builder()
    source = net.activation((1, 4, 5, 8), 0.05, 4)
    flat = net.reshape(net.conv(source, 6), (1, 120))
    network = prove(net.finish([source], [net.dense(flat, 7)]))
    assert [op.kind for op in network.ops] == ["CONV_2D", "FULLY_CONNECTED"]


def test_a_reshape_that_changes_rows_is_copied_for_its_reader(tflite_builder, prove):
    net = tflite_builder()
    source = net.activation((1, 4, 6, 8), 0.05, 4)
    wide = net.reshape(source, (1, 2, 12, 8))
    network = prove(net.finish([source], [net.conv(wide, 4)]))
    assert [op.kind for op in network.ops] == ["RESHAPE", "CONV_2D"]


def test_dilation_and_groups_equal_the_reference(tflite_builder, prove):
    net = tflite_builder()
    source = net.activation((1, 12, 11, 8), 0.05, 4)
    wide = net.conv(source, 6, (3, 2), dilation=(3, 2), padding=1)
    narrow = net.depthwise(source, 2, (3, 3), dilation=(2, 2))
    prove(net.finish([source], [wide, narrow]))


def test_float_and_uint8_edges_leave_the_network(tflite_builder, prove):
    net = tflite_builder()
    real = net.activation((1, 5, 6, 3), dtype="float32")
    source = net.node("QUANTIZE", [real], [net.activation((1, 5, 6, 3), 0.05, -3)])
    byte = net.activation((1, 5, 6, 4), 0.02, 120, "uint8")
    other = net.node("QUANTIZE", [byte], [net.activation((1, 5, 6, 4), 0.02, -8)])
    out = net.conv(source, 4)
    total = net.binary("ADD", out, other)
    result = net.node("DEQUANTIZE", [total], [net.activation((1, 5, 6, 4), dtype="float32")])
    network = prove(net.finish([real, byte], [result]))
    assert [port.dtype for port in (*network.inputs, *network.outputs)] == ["float32", "uint8", "float32"]
    assert [op.kind for op in network.ops] == ["CONV_2D", "ADD"]
