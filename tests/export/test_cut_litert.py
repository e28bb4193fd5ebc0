import contextlib
import copy

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from hypothesis import given, settings
from hypothesis import strategies as st

from device_profiles.errors import EdgeError
from export.cut_check import check_cut, count_equal, run_cut, run_whole, sample_inputs
from export.cut_litert import load_tflite, split_tflite
from export.cut_source import CutSourceError, open_cut_source
from export.source import SourceError
from export.tflite_checks import TfliteCutError
from export.tflite_macs import operator_macs
from split.cuts import find_cuts

INT8, INT32, FLOAT = schema.TensorType.INT8, schema.TensorType.INT32, schema.TensorType.FLOAT32


class _Builder:
    """Writes small int8 networks with the flatbuffer's own classes."""

    def __init__(self):
        self.model, self.graph = schema.ModelT(), schema.SubGraphT()
        self.model.version, self.model.description = 3, b"/home/someone/train.py"
        self.model.buffers, self.model.operatorCodes = [schema.BufferT()], []
        self.model.subgraphs = [self.graph]
        self.graph.tensors, self.graph.operators = [], []
        self.rng = np.random.default_rng(0)

    def tensor(self, name, shape, *, scale=None, zero_point=0, data=None, kind=INT8, axis=0):
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type = name.encode(), list(shape), kind
        if scale is not None:
            found = schema.QuantizationParametersT()
            scales = np.atleast_1d(np.asarray(scale, np.float32))
            found.scale, found.zeroPoint, found.quantizedDimension = scales, np.full(len(scales), zero_point), axis
            tensor.quantization = found
        tensor.buffer = 0
        if data is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)
            tensor.buffer = len(self.model.buffers)
            self.model.buffers.append(buffer)
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def weights(self, name, shape, channels, axis=0):
        values = self.rng.integers(-127, 128, size=shape, dtype=np.int8)
        return self.tensor(name, shape, scale=np.full(channels, 0.01), data=values, axis=axis)

    def bias(self, name, channels, scale):
        values = self.rng.integers(-500, 500, size=channels, dtype=np.int32)
        return self.tensor(name, (channels,), scale=np.full(channels, scale), data=values, kind=INT32)

    def operator(self, kind, inputs, outputs, options_type=0, options=None):
        code = schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = kind
        code.version = 3
        operator = schema.OperatorT()
        operator.opcodeIndex = len(self.model.operatorCodes)
        operator.inputs, operator.outputs = inputs, outputs
        operator.builtinOptionsType, operator.builtinOptions = options_type, options
        self.model.operatorCodes.append(code)
        self.graph.operators.append(operator)

    def pack(self):
        builder = flatbuffers.Builder(1024)
        builder.Finish(self.model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


def _signature(inputs, outputs):
    def entry(name, index):
        one = schema.TensorMapT()
        one.name, one.tensorIndex = name, index
        return one

    signature = schema.SignatureDefT()
    signature.signatureKey, signature.subgraphIndex = b"serving_default", 0
    signature.inputs = [entry(b"args_0", index) for index in inputs]
    signature.outputs = [entry(b"output_0", index) for index in outputs]
    return signature


def _network():
    """conv - conv with a skip - depthwise - dense - dequantise; two tensors share a name."""
    make, ops, options = _Builder(), schema.BuiltinOperator, schema.BuiltinOptions
    conv = schema.Conv2DOptionsT()
    conv.strideH = conv.strideW = 1
    depthwise = schema.DepthwiseConv2DOptionsT()
    depthwise.strideH = depthwise.strideW = 2
    depthwise.depthMultiplier = 1
    x = make.tensor("x", (1, 8, 8, 4), scale=0.05, zero_point=-3)
    a = make.tensor("same", (1, 8, 8, 8), scale=0.1, zero_point=5)
    b = make.tensor("same", (1, 8, 8, 8), scale=0.2, zero_point=-7)
    c = make.tensor("sum", (1, 8, 8, 8), scale=0.25)
    d = make.tensor("", (1, 4, 4, 8), scale=0.3, zero_point=1)
    e = make.tensor("dense", (1, 10), scale=0.4, zero_point=2)
    y = make.tensor("y", (1, 10), kind=FLOAT)
    unused = make.tensor("unused", (3,), scale=1.0, data=np.full(3, 77, np.int8))
    assert unused
    make.operator(
        ops.CONV_2D,
        [x, make.weights("w0", (8, 3, 3, 4), 8), make.bias("b0", 8, 0.0005)],
        [a],
        options.Conv2DOptions,
        conv,
    )
    make.operator(
        ops.CONV_2D,
        [a, make.weights("w1", (8, 3, 3, 8), 8), make.bias("b1", 8, 0.001)],
        [b],
        options.Conv2DOptions,
        conv,
    )
    make.operator(ops.ADD, [a, b], [c], options.AddOptions, schema.AddOptionsT())
    make.operator(
        ops.DEPTHWISE_CONV_2D, [c, make.weights("w2", (1, 3, 3, 8), 8, axis=3), make.bias("b2", 8, 0.0025)], [d],
        options.DepthwiseConv2DOptions, depthwise,
    )  # fmt: skip
    weights = make.tensor("w3", (10, 128), scale=0.01, data=make.rng.integers(-127, 128, (10, 128), np.int8))
    bias = make.tensor("b3", (10,), scale=0.003, data=np.arange(10, dtype=np.int32), kind=INT32)
    make.operator(
        ops.FULLY_CONNECTED, [d, weights, bias], [e], options.FullyConnectedOptions, schema.FullyConnectedOptionsT()
    )
    make.operator(ops.DEQUANTIZE, [e], [y])
    make.graph.inputs, make.graph.outputs = [x], [y]
    make.model.signatureDefs = [_signature([x], [y])]
    return make


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    file = tmp_path_factory.mktemp("tflite") / "net.tflite"
    file.write_bytes(_network().pack())
    return file


def test_every_listed_cut_is_bit_equal(path):
    source = open_cut_source(path)
    cuts = find_cuts(source.graph).cuts
    assert [cut.names for cut in cuts] == [("same",), ("same", "same#2"), ("sum",), ("tensor_4",), ("dense",)][
        : len(cuts)
    ]
    assert len(cuts) == 4  # after "dense" only a dequantiser is left
    samples = sample_inputs(source.inputs, count=5)
    wanted = run_whole(source, samples)
    assert np.ptp(wanted[0][0]) > 1
    for cut in cuts:
        check_cut(source, cut, source.split(cut), samples)


def test_a_changed_byte_is_seen(path):
    """The comparison itself works: other weights in the tail give other bytes."""
    source = open_cut_source(path)
    cut = find_cuts(source.graph).cuts[0]
    head, tail = source.split(cut)
    network = load_tflite(tail)
    network.model.buffers[1].data = np.asarray(network.model.buffers[1].data) ^ 64
    builder = flatbuffers.Builder(1024)
    builder.Finish(network.model.Pack(builder), b"TFL3")
    samples = sample_inputs(source.inputs, count=2)
    assert count_equal(run_whole(source, samples), run_cut(source, cut, (head, bytes(builder.Output())), samples)) == 0


def test_each_side_holds_only_what_it_needs(path):
    network = load_tflite(path)
    cut = find_cuts(network.graph).cuts[1]
    halves = [schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0)) for data in split_tflite(network, cut)]
    for half, operators in zip(halves, (2, 4), strict=True):
        graph = half.subgraphs[0]
        assert len(graph.operators) == len(half.operatorCodes) == operators
        names = [tensor.name for tensor in graph.tensors]
        assert len(set(names)) == len(names)
        assert b"unused" not in names
        used = {tensor.buffer for tensor in graph.tensors} | {0}
        assert used == set(range(len(half.buffers)))
        assert b"/home" not in half.description
    head, tail = (half.subgraphs[0] for half in halves)
    assert (
        [head.tensors[i].name for i in head.outputs]
        == [b"same", b"same#2"]
        == [tail.tensors[i].name for i in tail.inputs]
    )
    mappings = [(half.signatureDefs[0].inputs, half.signatureDefs[0].outputs) for half in halves]
    assert [[[entry.name for entry in side] for side in pair] for pair in mappings] == [
        [[b"args_0"], [b"same", b"same#2"]],
        [[b"same", b"same#2"], [b"output_0"]],
    ]


def test_weights_are_aligned_for_reading_in_place(path):
    network = load_tflite(path)
    for data in split_tflite(network, find_cuts(network.graph).cuts[0]):
        whole = np.frombuffer(data, np.uint8)
        for index in range(schema.Model.GetRootAs(data, 0).BuffersLength()):
            buffer = schema.Model.GetRootAs(data, 0).Buffers(index)
            if buffer.DataLength():
                offset = buffer.DataAsNumpy().__array_interface__["data"][0] - whole.__array_interface__["data"][0]
                assert offset % 16 == 0


def test_macs_follow_the_shapes(path):
    convolutions = 64 * 8 * 36 + 64 * 8 * 72
    assert load_tflite(path).graph.live_macs == convolutions + 16 * 8 * 9 + 1280
    assert operator_macs("TRANSPOSE_CONV", [(4,), (2, 3, 3, 4), (1, 5, 5, 4)], (1, 10, 10, 2)) == 25 * 4 * 18
    assert operator_macs("BATCH_MATMUL", [(2, 3, 4), (2, 4, 5)], (2, 3, 5)) == 120


def test_a_float_network_is_sent_to_export(tmp_path):
    make = _network()
    for tensor in make.graph.tensors:
        tensor.quantization = None
    file = tmp_path / "float.tflite"
    file.write_bytes(make.pack())
    with pytest.raises(CutSourceError, match="no quantised tensor"):
        open_cut_source(file)


def _with_state(make):
    make.graph.tensors[1].isVariable = True


def _two_graphs(make):
    make.model.subgraphs.append(copy.copy(make.graph))


def _bad_index(make):
    make.graph.operators[1].inputs = [1000, 1, 2]


def _out_of_order(make):
    make.graph.operators.reverse()


def _bad_buffer(make):
    make.graph.tensors[0].buffer = 4000


def _custom(make):
    make.model.operatorCodes[0].builtinCode = schema.BuiltinOperator.CUSTOM
    make.model.operatorCodes[0].customCode = b"own"


@pytest.mark.parametrize("change", [_with_state, _two_graphs, _bad_index, _out_of_order, _bad_buffer, _custom])
def test_what_cannot_be_cut_is_refused_by_name(change):
    make = _network()
    change(make)
    with pytest.raises(EdgeError, match="Wanted"):
        load_tflite(make.pack())


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_edited_files_are_cut_or_refused_by_name(path, data):
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        position = data.draw(st.integers(0, len(content) - 1))
        content[position] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(8, len(content)))] if data.draw(st.booleans()) else content
    with contextlib.suppress(EdgeError):  # any other exception is a failure
        network = load_tflite(bytes(content))
        for cut in find_cuts(network.graph).cuts[-1:]:
            split_tflite(network, cut)


def test_weights_behind_the_flatbuffer_are_taken_in(path, tmp_path):
    """The form in which ai-edge-quantizer writes large networks: offset and size instead of data."""
    make = _network()
    kept = [buffer.data for buffer in make.model.buffers]
    for buffer, data in zip(make.model.buffers, kept, strict=True):
        if data is not None:
            buffer.data, buffer.offset, buffer.size = None, 2, len(data)  # placeholders of the final width
    start = -(-len(make.pack()) // 16) * 16
    tail = b""
    for buffer, data in zip(make.model.buffers, kept, strict=True):
        if data is not None:
            buffer.offset = start + len(tail)
            tail += bytes(data) + bytes(-len(data) % 16)
    file = tmp_path / "behind.tflite"
    file.write_bytes(make.pack().ljust(start, b"\0") + tail)
    whole, behind = load_tflite(path), load_tflite(file)
    cuts = find_cuts(whole.graph).cuts
    assert find_cuts(behind.graph).cuts == cuts
    assert split_tflite(behind, cuts[2]) == split_tflite(whole, cuts[2])
    with pytest.raises(TfliteCutError, match="inside of"):
        load_tflite(file.read_bytes()[:-400])


@pytest.mark.parametrize("data", [b"", b"TFL3", b"\x1c\x00\x00\x00TFL3", bytes(4) + b"TFL3" + bytes(200)])
def test_foreign_bytes_are_refused_by_name(data):
    with pytest.raises((SourceError, TfliteCutError)):
        load_tflite(data)
