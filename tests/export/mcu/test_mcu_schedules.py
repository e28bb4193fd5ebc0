"""Random networks under random schedules: always TensorFlow Lite Micro's integers."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from export.mcu.emit_network import emit_network
from export.mcu.errors import ScheduleError
from export.mcu.graph import to_patch_graph
from export.mcu.native import NativeNetwork
from export.mcu.network import lower
from export.mcu.oracle import Oracle
from export.mcu.proof import prove_tensors
from export.mcu.vectors import proof_inputs
from split.patch import InputMode, PlanRequest, plan


def random_network(builder, seed: int, length: int) -> bytes:
    """A chain with branches: residual ADDs, concatenations, squeeze-and-excite, pools, a dense or spatial end."""
    net = builder(seed)
    rng = net.rng
    size = (int(rng.integers(5, 15)), int(rng.integers(5, 15)))
    source = net.activation((1, *size, int(rng.choice([1, 3, 4]))), 0.04, int(rng.integers(-128, 128)))
    inputs, tip, outputs = [source], source, []
    for _ in range(length):
        tip = random_step(net, rng, tip)
        if rng.random() < 0.1:
            outputs.append(tip)
    if rng.random() < 0.6:
        tip = net.dense(tip, int(rng.integers(1, 9)))
        tip = net.unary("SOFTMAX", tip) if rng.random() < 0.5 else tip
    return net.finish(inputs, list(dict.fromkeys([tip, *outputs])))


def random_step(net, rng, tip):
    _, height, width, channels = net.tensors[tip].shape
    kernel = tuple(int(rng.integers(1, 1 + min(5, n + 2))) for n in (height, width))
    valid = tuple(min(k, n) for k, n in zip(kernel, (height, width), strict=True))
    stride = (int(rng.integers(1, 3)),) * 2
    padding = int(rng.integers(0, 2))
    kernel = valid if padding else kernel
    activation = int(rng.choice([0, 1, 3]))
    kind = rng.choice(
        ["conv", "point", "depthwise", "add", "excite", "pool", "function", "concatenate", "pad", "resize", "join"]
    )
    if kind == "conv":
        return net.conv(tip, int(rng.integers(1, 13)), kernel, stride, padding, activation=activation)
    if kind == "point":
        return net.conv(tip, int(rng.integers(1, 4)) * 4, (1, 1), activation=activation)
    if kind == "depthwise":
        multiplier = 2 if channels < 5 and rng.random() < 0.3 else 1
        return net.depthwise(tip, multiplier, kernel, stride, padding, activation=activation)
    if kind == "add":
        branch = net.depthwise(net.conv(tip, channels, (1, 1)), 1, (3, 3), activation=activation)
        return net.binary("ADD", *([tip, branch] if rng.random() < 0.5 else [branch, tip]))
    if kind == "join":
        return net.binary("ADD", net.conv(tip, 4, (3, 3), stride), net.conv(tip, 4, (1, 1), stride))
    if kind == "excite":
        squeezed = net.mean(tip, [1, 2])
        gate = net.unary("LOGISTIC", net.conv(net.conv(squeezed, 3, (1, 1)), channels, (1, 1)))
        return net.binary("MUL", tip, gate)
    if kind == "pool":
        return net.pool(tip, str(rng.choice(["MAX_POOL_2D", "AVERAGE_POOL_2D"])), kernel, stride, padding)
    if kind == "function":
        return net.unary(str(rng.choice(["LOGISTIC", "RELU", "RELU6", "QUANTIZE"])), tip)
    if kind == "concatenate":
        return net.concatenate([tip, net.pool(tip, "MAX_POOL_2D", (3, 3), (1, 1), 0)], int(rng.choice([1, 2, 3])))
    if kind == "resize":
        return net.resize(tip, (min(2 * height, 20), min(2 * width, 20)))
    return net.pad(tip, *(int(n) for n in rng.integers(0, 3, 4)))


@pytest.fixture(scope="session")
def run_schedule(kernel_library, fresh_folder):
    def run(network, request, inputs):
        chosen = plan(to_patch_graph(network, name="random"), request)
        code = emit_network(network, chosen, name="random", source="random")
        native = NativeNetwork(network, chosen, code, library=kernel_library, folder=fresh_folder())
        return chosen, [native.run(one, fill=fill) for one in inputs for fill in (0x55, -1)]

    return run


REQUESTS = st.builds(
    PlanRequest,
    schedule=st.sampled_from(["layer", "stream", "patch", "auto", "auto"]),
    input_mode=st.sampled_from(list(InputMode)),
    max_mac_factor=st.sampled_from([1.0, 1.3, 3.0, None]),
    optimise=st.sampled_from(["ram", "ram", "speed"]),
    row_tables=st.booleans(),
)


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 10**6), st.integers(2, 9), st.lists(REQUESTS, min_size=2, max_size=3))
def test_every_schedule_of_a_random_network_gives_the_reference_integers(
    tflite_builder, run_schedule, kernel_library, fresh_folder, engines, seed, length, requests
):
    model = random_network(tflite_builder, seed, length)
    network = lower(model)
    oracle = Oracle(model, network, process=engines)
    inputs = proof_inputs(network, count=2, seed=seed)
    proof = prove_tensors(network, oracle, inputs, library=kernel_library, folder=fresh_folder())
    assert proof.differences == ()
    wanted = [truth.outputs for truth in oracle.run_all(inputs) for _ in range(2)]
    for request in requests:
        chosen, got = run_schedule(network, request, inputs)
        for outputs, truth in zip(got, wanted, strict=True):
            for a, b in zip(outputs, truth, strict=True):
                assert np.array_equal(a, b), (request, [segment.kind.value for segment in chosen.segments])


@pytest.mark.parametrize("mode", list(InputMode), ids=lambda mode: mode.value)
def test_an_input_that_is_an_output_too_is_handed_out_from_the_arena_or_refused(tflite_builder, run_schedule, mode):
    net = tflite_builder()
    source = net.activation((1, 6, 5, 4), 0.05, 4, name="frame")
    model = net.finish([source], [net.conv(source, 4), source])
    network, request = lower(model), PlanRequest(input_mode=mode)
    inputs = proof_inputs(network, count=2)
    if mode is InputMode.EXTERNAL:
        with pytest.raises(ScheduleError, match=r"output 'frame'.*--input-mode external.*--input-mode resident"):
            run_schedule(network, request, inputs)
        return
    _, got = run_schedule(network, request, inputs)
    for outputs, one in zip(got[::2], inputs, strict=True):
        assert np.array_equal(outputs[1], one[0])


def test_the_least_ram_of_a_wide_network_needs_patches_or_tiles_and_stays_exact(tflite_builder, run_schedule, engines):
    """A network whose first layers are far larger than the rest: recomputation pays, and equals."""
    net = tflite_builder(1)
    source = net.activation((1, 48, 48, 3), 0.04, -10)
    tip = net.conv(source, 8, (3, 3), (2, 2))
    tip = net.depthwise(tip, 1, (3, 3))
    tip = net.conv(tip, 16, (1, 1))
    tip = net.depthwise(tip, 1, (3, 3), (2, 2))
    model = net.finish([source], [net.dense(net.pool(tip, kernel=(4, 4), stride=(4, 4)), 4)])
    network = lower(model)
    oracle = Oracle(model, network, process=engines)
    inputs = proof_inputs(network, count=2)
    kinds = set()
    for schedule in ("patch", "auto"):
        for mode in InputMode:
            request = PlanRequest(schedule=schedule, input_mode=mode, max_mac_factor=None)
            chosen, got = run_schedule(network, request, inputs)
            kinds |= {segment.kind.value for segment in chosen.segments}
            assert all(
                np.array_equal(a[0], b)
                for a, b in zip(got[::2], [truth.outputs[0] for truth in oracle.run_all(inputs)], strict=True)
            )
    assert kinds & {"patch", "tile"}
