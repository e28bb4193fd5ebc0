import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from export.bias_correction import mean_shift
from export.errors import ConversionError
from export.onnx_model import opset_of
from export.quantize import prepare_for_quantisation, quantize_onnx
from export.ranges import Observed, _error, best_range
from export.to_onnx import run_torch, torch_to_onnx
from export.verify import sqnr_db


def _graph(artefact):
    return onnx.load(artefact.entry).graph


def _zero_points(graph):
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    return [constants[node.input[2]] for node in graph.node if node.op_type == "QuantizeLinear"]


def test_onnxruntime_gets_unsigned_activations_and_no_relu6_left(exported):
    graph = _graph(exported("rpi-4b", calibrated=True))
    assert {str(zero.dtype) for zero in _zero_points(graph)} == {"uint8"}
    assert not [node for node in graph.node if node.op_type == "Clip"]


def test_weights_are_per_channel(exported):
    graph = _graph(exported("rpi-4b", calibrated=True))
    scales = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    makers = {node.output[0]: node for node in graph.node}
    convs = [node for node in graph.node if node.op_type == "Conv"]
    assert [scales[makers[node.input[1]].input[1]].size for node in convs] == [8, 8, 16]


def test_tensorrt_gets_symmetric_int8_without_a_quantised_bias(exported):
    graph = _graph(exported("jetson-orin-nx-16gb", precision="int8", calibrated=True))
    assert {(str(zero.dtype), int(zero)) for zero in _zero_points(graph)} == {("int8", 0)}
    floats = {tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT}
    layers = [node for node in graph.node if node.op_type in ("Conv", "Gemm")]
    assert layers
    assert all(node.input[2] in floats for node in layers)


def test_nothing_stands_between_a_layer_and_its_activation_for_tensorrt(exported):
    graph = _graph(exported("jetson-orin-nx-16gb", precision="int8", calibrated=True))
    makers = {node.output[0]: node.op_type for node in graph.node}
    assert {makers[node.input[0]] for node in graph.node if node.op_type == "Clip"} == {"Conv"}


def test_fp16_passes_the_checker_with_float_inputs_and_outputs(exported):
    artefact = exported("jetson-orin-nx-16gb")
    model = onnx.load(artefact.entry)
    onnx.checker.check_model(model, full_check=True)
    assert any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in model.graph.initializer)
    assert (artefact.manifest.inputs[0].dtype, artefact.manifest.outputs[0].dtype) == ("float32", "float32")
    assert opset_of(model) == 20


def _observed(values):
    return Observed(float(values.min()), float(values.max()), 0.0, [values.ravel()])


_VALUES = hnp.arrays(np.float32, st.integers(1, 300), elements=st.floats(-100, 100, width=32))


@settings(max_examples=60, deadline=None)
@given(values=_VALUES, symmetric=st.booleans())
@example(values=np.array([3.1e-40, 0], np.float32), symmetric=False)
def test_a_chosen_range_lies_inside_the_extremes_holds_zero_and_rounds_no_worse(values, symmetric):
    seen = _observed(values)
    low, high = best_range(seen, symmetric=symmetric)
    top = max(abs(seen.low), abs(seen.high))
    widest = (-top, top) if symmetric else (min(seen.low, 0.0), max(seen.high, 0.0))
    assert widest[0] <= low <= 0.0 <= high <= widest[1]
    assert not symmetric or low == -high
    assert _error(values, low, high) <= _error(values, *widest) * (1 + 1e-6)


def test_one_outlier_is_clipped_when_that_helps_all_others():
    values = np.append(np.random.default_rng(0).standard_normal(20_000), 60.0).astype(np.float32)
    low, high = best_range(_observed(values), symmetric=False)
    assert high < 60.0
    assert low < -2.0


@settings(max_examples=30, deadline=None)
@given(groups=st.sampled_from([1, 2, 4]), kernel=st.sampled_from([1, 3]), seed=st.integers(0, 99))
def test_the_mean_shift_is_what_a_convolution_does_to_a_constant_input(groups, kernel, seed):
    generator = np.random.default_rng(seed)
    weights = generator.standard_normal((8, 4 // groups, kernel, kernel))
    mean = generator.standard_normal(4)
    constant = torch.from_numpy(np.broadcast_to(mean[None, :, None, None], (1, 4, 5, 5)).copy())
    made = torch.nn.functional.conv2d(constant, torch.from_numpy(weights), groups=groups)[0, :, 0, 0].numpy()
    np.testing.assert_allclose(mean_shift(weights, mean, {"group": groups}), made, atol=1e-9)


def test_no_output_keeps_a_shift_of_its_mean(tiny_model, tiny_calibration):
    model = tiny_model(3)
    inputs = np.load(tiny_calibration)["picture"]
    samples = [[inputs[i : i + 1]] for i in range(len(inputs))]
    int8 = quantize_onnx(prepare_for_quantisation(torch_to_onnx(model)), ("picture",), samples, scheme="u8s8")
    session = onnxruntime.InferenceSession(int8)
    found = np.concatenate([session.run(None, {"picture": arrays[0]})[0] for arrays in samples])
    wanted = np.concatenate([run_torch(model, arrays)[0] for arrays in samples])
    assert np.abs((wanted - found).mean(axis=0)).max() < 0.02 * np.abs(wanted).max()
    assert sqnr_db(float(np.square(wanted).sum()), float(np.square(wanted - found).sum())) > 28.0


@pytest.mark.parametrize("opset", [13, 17])
def test_an_opset_that_the_exporter_silently_changes_is_an_error(tiny_model, opset):
    with pytest.raises(ConversionError, match=f"opset {opset}"):
        torch_to_onnx(tiny_model(), opset=opset)
