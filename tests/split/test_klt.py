"""The transform that needs no training: what it keeps, what it leaves out, and that training starts from it."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from edge_runtime.entropy import EntropyCodec
from split.augment import Augmentation
from split.bottleneck import BottleneckError
from split.distill import TrainOptions, fit, run_identity, train
from split.estimate import estimate
from split.inject import find_layer, inject, trace_network
from split.latents import IntegerHead, IntegerTail, fit_grid, fit_tables, input_batches, integer_latents
from split.methods import find_method

VIEW = Augmentation(32, "none")
METHOD = find_method("klt")


def cut(network, layer="layer1", size=32, **settings):
    options = replace(METHOD.options(), epochs=(0, 0), batch=16, **settings)
    trace = trace_network(network, torch.rand(1, 3, size, size))
    front = METHOD.front(options, layer)
    pair = inject(trace, layer, lambda at: METHOD.make(at, options), size=(size, size), front=front)
    return *pair, METHOD.stages(options)


def sent(student, batch):
    """Bytes of each picture's integers, and the logits behind them."""
    student.eval()
    grid = fit_grid(student, ())
    latents = integer_latents(IntegerHead(student.bottleneck, grid), [batch])
    codec = EntropyCodec(fit_tables(latents))
    with torch.no_grad():
        logits = IntegerTail(student, grid)(torch.from_numpy(np.concatenate(latents)))
    return [sum(map(len, codec.encode([one]))) for one in latents], logits


@pytest.mark.parametrize(("shrink", "size"), [(1, 32), (2, 32), (2, 36), (4, 44)])
def test_a_fine_step_gives_the_layer_back(shrink, size, tiny, pictures):
    """9 and 11 places a side are no multiple of a block's."""
    student, teacher, _ = cut(tiny, shrink=shrink, size=size, step=0.4)
    view = replace(VIEW, size=size)
    data = replace(pictures, images=nn.functional.interpolate(pictures.images, (size, size)))
    fit(student, data, view)
    (batch,) = input_batches(data, view, batch=48)
    with torch.no_grad():
        found, wanted = student.eval()(batch), teacher(batch)
    side = -(-(size // 4) // shrink)
    assert found.coded.latent.shape[2:] == (side, side)
    error = (found.features[0] - wanted.features[0]).square().mean() / wanted.features[0].var()
    assert error < 0.1
    assert torch.allclose(found.logits, wanted.logits, atol=0.2 * float(wanted.logits.std()))


def test_a_larger_step_sends_fewer_components_and_bytes_and_keeps_less(tiny, pictures):
    (batch,) = input_batches(pictures, VIEW, batch=48)
    found = []
    for step in (0.4, 1.0, 3.0):
        student, teacher, _ = cut(tiny, step=step)
        fit(student, pictures, VIEW)
        sizes, logits = sent(student, batch)
        error = float((logits - teacher(batch).logits).square().mean())
        found.append((student.bottleneck.prior.channels, np.mean(sizes), -error))
    assert found == sorted(found, reverse=True)
    assert len({one[0] for one in found}) == 3


def test_as_many_components_as_asked_for_are_those_that_matter_most(tiny, pictures):
    (batch,) = input_batches(pictures, VIEW, batch=48)
    errors = []
    for count in (1, 4, 16):
        student, teacher, _ = cut(tiny, latent_channels=count, step=0.4)
        fit(student, pictures, VIEW)
        assert student.bottleneck.encoder(batch).shape == (48, count, 4, 4)
        errors.append(float((sent(student, batch)[1] - teacher(batch).logits).square().mean()))
    assert errors == sorted(errors, reverse=True)


def test_any_first_layers_of_a_stream_decode_and_each_one_more_is_nearer(tiny, pictures):
    student, teacher, _ = cut(tiny, step=0.2, rates=4)
    fit(student, pictures, VIEW)
    stops = student.bottleneck.stream.layers
    assert len(stops) == 4
    assert stops[-1] == student.bottleneck.prior.channels
    (batch,) = input_batches(pictures, VIEW, batch=48)
    grid = fit_grid(student.eval(), ())
    latents = integer_latents(IntegerHead(student.bottleneck, grid), [batch])
    codec = EntropyCodec(fit_tables(latents, student.bottleneck.stream))
    pieces = [codec.encode([one]) for one in latents]
    sizes = [sum(len(one[number]) for one in pieces) for number in range(4)]
    assert 0.3 < sizes[0] / sum(sizes) < 0.7
    wanted, errors = teacher(batch).logits, []
    for stop in stops:
        seen = np.concatenate(latents)
        seen[:, stop:] = 0
        with torch.no_grad():
            errors.append(float((IntegerTail(student, grid)(torch.from_numpy(seen)) - wanted).square().mean()))
    assert errors[0] > 3 * errors[-1]
    assert all(later < 1.2 * before for before, later in pairwise(errors))  # the last ones add little
    few, _, _ = cut(tiny, step=0.5, rates=4, latent_channels=2)
    fit(few, pictures, VIEW)
    assert few.bottleneck.stream.layers == (1, 2)  # a channel for each at least


class Blind(nn.Module):
    """Its tail looks at one of two channels, the one that differs less between pictures."""

    def __init__(self):
        super().__init__()
        self.early = nn.Conv2d(3, 2, 1, bias=False)
        self.early.weight.data.copy_(torch.tensor([[3.0, 0, 0], [0, 1.0, 0]])[:, :, None, None])
        self.late = nn.Conv2d(2, 3, 1, bias=False)
        self.late.weight.data[:, 0] = 0
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, x):
        return self.pool(self.late(self.early(x)))


def test_what_the_tail_does_not_look_at_is_not_sent(pictures):
    torch.manual_seed(0)
    student, _, _ = cut(Blind().eval(), "early", shrink=1, step=1.0)
    fit(student, pictures, VIEW)
    weight = student.bottleneck.encoder[-1].conv.weight[0, :, 0, 0].abs()
    assert float(weight[1]) > 5 * float(3 * weight[0])  # red differs three times as much


def test_training_starts_from_the_fitted_pair_and_a_pair_without_training_is_one(tiny, pictures, tmp_path):
    fitted, _, none = cut(tiny, step=0.5)
    assert none == ()
    fit(fitted, pictures, VIEW)
    student, teacher, stages = cut(tiny, step=0.5)
    report = train(student, teacher, pictures, stages, TrainOptions(folder=tmp_path, augmentation=VIEW, device="cpu"))
    assert report.steps == ()
    assert all(torch.equal(one, fitted.state_dict()[name]) for name, one in student.state_dict().items())

    options = replace(METHOD.options(), epochs=(0, 2), batch=16, step=0.5)
    trace = trace_network(tiny, torch.rand(1, 3, 32, 32))
    student, teacher = inject(trace, "layer1", lambda at: METHOD.make(at, options), size=(32, 32), front="layer1")
    fit(student, pictures, VIEW)
    (batch,) = input_batches(pictures, VIEW, batch=48)
    assert torch.equal(student.eval()(batch).logits, fitted.eval()(batch).logits)  # a correction of nothing
    there = TrainOptions(folder=tmp_path / "more", augmentation=VIEW, device="cpu")
    assert train(student, teacher, pictures, METHOD.stages(options), there).steps == (6,)
    assert torch.equal(student.bottleneck.encoder(batch), fitted.bottleneck.encoder(batch))  # fixed where it was fitted
    assert not torch.equal(student(batch).logits, fitted(batch).logits)


def statistics(student):
    """Of each batch normalisation: where it is, and what its running mean is."""
    return {
        name: module.running_mean.clone() for name, module in student.named_modules() if hasattr(module, "running_mean")
    }


@pytest.mark.parametrize("method", ["klt", "slim"])
@pytest.mark.parametrize("fixed", [True, False])
def test_the_networks_own_normalisations_keep_their_statistics_where_asked(method, fixed, tiny, pictures, tmp_path):
    method = find_method(method)
    options = replace(method.options(), epochs=(2, 1), batch=16, decoder_width=8, fixed_norm=fixed)
    if method.name == "slim":
        options = replace(options, front="layer1", decoder_depth=0, width=4)
    front, trace = method.front(options, "layer1"), trace_network(tiny, torch.rand(1, 3, 32, 32))
    student, teacher = inject(trace, "layer1", lambda at: method.make(at, options), size=(32, 32), front=front)
    before = statistics(student)
    own = {one for one in before if one.startswith(("tail.", "bottleneck.encoder.0."))}
    there = TrainOptions(folder=tmp_path, augmentation=VIEW, device="cpu")
    train(student, teacher, pictures, method.stages(options), there)
    moved = {name for name, mean in statistics(student).items() if not torch.equal(mean, before.get(name, mean + 1))}
    assert own
    assert moved
    assert not moved & own if fixed else own <= moved


def test_each_picture_of_a_training_batch_keeps_a_drawn_prefix_of_the_stream_and_pays_for_it_alone(tiny, pictures):
    student, _, _ = cut(tiny, step=0.2, rates=3, price_step=2.0)
    fit(student, pictures, VIEW)
    block = student.bottleneck
    stops = block.stream.layers
    (batch,) = input_batches(pictures, VIEW, batch=48)
    latent = block.encoder(batch).detach().abs() + 1  # nothing rounds to zero
    torch.manual_seed(0)
    sent = student.train().bottleneck.code(latent)
    ends = [int((one != 0).amax((1, 2)).sum()) for one in sent.latent]
    assert all((one[:end] != 0).all() for one, end in zip(sent.latent, ends, strict=True))
    assert set(ends) == set(stops)
    torch.manual_seed(0)
    block.prices.fill_(1.0)
    assert float(block.code(latent).bits) < float(sent.bits)  # shorter ones pay more for a bit
    whole = student.eval().bottleneck.code(latent)
    assert (whole.latent != 0).all()
    alone, _, _ = cut(tiny, step=0.2)
    fit(alone, pictures, VIEW)
    assert (alone.train().bottleneck.code(latent).latent != 0).all()


def test_another_step_is_another_run(tiny, pictures, tmp_path):
    stages = cut(tiny)[2]
    options = TrainOptions(folder=tmp_path, augmentation=VIEW, device="cpu")
    of = [run_identity(cut(tiny, step=step)[:2], pictures, stages, options) for step in (0.5, 0.5, 0.6)]
    assert of[0] == of[1] != of[2]


def test_an_estimate_knows_the_seconds_before_training(tiny, pictures, tmp_path):
    student, teacher, stages = cut(tiny)
    found = estimate(student, teacher, pictures, stages, TrainOptions(folder=tmp_path, augmentation=VIEW, device="cpu"))
    assert found.seconds == ()
    assert found.fit_s > 0


def test_components_are_computed_in_full_precision_and_training_keeps_its_own(tiny, pictures):
    """With TF32 a GPU might leave another number of components than a CPU."""
    student, _, _ = cut(tiny)
    seen = set()
    hook = student.tail.register_forward_pre_hook(
        lambda *_: seen.add((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))
    )
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        fit(student, pictures, VIEW)
        hook.remove()
        assert seen == {("highest", False)}
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("high", True)
    finally:
        torch.set_float32_matmul_precision(before)


def test_what_makes_no_transform_is_named(tiny, pictures):
    options = METHOD.options()
    trace = trace_network(tiny, torch.rand(1, 3, 32, 32))
    with pytest.raises(BottleneckError, match=r"up to the cut, 'layer1', found 'none'.*Method\.front"):
        METHOD.make(find_layer(trace, "layer1"), options)
    for settings, message in (
        ({"step": 0.0}, "step above 0.*step 0"),
        ({"step": float("nan")}, "step nan"),
        ({"step": float("inf")}, "step inf"),
        ({"shrink": 3}, "shrink 3"),
        ({"rates": 0}, "1 to 16 rates of a stream, found 0"),
        ({"price_step": 0.0}, "a price_step above 0 .*found 0.0 and 0.25"),
        ({"whole": 1.5}, "a share of whole pictures from 0 to 1, found 3.0 and 1.5"),
        ({"pictures": 0}, "0 pictures"),
        ({"latent_channels": 33}, "found 8 x 2 x 2 values and 33 channels. Choose a smaller shrink"),
    ):
        with pytest.raises(BottleneckError, match=message):
            cut(tiny, **settings)
    with pytest.raises(BottleneckError, match="at most 2048 values"):
        cut(nn.Sequential(nn.Conv2d(3, 600, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval(), "0")
    student, _, _ = cut(tiny, step=1e-3)
    with pytest.raises(BottleneckError, match=r"a step of at least 0\.\d+, .*found 0\.001"):
        fit(student, pictures, VIEW)
    student, _, _ = cut(nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval(), "0")
    student.bottleneck.encoder[0].get_submodule("0").weight.data.zero_()
    with pytest.raises(BottleneckError, match="differs between pictures"):
        fit(student, pictures, VIEW)
    network = Blind().eval()
    network.late.weight.data.zero_()
    student, _, _ = cut(network, "early")
    with pytest.raises(BottleneckError, match="logits that depend on the layer's output"):
        fit(student, pictures, VIEW)
