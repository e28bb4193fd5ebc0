"""A second opinion: LiteRT agrees operator by operator, but for the dense layer, whose rounding is an option."""

from dataclasses import dataclass

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from export.mcu.network import lower, round_dense_once
from export.mcu.oracle import LitertOracle, Oracle
from export.mcu.proof import prove_tensors
from export.mcu.qemu import prove
from export.mcu.to_c import McuOptions, export_mcu
from export.mcu.vectors import proof_inputs


@dataclass(frozen=True)
class Board:
    id: str = "test-board"
    sram_bytes: int | None = 64 * 1024
    flash_bytes: int | None = 256 * 1024


def both_engines(engines, model: bytes, count: int = 5) -> list[tuple[np.ndarray, np.ndarray]]:
    network = lower(model)
    litert = Interpreter(model_content=model, experimental_op_resolver_type=OpResolverType.BUILTIN_REF)
    litert.allocate_tensors()
    pairs = []
    cases = proof_inputs(network, count=count)
    for inputs, truth in zip(cases, Oracle(model, network, process=engines).run_all(cases), strict=True):
        for detail, data in zip(litert.get_input_details(), inputs, strict=True):
            litert.set_tensor(detail["index"], data.reshape(detail["shape"]))
        litert.invoke()
        found = litert.get_tensor(litert.get_output_details()[0]["index"])
        pairs.append((found.reshape(-1), truth.outputs[0].reshape(-1)))
    return pairs


ONE_OP = {
    "conv": lambda net, x: net.conv(x, 9, (3, 5), (2, 1)),
    "point": lambda net, x: net.conv(x, 16, (1, 1), gain=4.0),
    "depthwise": lambda net, x: net.depthwise(x, 1, (5, 3), (2, 2)),
    "multiplied": lambda net, x: net.depthwise(x, 3, (3, 3)),
    "average": lambda net, x: net.pool(x, "AVERAGE_POOL_2D", (3, 3), (2, 2), 0),
    "largest": lambda net, x: net.pool(x, "MAX_POOL_2D", (3, 3), (2, 2), 0),
    "add": lambda net, x: net.binary("ADD", x, net.activation((1, 9, 11, 8), 0.013, 5)),
    "mul": lambda net, x: net.binary("MUL", x, net.activation((1, 1, 1, 8), 0.013, 5)),
    "mean": lambda net, x: net.mean(x, [1, 2]),
    "relu": lambda net, x: net.unary("RELU", x),
    "logistic": lambda net, x: net.unary("LOGISTIC", x),
    "hard swish": lambda net, x: net.unary("HARD_SWISH", x),
    "softmax": lambda net, x: net.unary("SOFTMAX", x),
    "requantise": lambda net, x: net.unary("QUANTIZE", x),
    "resize": lambda net, x: net.resize(x, (18, 5)),
    "pad": lambda net, x: net.pad(x, 1, 2, 3, 0),
}


@pytest.mark.parametrize("name", ONE_OP)
def test_litert_agrees_on_every_operator_but_the_dense_layer(tflite_builder, engines, name):
    for seed in range(3):
        net = tflite_builder(seed)
        source = net.activation((1, 9, 11, 8), 0.04, -20)
        out = ONE_OP[name](net, source)
        inputs = [i for i, tensor in enumerate(net.tensors) if tensor.buffer == 0 and i != out]
        for litert, micro in both_engines(engines, net.finish(inputs, [out])):
            assert np.array_equal(litert, micro)


def test_the_dense_layer_differs_by_at_most_one_step(tflite_builder, engines):
    """LiteRT rounds once, TensorFlow Lite Micro (and CMSIS-NN) twice: the reason why the oracle is named."""
    for seed in range(5):
        net = tflite_builder(seed)
        source = net.activation((1, 128), 0.04, -20)
        for litert, micro in both_engines(engines, net.finish([source], [net.dense(source, 64)])):
            assert np.abs(litert.astype(int) - micro).max() <= 1


@pytest.mark.parametrize("seed", range(4))
def test_rounding_litert_equals_litert_in_every_tensor(tflite_builder, kernel_library, fresh_folder, engines, seed):
    net = tflite_builder(seed)
    source = net.activation((1, 6, 5, 8), 0.04, -20)
    tip = net.dense(net.conv(source, 8), 96, activation=1, per_channel=seed % 2 == 1)
    model = net.finish([source], [net.unary("SOFTMAX", net.dense(tip, 40, gain=3.0))])
    network = round_dense_once(lower(model))
    oracle = LitertOracle(model, network, process=engines)
    inputs = proof_inputs(network, count=8)
    proof = prove_tensors(network, oracle, inputs, library=kernel_library, folder=fresh_folder())
    assert proof.differences == ()


@pytest.mark.mcu
def test_an_export_with_litert_rounding_proves_itself_against_litert(tflite_builder, tmp_path):
    net = tflite_builder(1)
    source = net.activation((1, 200), 0.04, -20)
    model = net.finish([source], [net.dense(source, 64)])
    export_mcu(model, Board(), tmp_path, McuOptions(name="dense", rounding="litert"))
    run = prove(tmp_path, machine="mps2-an386")
    assert run.differing == 0
    assert "of LiteRT;" in (tmp_path / "README.md").read_text()
