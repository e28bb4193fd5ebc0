"""What is written for TensorRT; nothing here runs it."""

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from device_profiles import load_board
from export.errors import UnsupportedRouteError
from export.to_tensorrt import COMMAND_FILE, command_text, tensorrt_files, trtexec_command
from export.trt_lint import TensorRtLintError, check_tensorrt, lint_tensorrt


def _constant(name, value, dtype=np.float32):
    return numpy_helper.from_array(np.asarray(value, dtype), name)


def _model(
    *, zero=0, integer=np.int8, scale=0.1, weight_axis=0, bias=None, weight_type=np.int8, extra=(), opset=20, size=8
):
    """x - Q - DQ - Conv(DQ weight, bias) - y; each argument breaks one rule."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="quantise_x"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], name="dequantise_x"),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], name="weight", axis=weight_axis),
        helper.make_node("Conv", ["d", "wd", "b"], ["y"], name="conv", pads=[1, 1, 1, 1]),
        *extra,
    ]
    weights = [
        _constant("s", scale),
        _constant("z", np.full(np.shape(scale), zero), integer),
        _constant("w", np.ones((4, 4, 3, 3)), weight_type),
        _constant("ws", [0.01] * 4),
        _constant("wz", [0] * 4, weight_type),
    ]
    if bias is None:
        weights.append(_constant("b", [0.0] * 4))
    else:
        nodes.insert(0, helper.make_node("DequantizeLinear", ["bq", "bs"], ["b"], name="bias", axis=0))
        weights += [_constant("bq", [1] * 4, bias), _constant("bs", [0.001] * 4)]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 4, size, 8))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 4, 8, 8))],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10).SerializeToString()


def _rules(data, precision="int8"):
    return [(finding.rule, finding.node) for finding in lint_tensorrt(data, precision=precision)]


def test_a_symmetric_file_with_real_biases_passes():
    assert _rules(_model()) == []


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"zero": 3}, [("asymmetric", "quantise_x"), ("asymmetric", "dequantise_x")]),
        ({"integer": np.uint8}, [("unsigned", "quantise_x"), ("unsigned", "dequantise_x")]),
        ({"integer": np.int16}, [("type", "z"), ("unsigned", "quantise_x"), ("unsigned", "dequantise_x")]),
        ({"weight_type": np.uint8}, [("unsigned", "weight")]),
        ({"bias": np.int32}, [("quantised-bias", "bias")]),
        ({"bias": np.int8}, [("quantised-bias", "bias")]),
        ({"scale": [0.1] * 4}, [("per-channel-activation", "quantise_x"), ("per-channel-activation", "dequantise_x")]),
        ({"weight_axis": 1}, [("weight-axis", "weight")]),
        ({"scale": -0.1}, [("unknown-scale", "quantise_x"), ("unknown-scale", "dequantise_x")]),
        ({"opset": 21}, [("opset", "the file")]),
        ({"size": "height"}, [("size", "x")]),
        (
            {"extra": [helper.make_node("QLinearConv", ["a"] * 8, ["t"], name="integer")]},
            [("integer-operator", "integer")],
        ),
        (
            {"extra": [helper.make_node("Gelu", ["y"], ["t"], name="own", domain="com.microsoft")]},
            [("operator", "own")],
        ),
    ],
)
def test_each_refusal_has_its_rule_and_its_node(changes, wanted):
    assert _rules(_model(**changes)) == wanted


def test_a_computed_scale_is_refused():
    model = onnx.load_model_from_string(_model())
    model.graph.node[0].input[1] = "x"
    assert ("unknown-scale", "quantise_x") in _rules(model.SerializeToString())


def test_the_precision_must_be_that_of_the_file():
    assert _rules(_model(), "fp32") == [("precision", "the file")]
    assert _rules(_model(), "fp16") == [("precision", "the file")] * 2
    plain = onnx.load_model_from_string(_model())
    del plain.graph.node[:3]
    assert _rules(plain.SerializeToString(), "int8") == [("precision", "the file")]


def test_the_error_counts_and_shows_the_first_findings():
    with pytest.raises(TensorRtLintError, match=r"found 4 reasons against it in net\.onnx: unsigned at quantise_x"):
        check_tensorrt(_model(integer=np.uint8, zero=7), precision="int8", where="net.onnx")


def _files(board, precision="int8", data=None):
    return tensorrt_files(
        data or _model(), board=load_board(board), precision=precision, file_name="model.onnx", where="a test"
    )


def test_boards_with_a_newer_tensorrt_get_the_file_alone():
    assert list(_files("jetson-orin-nano-8gb")) == ["model.onnx"]


@pytest.mark.parametrize("board", ["jetson-nano", "jetson-tx2", "jetson-xavier-nx"])
def test_boards_with_tensorrt_8_get_a_command_line_and_are_told_of_the_refusal(board):
    text = _files(board)[COMMAND_FILE].decode()
    assert load_board(board).name in text
    assert "headtail deploy` refuses this board" in text
    assert "has not been run" in text
    assert "--onnx=model.onnx" in text
    assert "--int8" in text


@pytest.mark.parametrize(
    ("major", "precision", "wanted"),
    [
        (8, "fp32", ["--workspace=1024"]),
        (8, "fp16", ["--workspace=1024", "--fp16"]),
        (8, "int8", ["--workspace=1024", "--int8", "--fp16"]),
        (10, "int8", ["--stronglyTyped"]),
        (11, "int8", []),
    ],
)
def test_precision_flags_exist_for_tensorrt_8_alone(major, precision, wanted):
    command = trtexec_command(major, precision=precision, file_name="model.onnx")
    assert command[1:4] == ["--onnx=model.onnx", "--saveEngine=model.engine", "--timingCacheFile=timings.cache"]
    assert command[4:] == wanted
    assert not [part for part in command if "calib" in part]


def test_the_command_is_one_that_a_shell_takes():
    lines = command_text(load_board("jetson-nano"), precision="int8", file_name="model.onnx").splitlines()
    command = [line for line in lines if not line.startswith("#")]
    assert all(line.endswith("\\") for line in command[:-1])
    assert not command[-1].endswith("\\")


def test_a_board_without_tensorrt_is_refused():
    board = msgspec.structs.replace(load_board("rpi-4b"), runtimes=("onnxruntime",))
    with pytest.raises(UnsupportedRouteError, match="--engine onnxruntime"):
        tensorrt_files(_model(), board=board, precision="int8", file_name="model.onnx", where="a test")


def test_a_file_that_tensorrt_would_refuse_is_not_written():
    with pytest.raises(TensorRtLintError):
        _files("jetson-orin-nano-8gb", data=_model(zero=1))
