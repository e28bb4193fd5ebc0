"""A bottleneck that keeps the network's own first layers."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from split.augment import Augmentation
from split.bottlefit import BottleFit, BottleFitOptions
from split.bottleneck import BottleneckError
from split.distill import TrainOptions, train
from split.inject import CutLayer, Front, LayerError, first_layers, inject, trace_network
from split.latents import IntegerHead, IntegerTail, fit_grid, input_batches
from split.methods import find_method

SIZE = (32, 32)
X = torch.rand(2, 3, *SIZE)
OPTIONS = Augmentation(32, "none")


def _inject(network, name, layer="layer1", front="maxpool", size=SIZE, **settings):
    method = find_method(name)
    options = replace(method.options(), epochs=(2, 1), batch=16, front=front, **settings)
    trace = trace_network(network, torch.empty(1, 3, *size))
    pair = inject(trace, layer, lambda at: method.make(at, options), size=size, front=front)
    return pair, method.stages(options)


@pytest.mark.parametrize("name", ["slim", "progressive", "codebook", "bottlefit"])
def test_the_head_begins_with_a_copy_of_the_trained_layers(name, tiny):
    (student, _), _ = _inject(tiny, name)
    front = student.bottleneck.encoder[0].eval()
    with torch.no_grad():
        assert torch.equal(front(X), tiny.maxpool(tiny.relu(tiny.bn1(tiny.conv1(X)))))
    assert not {one.data_ptr() for one in front.parameters()} & {one.data_ptr() for one in tiny.parameters()}
    assert [one.shape for one in student.bottleneck.pretrained()] == [
        one.shape for one in (*tiny.conv1.parameters(), *tiny.bn1.parameters())
    ]
    assert student.eval()(X).logits.shape == (2, 3)


@pytest.mark.parametrize(
    ("front", "message"),
    [
        ("layer9", "no such layer: 'layer9'. Layers that fit: conv1, bn1, relu, maxpool, layer1"),
        ("fc", "a layer that a cut cannot follow: 'fc'"),
        ("layer1.0.body", "a layer that a cut cannot follow: 'layer1.0.body'"),
        ("layer2", "Wanted first layers that end before the cut at 'layer1', or there, found a layer behind it: 'layer2'"),
    ],
)  # fmt: skip
def test_first_layers_that_are_none_are_named_with_those_that_fit(front, message, tiny):
    with pytest.raises(LayerError, match=message):
        _inject(tiny, "slim", front=front)


def test_first_layers_of_an_uneven_stride_are_refused():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, 2, 2), nn.Flatten(), nn.Linear(1024, 2))
    trace = trace_network(network, X)
    assert (trace.layers["0"].shape, trace.layers["1"].stride) == ((4, 30, 30), 2)
    with pytest.raises(LayerError, match=r"a layer of uneven stride: '0'\. Layers that fit: 1\."):
        first_layers(trace, "0", before="1")


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("slim", {"int8": True}, "found the network's own up to 'maxpool'.*Leave int8 out"),
        ("positions", {}, "found the first layers up to 'maxpool'. Leave front out"),
        ("bottlefit", {"version": 1}, "found version 1, whose bottleneck"),
    ],
)
def test_options_that_a_kept_front_excludes_are_named(name, settings, message, tiny):
    with pytest.raises(BottleneckError, match=message):
        _inject(tiny, name, **settings)


def test_first_layers_of_another_stride_are_named(tiny):
    with pytest.raises(
        BottleneckError, match="stride 4 or 8 before a latent of stride 8, found stride 2 behind 'conv1'"
    ):
        _inject(tiny, "bottlefit", layer="layer2", front="conv1")
    method = find_method("slim")
    third = Front(CutLayer("pool", (8, 11, 11), 3), torch.fx.symbolic_trace(nn.Identity()))
    with pytest.raises(BottleneckError, match="divides that of the latent, 4, found stride 3 behind 'pool'"):
        method.make(CutLayer("layer1", (8, 8, 8), 4, third), method.options(front="pool"))


@pytest.mark.parametrize("name", ["slim", "bottlefit"])
def test_first_layers_of_the_options_alone_are_not_left_out_silently(name, tiny):
    method = find_method(name)
    with pytest.raises(BottleneckError, match="up to 'maxpool', as the options say, found those up to ''"):
        method.make(trace_network(tiny, X).layers["layer1"], method.options(front="maxpool"))


@pytest.mark.parametrize(("version", "front", "side"), [(2, "layer1", 29), (2, "layer2", 29), (3, "layer2", 15)])
def test_bottlefit_behind_kept_layers_sends_its_published_latents(version, front, side, resnet):
    with torch.device("meta"), torch.no_grad():
        network = resnet((3, 8, 1, 1))
        (student, _), _ = _inject(network, "bottlefit", "layer2", front, (224, 224), version=version, channels=12)
        latent = student.bottleneck.encoder(torch.empty(1, 3, 224, 224))
        target = student.bottleneck.decoder(latent)
    assert len(student.bottleneck.encoder) == 2
    assert (latent.shape, target.shape) == ((1, 12, side, side), (1, 512, 28, 28))


def test_bottlefit_reaches_the_stride_of_the_layers_that_it_keeps(resnet):
    with torch.device("meta"), torch.no_grad():
        network, settings = resnet((3, 4, 6, 1)), {"size": (224, 224), "version": 2, "channels": 20}
        (student, _), _ = _inject(network, "bottlefit", "layer3", "layer3", **settings)
        latent = student.bottleneck.encoder(torch.empty(1, 3, 224, 224))
        target = student.bottleneck.decoder(latent)
        assert (latent.shape, target.shape) == ((1, 20, 15, 15), (1, 1024, 14, 14))
        with pytest.raises(BottleneckError, match=r"a stride of \[1, 2, 4, 8\] .*found version 2, stride 16"):
            _inject(network, "bottlefit", "layer3", "", **settings)
        with pytest.raises(BottleneckError, match="Wanted stride 8 for version 3, found 16"):
            _inject(network, "bottlefit", "layer3", "layer3", size=(224, 224), version=3)


def _train(pair, stages, pictures, folder):
    train(*pair, pictures, stages, TrainOptions(folder=folder, augmentation=OPTIONS, device="cpu"))


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_kept_layers_learn_at_the_rate_of_what_is_trained_already(rate, tiny, pictures, tmp_path):
    tiny.requires_grad_(requires_grad=False)  # as networks are that were fine-tuned at their end alone
    (student, teacher), stages = _inject(tiny, "slim", tail_lr=rate, width=4, decoder_width=8)
    before = {name: one.clone() for name, one in student.named_parameters()}
    _train((student, teacher), stages[:1], pictures, tmp_path)
    moved = {name for name, one in student.named_parameters() if not torch.equal(one, before[name])}
    kept = {name for name in before if name.startswith("bottleneck.encoder.0.")}
    assert kept
    assert moved & kept == (kept if rate else set())
    assert any(name.startswith("bottleneck.encoder.1.") for name in moved)


def test_a_fixed_head_fixes_its_kept_layers_with_their_statistics(tiny, pictures, tmp_path):
    (student, teacher), stages = _inject(tiny, "slim", width=4, decoder_width=8)
    student.bottleneck.encoder[0].bn1.running_mean += 0.5  # of other pictures
    before = {name: one.clone() for name, one in student.state_dict().items()}
    _train((student, teacher), stages[-1:], pictures, tmp_path)
    after = student.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in after if name.startswith("bottleneck.encoder"))
    assert not torch.equal(before["tail.fc.weight"], after["tail.fc.weight"])


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_a_decoder_that_learnt_from_integers_is_exported_with_their_grid(bits, tiny, pictures, tmp_path):
    pair, stages = _inject(tiny, "bottlefit", rounds=True, bits=bits, channels=3)
    _train(pair, stages, pictures, tmp_path)
    student = pair[0]
    most, largest = 2 ** (bits - 1) - 1, float(student.bottleneck.largest)
    grid = fit_grid(student, ())  # no pictures are asked
    assert grid.scale == pytest.approx((largest / most,) * 3)
    (batch,) = input_batches(pictures, OPTIONS, batch=48)
    with torch.no_grad():
        latent = IntegerHead(student.bottleneck, grid)(batch)
        assert most / 2 <= int(latent.abs().max()) <= 2 * most
        assert torch.allclose(IntegerTail(student, grid)(latent), student(batch).logits, atol=1e-4)


def test_a_latent_beyond_the_largest_of_training_keeps_its_integer():
    block = BottleFit(8, BottleFitOptions(channels=1, stride=4, bits=3, rounds=True)).eval()
    block.largest.fill_(3.0)  # three steps of 1
    seen = block.code(torch.tensor([[[[-0.4, 0.6, -5.2, 500.0]]]])).latent
    assert seen.flatten().tolist() == [0, 1, -5, 127]
