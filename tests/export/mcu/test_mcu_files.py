"""Damaged, hostile and unsupported files: a named error, never a crash or a large allocation."""

import struct
import tracemalloc

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from device_profiles.errors import EdgeError
from export.mcu.emit_network import emit_network
from export.mcu.errors import ModelFileError, UnsupportedOpError
from export.mcu.graph import to_patch_graph
from export.mcu.keep_all import keep_all_plan
from export.mcu.network import lower


@pytest.fixture(scope="session")
def small_model(tflite_builder) -> bytes:
    net = tflite_builder()
    source = net.activation((1, 6, 6, 3), 0.05, 4)
    tip = net.depthwise(net.conv(source, 8), stride=(2, 2))
    tip = net.binary("ADD", tip, net.unary("LOGISTIC", tip))
    tip = net.pool(net.pad(tip, 1, 1, 1, 1), kernel=(5, 5), stride=(5, 5))
    return net.finish([source], [net.unary("SOFTMAX", net.dense(net.reshape(tip, (1, 8)), 4))])


def accepts_or_names_the_problem(data: bytes) -> None:
    try:
        network = lower(data)
        emit_network(network, keep_all_plan(to_patch_graph(network, name="n")), name="n", source="n")
    except EdgeError as error:
        problem = str(error)
        assert len(problem) > 20


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_changed_bytes_never_crash(small_model, data):
    changed = bytearray(small_model)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(changed) - 1))
        changed[place] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF, changed[place] ^ 4]))
    accepts_or_names_the_problem(bytes(changed))


def test_lists_that_lost_their_second_element_never_crash(small_model):
    places = [place for place in range(0, len(small_model) - 3, 4) if small_model[place : place + 4] == b"\2\0\0\0"]
    assert len(places) > 10
    for place in places:
        changed = bytearray(small_model)
        changed[place] = 1
        accepts_or_names_the_problem(bytes(changed))


@pytest.mark.parametrize("scale", [1e-38, 100.0])
def test_a_scale_that_the_kernel_cannot_shift_by_is_named(tflite_builder, scale):
    net = tflite_builder()
    source = net.activation((1, 2, 2, 3), scale, 0)
    with pytest.raises(UnsupportedOpError, match=r"LOGISTIC.*input scale"):
        lower(net.finish([source], [net.unary("LOGISTIC", source)]))


def test_options_of_another_operator_are_named(small_model):
    conv, pool = schema.BuiltinOptions.Conv2DOptions, schema.BuiltinOptions.Pool2DOptions
    said = set()
    for place in (place for place, byte in enumerate(small_model) if byte == conv):
        changed = bytearray(small_model)
        changed[place] = pool
        try:
            lower(bytes(changed))
        except EdgeError as error:
            said.add(str(error))
    assert any("(CONV_2D) wants Conv2DOptions, found Pool2DOptions" in text for text in said)


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_changed_words_never_crash(small_model, data):
    changed = bytearray(small_model)
    place = data.draw(st.integers(0, len(changed) // 4 - 1)) * 4
    word = data.draw(st.sampled_from([0, 1, 4, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFFC, 0x10000, len(changed)]))
    struct.pack_into("<I", changed, place, word)
    tracemalloc.start()
    try:
        accepts_or_names_the_problem(bytes(changed))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16_000_000 + 40 * len(changed)


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 10_000))
def test_truncated_files_never_crash(small_model, length):
    with pytest.raises(ModelFileError):
        lower(small_model[: length % len(small_model)])


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=300))
def test_free_bytes_are_refused(data):
    for head in (b"", struct.pack("<I", 8) + b"TFL3"):
        with pytest.raises(ModelFileError):
            lower(head + data if head else data)


def test_a_table_shared_a_million_times_is_refused_quickly():
    """Vectors may point to one table again and again: time must not grow with what the file claims."""
    count = 250_000
    # vtable (4 slots used) | root table | vector of `count` offsets to one empty table
    empty_vtable = struct.pack("<HH", 4, 4)
    vtable = struct.pack("<HHHHHHH", 14, 8, 0, 4, 0, 0, 0) + b"\0\0"  # slot 6 (operator codes) at 4
    body = bytearray(struct.pack("<I", 0) + b"TFL3")
    vtable_at = len(body)
    body += vtable
    root = len(body)
    body += struct.pack("<iI", root - vtable_at, 4)
    vector = len(body)
    table_vtable = vector + 4 + 4 * count
    table = table_vtable + 4
    offsets = b"".join(struct.pack("<I", table - (vector + 4 + 4 * i)) for i in range(count))
    body += struct.pack("<I", count) + offsets + empty_vtable + struct.pack("<i", 4)
    struct.pack_into("<I", body, 0, root)
    with pytest.raises(ModelFileError, match="more than 200000 tables"):
        lower(bytes(body))


def test_unknown_operators_are_named_with_what_is_accepted(tflite_builder):
    net = tflite_builder()
    source = net.activation((1, 8), 0.05, 4)
    tip = net.node("SVDF", [source], [net.activation((1, 8), 0.05, 4)])
    other = net.node("TANH", [tip], [net.activation((1, 8), 0.05, 4)])
    with pytest.raises(UnsupportedOpError, match=r"node 0 \(SVDF\), node 1 \(TANH\).*Accepted: ADD, .*TRANSPOSE"):
        lower(net.finish([source], [other]))


def test_a_float_network_is_refused_with_the_way_out(tflite_builder):
    net = tflite_builder()
    source = net.activation((1, 8), dtype="float32")
    tip = net.node("RELU", [source], [net.activation((1, 8), dtype="float32")])
    with pytest.raises(UnsupportedOpError, match=r"float32.*quantise the model to full int8"):
        lower(net.finish([source], [tip]))


def test_asymmetric_weights_are_refused_by_node(tflite_builder):
    net = tflite_builder()
    source = net.activation((1, 4, 4, 3), 0.05, 4)
    weights = net.constant(np.ones((2, 1, 1, 3), np.int8), [0.1, 0.1], zero_points=[3, 0])
    out = net.node(
        "CONV_2D", [source, weights], [net.activation((1, 4, 4, 2), 0.1, 0)], "Conv2DOptions", strideH=1, strideW=1
    )
    with pytest.raises(UnsupportedOpError, match=r"node 0 \(CONV_2D\): weights with a zero point.*Accepted: symmetric"):
        lower(net.finish([source], [out]))


def test_parts_of_a_concatenation_with_other_scales_are_refused(tflite_builder):
    net = tflite_builder()
    parts = [net.activation((1, 2, 2, 3), scale, 4) for scale in (0.05, 0.06)]
    with pytest.raises(UnsupportedOpError, match=r"CONCATENATION.*different scale"):
        lower(net.finish(parts, [net.concatenate(parts, 3)]))


def test_a_batch_above_one_is_refused(tflite_builder):
    net = tflite_builder()
    source = net.activation((2, 4, 4, 3), 0.05, 4)
    with pytest.raises(UnsupportedOpError, match="batch 1"):
        lower(net.finish([source], [net.unary("LOGISTIC", source)]))


def test_wrong_sizes_are_file_errors(tflite_builder):
    net = tflite_builder()
    source = net.activation((1, 8, 8, 3), 0.05, 4)
    out = net.conv(source, 4, (3, 3), (2, 2))
    net.tensors[out].shape = [1, 5, 4, 4]
    with pytest.raises(ModelFileError, match=r"node 0 \(CONV_2D\): output \(5, 4, 4\) does not follow"):
        lower(net.finish([source], [out]))
