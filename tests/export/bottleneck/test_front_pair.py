"""Heads that keep the network's own first layers: what networks have there becomes int8 on every engine."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional

from device_profiles import load_board
from export.cut_check import open_tflite_runner
from export.cut_litert import load_tflite
from export.evaluate import evaluate_pair
from export.joined import count_equal
from export.litert_head import head_to_litert
from export.litert_pair import write_litert_pair
from export.pair_runner import PairRunner
from export.trained_manifest import TrainedPairOptions
from export.trained_pair import augmentation_of, calibration_pictures, write_trained_pair
from orchestrator.cli import run
from split.distill import TrainOptions, train
from split.inject import inject, trace_network
from split.latents import IntegerHead, fit_grid, input_batches
from split.methods import find_method

BOARD = "nucleo-h743zi"


class Padded(nn.Conv2d):
    """A convolution behind zeros of its own, computed without its module, as EfficientNet-Lite has them."""

    def __init__(self, *sizes, pad, **more):
        super().__init__(*sizes, bias=False, **more)
        self.zeros = nn.ZeroPad2d(pad)

    def forward(self, x):
        return functional.conv2d(self.zeros(x), self.weight, None, self.stride, 0, 1, self.groups)


class Inverted(nn.Module):
    """1x1, depthwise 3x3, 1x1, with ReLU6 and a shortcut."""

    def __init__(self, channels):
        super().__init__()
        wide = 2 * channels
        self.body = nn.Sequential(
            Padded(channels, wide, 1, pad=0), nn.BatchNorm2d(wide), nn.ReLU6(),
            Padded(wide, wide, 3, groups=wide, pad=1), nn.BatchNorm2d(wide), nn.ReLU6(),
            Padded(wide, channels, 1, pad=0), nn.BatchNorm2d(channels),
        )  # fmt: skip

    def forward(self, x):
        return x + self.body(x)


class Early(nn.Module):
    """A pooling with padding behind a ReLU, an inverted block, a norm that no convolution stands before."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(Padded(3, 8, 3, stride=2, pad=(0, 1, 0, 1)), nn.BatchNorm2d(8), nn.ReLU())
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.block = Inverted(8)
        self.norm = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU6())
        self.last = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(16, 3)

    def forward(self, x):
        return self.fc(self.last(self.norm(self.block(self.pool(self.stem(x))))))


@pytest.fixture(scope="module")
def student(colour, picture_set, tmp_path_factory):
    """Slim behind `norm`, whose head keeps everything up to there; a few steps."""
    torch.manual_seed(6)
    network, data = Early(), picture_set(96, seed=2)
    view = augmentation_of(colour.PREPROCESSING)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
    (x,) = input_batches(data, view, batch=96)
    for _ in range(20):
        optimiser.zero_grad()
        functional.cross_entropy(network(x), data.labels).backward()
        optimiser.step()
    method = find_method("slim")
    form = method.options(front="norm", latent_channels=4, decoder_width=16, epochs=(6, 2), batch=16)
    trace = trace_network(network.eval(), x[:1])
    made, teacher = inject(trace, "norm", lambda at: method.make(at, form), size=(32, 32), front="norm")
    train(
        made, teacher, data, method.stages(form), TrainOptions(folder=tmp_path_factory.mktemp("run"), augmentation=view)
    )
    return made


@pytest.fixture(scope="module", params=["onnxruntime", "tflite-micro"])
def pair(request, student, colour, picture_set, tmp_path_factory):
    """Head and tail: on onnxruntime, and a board's head with a tail on LiteRT."""
    options = TrainedPairOptions(
        out=tmp_path_factory.mktemp("pair"),
        name="early",
        source_sha256="0" * 64,
        preprocessing=colour.PREPROCESSING,
        labels=colour.LABELS,
    )
    data = picture_set(96, seed=2)
    if request.param == "onnxruntime":
        return write_trained_pair(student, data, options)
    there = replace(options, tail_engine="litert", head_target=BOARD)
    return write_litert_pair(student, data, there, board=load_board(BOARD))


def test_a_kept_front_is_verified_and_equals_the_unsplit_network_bit_for_bit(pair, student, colour, picture_set):
    data, view = picture_set(24, seed=11), augmentation_of(colour.PREPROCESSING)
    runner = PairRunner(pair.head, pair.tail)
    inputs = [runner.input_of(one.numpy().transpose(1, 2, 0)) for one in data.images]
    found = count_equal(pair.head, pair.tail, inputs)
    assert (found.equal, found.count, found.unsplit) == (24, 24, True)
    for artefact in (pair.head, pair.tail):
        assert run(["verify", str(artefact.folder)]) == 0
    wanted = IntegerHead(student.bottleneck, fit_grid(student, ()))
    made = [runner.latents(one)[0] for one in inputs]
    if pair.head.manifest.outputs[0].layout == "nhwc":
        made = [one.transpose(0, 3, 1, 2) for one in made]
    (batch,) = input_batches(data, view)
    real = wanted(batch).numpy().astype(int)
    assert real.std() > 0.5
    assert np.abs(np.concatenate(made).astype(int) - real).mean() < 0.15 * max(real.std(), 1)
    way = evaluate_pair(pair.head, pair.tail, data, name="early")
    assert (way.logits.argmax(1) == data.labels.numpy()).mean() > 0.6
    assert way.cost.macs > 16 * 16 * 8 * 27  # the first of the kept convolutions


def test_a_kept_front_is_int8_throughout(pair):
    if pair.head.entry.suffix == ".onnx":
        model = onnx.load(pair.head.entry)
        assert not {"BatchNormalization"} & {node.op_type for node in model.graph.node}
        weights = [one for one in model.graph.initializer if len(one.dims) == 4]
        assert {one.data_type for one in weights} == {onnx.TensorProto.INT8}
    else:
        graph = load_tflite(pair.head.entry).graph
        assert not {"PADV2", "SUB", "DEQUANTIZE"} & {node.op for node in graph.nodes}
        assert {one.dtype for one in graph.tensors.values()} == {"int8"}


@pytest.mark.mcu
@pytest.mark.parametrize("pair", ["tflite-micro"], indirect=True)
def test_a_kept_fronts_c_gives_the_same_integers_on_a_simulated_board(pair):
    assert run(["verify", str(pair.head.folder), "--on", "qemu"]) == 0


def test_zeros_stand_around_a_pooling_only_behind_a_relu(student, colour, picture_set):
    """What is below zero at an edge would lose to them."""

    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.pool = nn.Conv2d(3, 4, 3, 2, 1), nn.MaxPool2d(3, 1, 1)
            self.norm, self.fc = nn.BatchNorm2d(4), nn.Linear(4 * 16 * 16, 3)

        def forward(self, x):
            x = self.norm(self.pool(self.pool(torch.relu(self.conv(x))) - 1))
            return self.fc(torch.flatten(x, 1))

    torch.manual_seed(1)
    method, view = find_method("slim"), augmentation_of(colour.PREPROCESSING)
    form = method.options(front="norm", width=4, depth=0, latent_channels=4)
    trace = trace_network(Shared(), torch.zeros(1, 3, 32, 32))
    network, _ = inject(trace, "norm", lambda at: method.make(at, form), size=(32, 32), front="norm")
    head = IntegerHead(network.eval().bottleneck, fit_grid(network, ()))
    pictures = calibration_pictures(picture_set(24), view)
    made = head_to_litert(head, pictures, floats=False)
    runner = open_tflite_runner(made.data, ["image"], ["latent"])
    found = np.concatenate([runner([made.stored(one)])[0].transpose(0, 3, 1, 2) for one in pictures]).astype(int)
    wanted = np.concatenate([head(torch.from_numpy(one)).numpy() for one in pictures]).astype(int)
    assert wanted.std() > 0.5
    assert np.abs(found - wanted).mean() < 0.15 * max(wanted.std(), 1)
