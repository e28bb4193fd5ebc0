"""A quantised head gives the same bytes on x86-64 and on (emulated) aarch64: `make test-arm64`."""

import platform

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from benchmarks.data import data_path
from benchmarks.emulated import emulated_versions, run_emulated
from benchmarks.run_head import run_head
from edge_runtime.artefact import write_artefact
from edge_runtime.manifest import Cut, Engine, Manifest, ModelInfo, Quantisation, TensorSpec, Tool, make_cut_id

pytestmark = pytest.mark.arm64
SHAPE = (1, 3, 32, 32)
IMAGES = 100


class Samples(CalibrationDataReader):
    """Random pictures for the calibration."""

    def __init__(self, count):
        self.left = iter(np.random.default_rng(1).normal(size=(count, *SHAPE)).astype(np.float32))

    def get_next(self):
        sample = next(self.left, None)
        return None if sample is None else {"image": sample}


def float_network():
    """Two convolutions with ReLU6, one of them depthwise, random weights."""
    rng = np.random.default_rng(0)
    weights = {
        "w0": rng.normal(size=(16, 3, 3, 3), scale=0.3),
        "b0": rng.normal(size=16),
        "w1": rng.normal(size=(16, 1, 3, 3), scale=0.3),
        "b1": rng.normal(size=16),
        "low": np.array(0.0),
        "high": np.array(6.0),
    }
    nodes = [
        helper.make_node("Conv", ["image", "w0", "b0"], ["c0"], pads=[1] * 4, strides=[2, 2]),
        helper.make_node("Clip", ["c0", "low", "high"], ["r0"]),
        helper.make_node("Conv", ["r0", "w1", "b1"], ["c1"], pads=[1] * 4, group=16),
        helper.make_node("Clip", ["c1", "low", "high"], ["latent"]),
    ]
    graph = helper.make_graph(
        nodes,
        "head",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, SHAPE)],
        [helper.make_tensor_value_info("latent", TensorProto.FLOAT, (1, 16, 16, 16))],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def cut_at_the_quantised_output(path):
    """Drop the last DequantizeLinear: the head ends in uint8. Returns its bytes and the latent's spec."""
    import onnx

    model = onnx.load(path)
    last = model.graph.node[-1]
    assert last.op_type == "DequantizeLinear"
    constants = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    scale, zero_point = float(constants[last.input[1]]), int(constants[last.input[2]])
    name = last.input[0]
    del model.graph.node[-1]
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.UINT8, (1, 16, 16, 16)))
    latent = TensorSpec(
        name="latent",
        engine_name=name,
        dtype="uint8",
        shape=(1, 16, 16, 16),
        layout="nchw",
        semantic="latent",
        quantisation=Quantisation(scale=scale, zero_point=zero_point),
    )
    return model.SerializeToString(), latent


def manifest_of(engine, inputs, outputs, **changes):
    values = {
        "schema": 1,
        "tool": Tool(name="headtail", version="test"),
        "model": ModelInfo(name="small", source_sha256="0" * 64),
        "role": "whole",
        "target": "rpi-4b-4gb",
        "precision": "int8",
        "engine": engine,
        "inputs": inputs,
        "outputs": outputs,
        "files": (),
    }
    return Manifest(**{**values, **changes})


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """A small u8s8 head for onnxruntime."""
    folder = tmp_path_factory.mktemp("head")
    (folder / "float.onnx").write_bytes(float_network().SerializeToString())
    quantize_static(
        folder / "float.onnx",
        folder / "int8.onnx",
        Samples(8),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    content, latent = cut_at_the_quantised_output(folder / "int8.onnx")
    cut = Cut(
        cut_id=make_cut_id(head_sha256="0" * 64, tensors=(latent,), codec="raw", tables_sha256=None), tensors=(latent,)
    )
    image = TensorSpec(name="image", engine_name="image", dtype="float32", shape=SHAPE, layout="nchw", semantic="image")
    engine = Engine(name="onnxruntime", built=ort.__version__)
    draft = manifest_of(engine, (image,), (latent,), role="head", cut=cut, entry="head.onnx")
    return write_artefact(folder / "artefact", draft, {"head.onnx": content})


def test_the_emulated_device_is_aarch64_with_the_engine_of_the_host():
    assert platform.machine() == "x86_64"
    found = emulated_versions().split()
    assert found[0] == "aarch64"
    assert found[found.index("onnxruntime") + 1] == ort.__version__
    assert found[found.index("numpy") + 1] == np.__version__


def test_an_int8_head_gives_the_same_bytes_on_aarch64(head):
    images = np.random.default_rng(2).normal(size=(IMAGES, *SHAPE)).astype(np.float32)
    here = run_head(head.folder, [images])
    there = run_emulated(head.folder, [images])
    assert here[0].shape == (IMAGES, 1, 16, 16, 16)
    assert len(np.unique(here[0])) > 50  # the range is used, so equality says something
    assert [one.tobytes() for one in there] == [one.tobytes() for one in here]


@pytest.mark.shared_data
def test_an_int8_tflite_model_gives_the_same_bytes_on_aarch64(tmp_path):
    from importlib.metadata import version

    from ai_edge_litert.interpreter import Interpreter

    path = data_path("models/mlcommons-tiny/vww_96_int8.tflite")
    interpreter = Interpreter(model_path=str(path))

    def spec(detail, name):
        scale, zero_point = detail["quantization"]
        return TensorSpec(
            name=name,
            engine_name=detail["name"],
            dtype=np.dtype(detail["dtype"]).name,
            shape=tuple(int(size) for size in detail["shape"]),
            quantisation=Quantisation(scale=float(scale), zero_point=int(zero_point)),
        )

    image, scores = (
        spec(interpreter.get_input_details()[0], "image"),
        spec(interpreter.get_output_details()[0], "scores"),
    )
    engine = Engine(name="litert", built=version("ai-edge-litert"))
    draft = manifest_of(engine, (image,), (scores,), entry="model.tflite")
    artefact = write_artefact(tmp_path / "artefact", draft, {"model.tflite": path})
    images = np.random.default_rng(3).integers(-128, 128, size=(20, *image.shape), dtype=np.int8)
    here = run_head(artefact.folder, [images])
    there = run_emulated(artefact.folder, [images])
    assert there[0].tobytes() == here[0].tobytes()
