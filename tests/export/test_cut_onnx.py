import contextlib

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from device_profiles.errors import EdgeError
from export.cut_check import check_cut, sample_inputs
from export.cut_onnx import OnnxCutError, load_onnx, split_onnx
from export.cut_source import CutSourceError, open_cut_source
from export.onnx_macs import node_macs
from export.source import SourceError
from split.cuts import find_cuts

SHAPE = (1, 3, 16, 16)


class _Reader(CalibrationDataReader):
    def __init__(self, count=8):
        rng = np.random.default_rng(1)
        self._rest = iter([{"x": rng.normal(size=SHAPE).astype(np.float32)} for _ in range(count)])

    def get_next(self):
        return next(self._rest, None)


def _float_model():
    """conv-relu6, a residual pair of convolutions, a depthwise step, pooling, a matrix product."""
    rng = np.random.default_rng(0)

    def weight(name, *shape):
        return numpy_helper.from_array((rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["c0"], pads=[1, 1, 1, 1]),
        helper.make_node("Clip", ["c0", "zero", "six"], ["r0"]),
        helper.make_node("Conv", ["r0", "w1", "b1"], ["c1"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"]),
        helper.make_node("Add", ["c2", "r0"], ["sum"]),
        helper.make_node("Conv", ["sum", "w3", "b3"], ["c3"], pads=[1, 1, 1, 1], strides=[2, 2], group=8),
        helper.make_node("MaxPool", ["c3"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "w4", "b4"], ["y"], transB=1),
    ]
    weights = [weight("w0", 8, 3, 3, 3), weight("w1", 16, 8, 3, 3), weight("w2", 8, 16, 1, 1), weight("w3", 8, 1, 3, 3)]
    weights += [weight("w4", 10, 128), *(weight(f"b{i}", n) for i, n in enumerate((8, 16, 8, 8, 10)))]
    weights += [numpy_helper.from_array(np.float32(value), name) for name, value in (("zero", 0), ("six", 6))]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 10))],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("onnx")


@pytest.fixture(scope="module")
def u8s8(folder):
    onnx.save(_float_model(), folder / "float.onnx")
    path = folder / "u8s8.onnx"
    quantize_static(
        folder / "float.onnx", path, _Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    return path


@pytest.fixture(scope="module")
def symmetric(folder, u8s8):
    path = folder / "s8s8.onnx"
    quantize_static(
        folder / "float.onnx", path, _Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QInt8, weight_type=QuantType.QInt8,
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
    )  # fmt: skip
    return path


@pytest.mark.parametrize("form", ["u8s8", "symmetric"])
def test_every_listed_cut_is_bit_equal(form, request):
    source = open_cut_source(request.getfixturevalue(form))
    samples = sample_inputs(source.inputs, count=4)
    cuts = find_cuts(source.graph).cuts
    assert len(cuts) >= 7
    assert any(len(cut.tensors) == 2 for cut in cuts)
    for cut in cuts:
        check_cut(source, cut, source.split(cut), samples)  # raises where a byte differs


def test_unquantised_biases_lower_the_level_and_say_so(u8s8, symmetric):
    assert load_onnx(u8s8).optimisation == "all"
    source = open_cut_source(symmetric)
    assert source.engine.optimisation == "basic"
    assert "Biases are not quantised" in source.remark


def test_head_ends_and_tail_starts_at_the_integers(u8s8):
    network = load_onnx(u8s8)
    network.model.graph.node[0].doc_string = "secret"
    cut = next(cut for cut in find_cuts(network.graph).cuts if len(cut.tensors) == 2)
    head, tail = split_onnx(network, cut)
    assert [value.name for value in head.graph.output] == list(cut.names) == [value.name for value in tail.graph.input]
    assert {value.type.tensor_type.elem_type for value in head.graph.output} == {TensorProto.UINT8}
    assert [value.name for value in head.graph.input] == ["x"]
    assert [value.name for value in tail.graph.output] == ["y"]
    made_by = {name: node.op_type for node in head.graph.node for name in node.output}
    assert {made_by[name] for name in cut.names} == {"QuantizeLinear"}
    for model in (head, tail):
        onnx.checker.check_model(model, full_check=True)
        assert model.opset_import[0].version == network.model.opset_import[0].version
        assert model.ir_version == network.model.ir_version
        assert not model.metadata_props
        assert b"secret" not in model.SerializeToString()
        used = {name for node in model.graph.node for name in node.input}
        assert {tensor.name for tensor in model.graph.initializer} <= used


def test_macs_follow_the_shapes(u8s8):
    first = 16 * 16 * 8 * 27
    second = 16 * 16 * 16 * 72
    third = 16 * 16 * 8 * 16
    depthwise = 8 * 8 * 8 * 9
    dense = 128 * 10
    assert load_onnx(u8s8).graph.live_macs == first + second + third + depthwise + dense
    transposed = helper.make_node("ConvTranspose", ["a", "w"], ["b"])
    assert node_macs(transposed, {"a": (1, 4, 5, 5), "w": (4, 2, 3, 3), "b": (1, 2, 7, 7)}) == 100 * 18
    product = helper.make_node("MatMul", ["a", "w"], ["b"])
    assert node_macs(product, {"a": (2, 3, 4), "w": (4, 5), "b": (2, 3, 5)}) == 120


def _qdq(name, scale, zero_point):
    parts = [
        numpy_helper.from_array(np.float32(scale), f"{name}_s"),
        numpy_helper.from_array(np.uint8(zero_point), f"{name}_z"),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", [name, f"{name}_s", f"{name}_z"], [f"{name}_q"]),
        helper.make_node("DequantizeLinear", [f"{name}_q", f"{name}_s", f"{name}_z"], [f"{name}_d"]),
    ]
    return nodes, parts


def test_two_roundings_in_a_row_are_not_cut(tmp_path):
    first, parts = _qdq("x", 0.1, 7)
    second, more = _qdq("x_d", 0.13, 9)
    last = [
        helper.make_node("Relu", ["x_d_d"], ["r"]),
        *_qdq("r", 0.1, 0)[0],
        helper.make_node("Relu", ["r_d"], ["y"]),
    ]
    graph = helper.make_graph(
        [*first, *second, *last],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 8))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 8))],
        [*parts, *more, *_qdq("r", 0.1, 0)[1]],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    network = load_onnx(model.SerializeToString())
    assert [cut.names for cut in find_cuts(network.graph).cuts] == [("r_q",)]
    assert "merges the two roundings" in (network.graph.tensors["x_q"].obstacle or "")


def test_a_quantised_input_crosses_beside_a_branch(tmp_path):
    """The input is a uint8 tensor that both sides read."""
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "s", "z"], ["d"]),
        helper.make_node("Relu", ["d"], ["r"]),
        helper.make_node("QuantizeLinear", ["r", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["e"]),
        helper.make_node("Add", ["e", "d"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, (1, 8))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 8))],
        [numpy_helper.from_array(np.float32(0.1), "s"), numpy_helper.from_array(np.uint8(100), "z")],
    )
    path = tmp_path / "input.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    source = open_cut_source(path)
    (cut,) = find_cuts(source.graph).cuts
    assert cut.names == ("x", "q")
    check_cut(source, cut, source.split(cut), sample_inputs(source.inputs, count=3))


def _save(model, path):
    path.write_bytes(model.SerializeToString())
    return path


def test_a_float_network_is_sent_to_export(tmp_path):
    with pytest.raises(CutSourceError, match="--precision int8 --calibration"):
        open_cut_source(_save(_float_model(), tmp_path / "float.onnx"))


@pytest.mark.parametrize("data", [b"", b"not a model", bytes(range(256)) * 20])
def test_foreign_bytes_are_refused_by_name(data):
    with pytest.raises((SourceError, OnnxCutError)):
        load_onnx(data)


def test_truncated_models_are_refused_by_name(u8s8):
    data = u8s8.read_bytes()
    for size in range(0, len(data), len(data) // 40):
        with pytest.raises((SourceError, OnnxCutError)):
            load_onnx(data[:size])


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_edited_models_are_cut_or_refused_by_name(u8s8, data):
    content = bytearray(u8s8.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(EdgeError):  # any other exception is a failure
        network = load_onnx(bytes(content))
        for cut in find_cuts(network.graph).cuts[-1:]:
            split_onnx(network, cut)


def test_external_data_control_flow_and_free_sizes_are_refused(tmp_path):
    model = _float_model()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    with pytest.raises(SourceError, match="another file"):
        load_onnx(model.SerializeToString())
    model = _float_model()
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    with pytest.raises((SourceError, OnnxCutError), match="fixed"):
        load_onnx(model.SerializeToString())
