"""Cutting any module by layer name."""

import pytest
import torch
from torch import nn

from split.bottlefit import BottleFit, BottleFitOptions
from split.entropic_student import EntropicOptions, EntropicStudent
from split.inject import LayerError, NetworkError, inject, trace_network

X = torch.rand(2, 3, 32, 32)


def _entropic(layer):
    return EntropicStudent(layer.shape[0], EntropicOptions(latent_channels=2, stride=4))


def test_cut_layers_are_those_that_no_shortcut_passes(tiny):
    trace = trace_network(tiny, X)
    names = list(trace.layers)
    assert {"conv1", "maxpool", "layer1", "layer2", "layer3", "layer1.0"} <= set(names)
    assert "layer1.0.body" not in names  # the shortcut passes it
    assert "layer1.0.body.0" not in names
    assert not {"fc", "avgpool"} & set(names)  # no picture any more
    assert trace.layers["layer2"].stride == 8
    assert trace.layers["layer1"].shape == (8, 8, 8)


def test_tail_and_teacher_continue_exactly_as_the_network(tiny):
    trace = trace_network(tiny, X)
    student, teacher = inject(trace, "layer1", _entropic, size=(32, 32))
    student.eval()
    with torch.no_grad():
        logits, features, _ = teacher(X)
        tail_logits, later = student.tail(features[0])
        assert torch.equal(logits, tiny(X))
        assert torch.equal(tail_logits, logits)
    assert student.compared == ("layer1", "layer2", "layer3")
    assert all(torch.equal(a, b) for a, b in zip(later, features[1:], strict=True))


def test_student_shares_no_weight_with_teacher_or_network_and_drops_the_head(tiny):
    trace = trace_network(tiny, X)
    student, teacher = inject(trace, "layer1", _entropic, size=(32, 32))
    pointers = {p.data_ptr() for p in tiny.parameters()} | {p.data_ptr() for p in teacher.parameters()}
    assert not pointers & {p.data_ptr() for p in student.parameters()}
    assert not any("layer1" in name or "conv1" in name for name, _ in student.tail.named_parameters())
    assert not any(p.requires_grad for p in teacher.parameters())
    teacher.train()
    assert not any(m.training for m in teacher.modules())


def test_unknown_layer_error_names_layers_that_fit(tiny):
    trace = trace_network(tiny, X)
    with pytest.raises(LayerError, match=r"no such layer: 'layer9'.*layer2"):
        inject(trace, "layer9", _entropic, size=(32, 32))
    with pytest.raises(LayerError, match="cannot follow: 'fc'"):
        inject(trace, "fc", _entropic, size=(32, 32))


def test_layer_of_another_stride_error_names_those_with_the_right_one(tiny):
    trace = trace_network(tiny, X)
    with pytest.raises(LayerError, match=r"found 16 x 4 x 4 .* behind 'layer2'.*Layers that fit: maxpool, layer1"):
        inject(trace, "layer2", _entropic, size=(32, 32))


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (50, 64)])
def test_entropic_fits_odd_pictures(tiny, size):
    trace = trace_network(tiny, torch.rand(1, 3, *size))
    student, _ = inject(trace, "layer1", _entropic, size=size)
    assert student.eval()(torch.rand(2, 3, *size)).logits.shape == (2, 3)


def test_published_compared_layers_are_the_default_for_resnets(tiny):
    trace = trace_network(tiny, torch.rand(1, 3, 64, 64))
    student, _ = inject(
        trace, "layer2", lambda one: BottleFit(one.shape[0], BottleFitOptions(channels=3)), size=(64, 64)
    )
    assert student.compared == ("layer2", "layer3", "layer4")


def test_networks_without_pictures_or_with_branches_on_values_are_refused():
    with pytest.raises(NetworkError, match="network of pictures"):
        trace_network(nn.Linear(4, 2), torch.rand(1, 4))

    class Branches(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(NetworkError, match="traced"):
        trace_network(Branches(), X)
