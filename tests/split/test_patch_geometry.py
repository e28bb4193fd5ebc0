"""Known networks: published sizes are met, and the reductions of MCUNetV2 come out."""

import pytest

from device_profiles.errors import FitError
from split.patch import (
    EdgeKind,
    InputMode,
    PatchGraph,
    PatchGraphError,
    PatchInput,
    PatchOp,
    PatchTensor,
    PlanRequest,
    Window,
    check_plan,
    plan,
)
from split.patch_memory import layerwise_curve, plan_curve


class Network:
    """Builds a chain of convolutions with symmetric padding, and residual blocks."""

    def __init__(self, side, channels):
        self.tensors = [PatchTensor("image", side, side, channels)]
        self.ops = []
        self.last = 0

    def put(self, kind, inputs, side, channels, **fields):
        self.tensors.append(PatchTensor(f"{kind}_{len(self.ops)}", side, side, channels))
        self.last = len(self.tensors) - 1
        self.ops.append(PatchOp(f"{kind}_{len(self.ops)}", kind, tuple(inputs), self.last, **fields))
        return self.last

    def conv(self, channels, kernel=1, stride=1, depthwise=False):
        source = self.tensors[self.last]
        side = -(-source.height // stride)
        window = Window(kernel, stride, (kernel - 1) // 2)
        macs = side * side * channels * kernel * kernel * (1 if depthwise else source.channels)
        kind = "depthwise" if depthwise else "conv"
        return self.put(kind, [PatchInput(self.last, window, window)], side, channels, macs=macs)

    def inverted_residual(self, expand, channels, stride):
        entry = self.last
        shape = self.tensors[entry]
        if expand > 1:
            self.conv(shape.channels * expand)
        self.conv(shape.channels * expand, 3, stride, depthwise=True)
        self.conv(channels)
        if stride == 1 and channels == shape.channels:
            self.put("add", [PatchInput(entry), PatchInput(self.last)], shape.height, channels, in_place=True)

    def graph(self, name):
        return PatchGraph(name, tuple(self.tensors), tuple(self.ops), (0,), (self.last,))


@pytest.fixture(scope="module")
def mobilenet_v2():
    """MobileNetV2-1.0 at 224 x 224 without its classifier (Sandler et al. 2018, table 2)."""
    network = Network(224, 3)
    network.conv(32, 3, 2)
    table = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    for expand, channels, repeat, stride in table:
        for index in range(repeat):
            network.inverted_residual(expand, channels, stride if index == 0 else 1)
    network.conv(1280)
    return network.graph("mobilenet_v2")


def test_layerwise_peak_of_mobilenet_v2_is_the_published_one(mobilenet_v2):
    """MCUNetV2 gives 1372 kB (KiB): input and output of the first expansion, depthwise being done in place."""
    peaks = [
        mobilenet_v2.tensors[op.inputs[0].tensor].size_bytes + mobilenet_v2.tensors[op.output].size_bytes
        for op in mobilenet_v2.ops
        if op.kind == "conv"
    ]
    assert max(peaks) == 1372 * 1024
    assert layerwise_curve(mobilenet_v2).peak_bytes == 112 * 112 * 96 + 56 * 56 * 96


def test_patches_reduce_mobilenet_v2_as_published_and_streams_more(mobilenet_v2):
    """MCUNetV2's figure 1: 1372 to 172 kB, 8 times less, with patches; the frame is not counted."""
    patches = plan(mobilenet_v2, PlanRequest(schedule="patch", input_mode=InputMode.EXTERNAL, max_mac_factor=1.2))
    check_plan(patches)
    assert EdgeKind.PATCH in {segment.kind for segment in patches.segments}
    assert patches.arena_bytes <= 172 * 1024
    streams = plan(mobilenet_v2, PlanRequest(schedule="stream", input_mode=InputMode.EXTERNAL))
    assert streams.mac_factor == 1.0
    assert streams.arena_bytes < 130_000


def test_one_by_one_layers_overlap_input_and_output(mobilenet_v2):
    layers = plan(mobilenet_v2, PlanRequest(schedule="layer"))
    check_plan(layers)
    assert layers.arena_bytes < 1.01 * 112 * 112 * 96
    assert layers.certificate == "live-bound"


def test_the_curve_of_a_plan_ends_at_its_macs_and_stays_within_its_arena(mobilenet_v2):
    result = plan(mobilenet_v2, PlanRequest(schedule="stream"))
    curve = plan_curve(result)
    assert curve.macs[-1] == result.macs
    assert curve.live_bytes.min() > 0
    assert curve.peak_bytes <= result.live_bound_bytes
    assert len(curve.borders) == len(result.segments)


def test_fit_error_names_the_gap_and_the_layer(mobilenet_v2):
    with pytest.raises(FitError, match=r"needs \d+ B of RAM but 65536 B are allowed \(\d+ B over\).*at layer \w+"):
        plan(mobilenet_v2, PlanRequest(schedule="stream", max_ram_bytes=65536))


def test_a_factor_that_cannot_be_met_is_named():
    network = Network(8, 3)
    network.conv(4, 3)
    with pytest.raises(FitError, match="--max-macs-factor"):
        plan(network.graph("small"), PlanRequest(max_mac_factor=0.5))


def test_a_residual_sum_takes_no_bytes_and_a_depthwise_layer_two_rows(mobilenet_v2):
    layers = plan(mobilenet_v2, PlanRequest(schedule="layer"))
    for segment in layers.segments:
        op = mobilenet_v2.ops[segment.first_op]
        source = mobilenet_v2.tensors[op.inputs[0].tensor]
        if op.kind == "add":
            offsets = [segment.buffer(operand.tensor).offset for operand in op.inputs]
            assert segment.buffer(op.output).offset in offsets
        if op.kind == "depthwise" and op.inputs[0].rows.stride == 1:
            graph = Network(source.height, source.channels)
            graph.conv(source.channels, 3, depthwise=True)
            alone = plan(graph.graph("depthwise"), PlanRequest(schedule="layer"))
            assert alone.arena_bytes == source.size_bytes + 2 * source.row_bytes


def test_contradictory_graphs_are_refused():
    image, out = PatchTensor("image", 4, 4, 1), PatchTensor("out", 4, 4, 1)
    op = PatchOp("late", "relu", (PatchInput(1),), 2)
    with pytest.raises(PatchGraphError, match="before it is written"):
        plan(PatchGraph("bad", (image, out, out), (op,), (0,), (2,)))
    with pytest.raises(PatchGraphError, match="exists already"):
        plan(PatchGraph("bad", (image,), (PatchOp("loop", "relu", (PatchInput(0),), 0),), (0,), (0,)))
    with pytest.raises(PatchGraphError, match="neither read nor an output"):
        plan(PatchGraph("bad", (image, out), (PatchOp("lost", "relu", (PatchInput(0),), 1),), (0,), (0,)))
    with pytest.raises(PatchGraphError, match="1 x 1 output"):
        plan(PatchGraph("bad", (image, out), (PatchOp("pool", "mean", (PatchInput(0),), 1, reduces=True),), (0,), (1,)))
    with pytest.raises(PatchGraphError, match="unknown"):
        plan(
            PatchGraph("good", (image, out), (PatchOp("r", "relu", (PatchInput(0),), 1),), (0,), (1,)), PlanRequest("x")
        )
