"""The published geometry, layer by layer, at 224 pixels."""

import pytest
import torch
from torch import nn

from split.bottlefit import BottleFit, BottleFitOptions, bottlefit_stages, quantise_8bit
from split.bottleneck import BottleneckError
from split.entropic_student import EntropicOptions, EntropicStudent, entropic_stages
from split.fold import fold
from split.gdn import GDN1, FoldedGDN1
from split.inject import trace_network


@pytest.fixture(autouse=True)
def _without_memory():
    with torch.device("meta"), torch.no_grad():
        yield


def _convs(module):
    rows = []
    for one in module:
        if isinstance(one, nn.Conv2d):
            rows.append((one.in_channels, one.out_channels, one.kernel_size[0], one.stride[0], one.padding[0]))
            assert one.bias is None
    return rows


def _layers(module):
    return [type(one).__name__ for one in module]


def _count(module):
    return sum(one.numel() for one in module.parameters())


X = (1, 3, 224, 224)


def test_entropic_student_is_the_published_table():
    block = EntropicStudent(256).eval()
    assert _convs(block.encoder) == [(3, 96, 5, 2, 2), (96, 48, 5, 2, 2), (48, 24, 2, 1, 0)]
    assert _layers(block.encoder) == ["Conv2d", "GDN1", "Conv2d", "GDN1", "Conv2d"]
    assert _convs(block.decoder) == [(24, 512, 2, 1, 1), (512, 256, 2, 1, 0), (256, 256, 2, 1, 1)]
    assert [one.inverse for one in block.decoder if isinstance(one, GDN1)] == [True, True]
    latent = block.encoder(torch.empty(X))
    assert latent.shape == (1, 24, 55, 55)
    assert latent.numel() == 72_600
    assert block.decoder(latent).shape == (1, 256, 56, 56)
    assert (_count(block.encoder), _count(block.decoder), _count(block.prior)) == (138_672, 1_164_032, 1_464)


def test_bottlefit_version_2_is_the_published_table():
    block = BottleFit(512, BottleFitOptions(channels=12)).eval()
    assert _layers(block.encoder) == ["Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d", "BatchNorm2d", "ReLU", "Conv2d"]
    assert _convs(block.encoder) == [(3, 64, 7, 2, 3), (64, 12, 2, 2, 1)]
    assert _layers(block.decoder) == ["BatchNorm2d", "ReLU"] + ["Conv2d", "BatchNorm2d", "ReLU"] * 3 + [
        "Conv2d",
        "AvgPool2d",
    ]
    assert _convs(block.decoder) == [(12, 512, 2, 1, 1), (512, 512, 2, 1, 1), (512, 512, 2, 1, 0), (512, 512, 2, 1, 0)]
    assert (_count(block.encoder), _count(block.decoder)) == (12_736, 3_173_400)


@pytest.mark.parametrize(("version", "side"), [(1, 56), (2, 29), (3, 15)])
@pytest.mark.parametrize("channels", [1, 3, 12])
def test_bottlefit_versions_send_their_published_latents(version, side, channels):
    block = BottleFit(512, BottleFitOptions(channels=channels, version=version)).eval()
    latent = block.encoder(torch.empty(X))
    assert latent.shape == (1, channels, side, side)
    assert block.decoder(latent).shape == (1, 512, 28, 28)
    assert len(block.encoder) == {1: 4, 2: 7, 3: 10}[version]


def test_bottlefit_for_densenets_is_the_published_table():
    block = BottleFit(256, BottleFitOptions(channels=3, decoder="densenet")).eval()
    assert _convs(block.decoder) == [
        (3, 512, 2, 1, 1),
        (512, 512, 2, 1, 1),
        (512, 256, 2, 1, 0),
        (256, 256, 2, 1, 0),
        (256, 256, 2, 1, 0),
    ]
    latent = block.encoder(torch.empty(X))
    assert latent.shape == (1, 3, 29, 29)
    assert block.decoder(latent).shape == (1, 256, 14, 14)


@pytest.mark.parametrize(
    ("depths", "layer", "shape", "stride"),
    [((3, 4, 6, 3), "layer1", (256, 56, 56), 4), ((3, 8, 36, 3), "layer2", (512, 28, 28), 8)],
)
def test_published_resnet_targets(resnet, depths, layer, shape, stride):
    trace = trace_network(resnet(depths), torch.empty(X))
    assert (trace.layers[layer].shape, trace.layers[layer].stride) == (shape, stride)
    assert trace.layers["layer3"].shape == (1024, 14, 14)
    assert trace.layers["layer4"].shape == (2048, 7, 7)


def test_published_densenet_target(densenet):
    trace = trace_network(densenet(), torch.empty(X))
    assert trace.layers["features.transition2"].shape == (256, 14, 14)
    assert trace.layers["features.transition3"].shape == (640, 7, 7)
    assert trace.layers["features.denseblock4"].shape == (1664, 7, 7)


@pytest.mark.parametrize("stride", [1, 2, 4, 8])
def test_changed_strides_end_at_the_target(stride):
    side = -(-97 // stride)
    entropic = EntropicStudent(16, EntropicOptions(latent_channels=4, stride=stride)).eval()
    assert entropic(torch.empty(1, 3, 97, 97))[0].shape == (1, 16, side, side)
    bottlefit = BottleFit(16, BottleFitOptions(channels=4, stride=stride)).eval()
    assert bottlefit(torch.empty(1, 3, 96, 96))[0].shape == (1, 16, 96 // stride, 96 // stride)


def test_wrong_options_are_named():
    with pytest.raises(BottleneckError, match="stride 3"):
        EntropicStudent(256, EntropicOptions(stride=3))
    with pytest.raises(BottleneckError, match="version 4"):
        BottleFit(512, BottleFitOptions(version=4))
    with pytest.raises(BottleneckError, match="beta"):
        entropic_stages(-1.0)


def test_recipes_are_the_published_ones():
    first, second = entropic_stages(0.08)
    assert (first.epochs, first.batch, first.optimiser, first.lr, first.beta) == (10, 64, "adam", 1e-3, 0.08)
    assert [first.rate_at(epoch / 10) for epoch in (4, 5, 7, 8)] == pytest.approx([1e-3, 1e-4, 1e-4, 1e-5])
    assert (second.optimiser, second.fixes_encoder, second.task.alpha, second.task.temperature) == ("sgd", True, 0.5, 1)
    first, second = bottlefit_stages()
    assert (first.beta, first.task, second.task.kind, second.fixes_encoder) == (0, None, "kd", True)
    assert [first.rate_at(epoch / 10) for epoch in (4, 5)] == pytest.approx([1e-3, 1e-4])


def test_eight_bits_cost_at_most_half_a_step_of_each_picture():
    with torch.device("cpu"):
        latent = torch.randn(4, 3, 5, 5) * torch.tensor([0.1, 1, 10, 0])[:, None, None, None]
        flat = latent.flatten(1)
        step = (flat.amax(1).clamp(min=0) - flat.amin(1).clamp(max=0)) / 255
        error = (quantise_8bit(latent) - latent).abs().flatten(1).amax(1)
        assert (error <= step * 1.01).all()
        assert len(quantise_8bit(latent)[1].unique()) <= 256


def test_folded_gdn_is_the_same_function():
    with torch.device("cpu"):
        layer = GDN1(5)
        layer.gamma.data += 0.1 * torch.rand(5, 5)
        x = torch.randn(2, 5, 4, 4)
        gamma, beta = layer.folded()
        wanted = x / (beta[:, None, None] + torch.einsum("ij,bjhw->bihw", gamma[:, :, 0, 0], x.abs()))
        assert torch.allclose(layer(x), wanted, rtol=1e-5)
        assert torch.equal(FoldedGDN1(layer)(x), layer(x))
        block = fold(nn.Sequential(nn.Conv2d(3, 5, 1), nn.Sequential(layer)))
        assert not any(isinstance(one, GDN1) for one in block.modules())
