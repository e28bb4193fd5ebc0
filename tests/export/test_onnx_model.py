import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from export.onnx_model import MAX_IR_VERSION, graph_inputs, read_onnx, tensor_specs
from export.source import SourceError


def _model(op="Relu", *, domain="", opset=20, shape=(1, 4), weight=None, ir=10):
    inputs = ["x"] if weight is None else ["x", weight.name]
    graph = helper.make_graph(
        [helper.make_node(op, inputs, ["y"], domain=domain, name="only")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [] if weight is None else [weight],
    )
    domains = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=domains, ir_version=ir)


def _read(model):
    return read_onnx(model.SerializeToString(), where="m.onnx")


def test_external_weights_are_refused_before_a_file_is_opened():
    weight = numpy_helper.from_array(np.zeros((1, 4), np.float32), "w")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../../etc/passwd")
    with pytest.raises(SourceError, match="'w' in another file"):
        _read(_model("Add", weight=weight))


def test_a_custom_operator_is_named():
    with pytest.raises(SourceError, match=r"my\.ops::Magic"):
        _read(_model("Magic", domain="my.ops"))


@pytest.mark.parametrize("opset", [7, 12, 21, 23])
def test_an_opset_that_engines_do_not_take_is_refused(opset):
    with pytest.raises(SourceError, match=f"found {opset}"):
        _read(_model(opset=opset))


def test_a_symbolic_batch_becomes_one_and_other_symbolic_sizes_are_refused():
    model = _read(_model(shape=("n", 4)))
    assert tensor_specs(graph_inputs(model), where="m")[0].shape == (1, 4)
    assert tensor_specs(model.graph.output, where="m")[0].shape == (1, 4)
    wide = _read(_model(shape=(1, "width")))
    with pytest.raises(SourceError, match="1xwidth"):
        tensor_specs(graph_inputs(wide), where="m")


def test_paths_and_notes_of_the_machine_are_stripped():
    model = _model(ir=11)
    model.metadata_props.add(key="path", value="/home/alice/secret")
    model.graph.node[0].metadata_props.add(key="pkg.torch.onnx.stack_trace", value="/home/alice/secret/net.py")
    model.graph.node[0].doc_string = model.graph.doc_string = model.doc_string = "/home/alice/secret"
    model.graph.input[0].metadata_props.add(key="k", value="/home/alice/secret")
    clean = _read(model)
    assert b"alice" not in clean.SerializeToString()
    assert clean.ir_version == MAX_IR_VERSION


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=200))
def test_any_bytes_give_a_model_or_a_named_error(data):
    with pytest.raises(SourceError):
        read_onnx(b"\x08\x0a" + data, where="m.onnx")


@settings(max_examples=60, deadline=None)
@given(position=st.integers(0, 10_000), value=st.integers(0, 255))
def test_an_edited_model_is_a_model_or_a_named_error(position, value):
    data = bytearray(
        _model("Add", weight=numpy_helper.from_array(np.ones((1, 4), np.float32), "w")).SerializeToString()
    )
    data[position % len(data)] = value
    try:
        model = read_onnx(bytes(data), where="m.onnx")
    except SourceError:
        return
    onnx.checker.check_model(model)


def test_nodes_without_names_or_with_the_same_get_names_of_their_own():
    nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Relu", ["a"], ["b"], name="n")]
    nodes += [helper.make_node("Relu", ["b"], ["c"], name="n"), helper.make_node("Relu", ["c"], ["y"], name="Relu_0")]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    names = [node.name for node in read_onnx(model.SerializeToString(), where="test").graph.node]
    assert len(set(names)) == 4
