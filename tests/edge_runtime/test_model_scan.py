"""Model files are refused by name before an engine sees them, and damage never escapes as something else."""

import msgspec
import pytest
from ai_edge_litert import schema_py_generated as schema
from flatbuffers import Builder
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from edge_runtime import model_scan
from edge_runtime.artefact import open_artefact, write_artefact
from edge_runtime.model_scan import DamagedModelError, ModelScanError, UnsafeModelError, scan_onnx, scan_tflite


def onnx_bytes(nodes, initializers=(), functions=()):
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    graph = helper.make_graph(nodes, "g", [value], [value], list(initializers))
    return helper.make_model(graph, functions=list(functions)).SerializeToString()


def outside():
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../../etc/passwd")
    return tensor


def branch(node):
    graph = helper.make_graph([node], "branch", [], [])
    return helper.make_node("If", ["x"], ["y"], then_branch=graph)


CUSTOM = helper.make_node("Evil", ["x"], ["y"], domain="evil.ops")
FUNCTION = helper.make_function("f", "F", ["x"], ["y"], [CUSTOM], [helper.make_opsetid("evil.ops", 1)])


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (onnx_bytes([CUSTOM]), "evil.ops"),
        (onnx_bytes([branch(CUSTOM)]), "evil.ops"),
        (onnx_bytes([], functions=[FUNCTION]), "evil.ops"),
        (onnx_bytes([], [outside()]), "external data"),
        (onnx_bytes([helper.make_node("Constant", [], ["y"], value=outside())]), "external data"),
        (onnx_bytes([branch(helper.make_node("Constant", [], ["y"], value=outside()))]), "external data"),
    ],
)
def test_custom_operators_and_external_data_are_refused_by_name(tmp_path, data, word):
    (tmp_path / "m.onnx").write_bytes(data)
    with pytest.raises(UnsafeModelError, match=word):
        scan_onnx(tmp_path / "m.onnx")


def test_operators_of_onnx_and_onnxruntime_pass(tmp_path):
    relu = helper.make_node("Relu", ["x"], ["y"], domain="ai.onnx")
    (tmp_path / "m.onnx").write_bytes(
        onnx_bytes([relu, helper.make_node("Gelu", ["y"], ["z"], domain="com.microsoft")])
    )
    scan_onnx(tmp_path / "m.onnx")


def test_graphs_in_graphs_end_at_a_depth(tmp_path):
    node = helper.make_node("Relu", ["x"], ["y"])
    for _ in range(25):
        node = branch(node)
    (tmp_path / "m.onnx").write_bytes(onnx_bytes([node]))
    with pytest.raises(DamagedModelError, match="in each other"):
        scan_onnx(tmp_path / "m.onnx")


def tflite_bytes(code=0, custom=None, offset=0, size=0, external=False):
    model = schema.ModelT()
    model.version = 3
    operator = schema.OperatorCodeT()
    operator.builtinCode, operator.deprecatedBuiltinCode, operator.customCode = code, min(code, 127), custom
    buffer = schema.BufferT()
    buffer.offset, buffer.size = offset, size
    model.operatorCodes, model.buffers, model.subgraphs = [operator], [buffer], [schema.SubGraphT()]
    if external:
        model.externalBufferGroups = [schema.ExternalBufferGroupT()]
    builder = Builder(0)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"code": 32}, "custom operator"),
        ({"code": 32, "custom": "FlexErf"}, "FlexErf"),
        ({"offset": 4, "size": 1 << 40}, "buffer 0"),
        ({"external": True}, "external buffers"),
    ],
)
def test_custom_operators_and_buffers_elsewhere_are_refused_in_tflite(tmp_path, changes, word):
    (tmp_path / "m.tflite").write_bytes(tflite_bytes(**changes))
    with pytest.raises(UnsafeModelError, match=word):
        scan_tflite(tmp_path / "m.tflite")


def test_a_plain_tflite_passes_and_every_truncation_is_named(tmp_path):
    data, path = tflite_bytes(code=3), tmp_path / "m.tflite"
    path.write_bytes(data)
    scan_tflite(path)
    for length in range(0, len(data) // 2, 3):  # what stands at the end may be unused
        path.write_bytes(data[:length])
        with pytest.raises(DamagedModelError, match=r"m\.tflite"):
            scan_tflite(path)


@given(st.integers(0, 400), st.binary(max_size=40))
def test_whatever_the_bytes_are_there_is_no_other_error(tmp_path_factory, at, content):
    folder = tmp_path_factory.getbasetemp()
    for scan, data in ((scan_onnx, onnx_bytes([branch(CUSTOM)], [outside()])), (scan_tflite, tflite_bytes(code=3))):
        (folder / "fuzzed").write_bytes(data[:at] + content + data[at + len(content) :])
        try:
            scan(folder / "fuzzed")
        except ModelScanError as error:
            assert "fuzzed" in str(error)  # noqa: PT017 - no error is right as well


def test_an_artefact_with_a_custom_operator_does_not_open(add_one):
    manifest = msgspec.structs.replace(add_one.manifest, files=())
    files = {path: add_one.path(path).read_bytes() for path in add_one.manifest.files_by_path}
    bad = write_artefact(add_one.folder.with_name("bad"), manifest, {**files, "model.onnx": onnx_bytes([CUSTOM])})
    with pytest.raises(UnsafeModelError, match=r"evil\.ops"):
        open_artefact(bad.folder)


def test_a_message_of_very_many_fields_is_left_early(tmp_path, monkeypatch):
    monkeypatch.setattr(model_scan, "MAX_FIELDS", 1000)
    path = tmp_path / "m.onnx"
    path.write_bytes(b"\x08\x08" * 1001 + b"\xff")  # the damage behind them is never reached
    with pytest.raises(DamagedModelError, match="more than 1000 fields"):
        scan_onnx(path)
