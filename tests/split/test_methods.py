"""The registry: every method can be made, trained for a step, and turned into integers by its entry alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from edge_runtime.entropy import EntropyCodec
from edge_runtime.wire import TensorHead
from split.augment import Augmentation
from split.distill import TrainOptions, train
from split.inject import inject, trace_network
from split.latents import IntegerHead, IntegerTail, fit_grid, fit_tables, input_batches, integer_latents
from split.losses import TaskLoss
from split.methods import METHODS, MethodError, find_method, option_help, options_from

OPTIONS = Augmentation(32, "none")


@pytest.mark.parametrize("name", list(METHODS))
def test_a_method_trains_and_its_stream_decodes_to_what_the_tail_saw(name, tiny, pictures, tmp_path):
    method = find_method(name)
    options = replace(method.options(), epochs=(2, 1), batch=16)
    layer = "layer2" if name == "bottlefit" else "layer1"
    torch.manual_seed(1)
    trace = trace_network(tiny, torch.rand(1, 3, 32, 32))
    student, teacher = inject(trace, layer, lambda one: method.make(one, options), size=(32, 32))
    train(
        student,
        teacher,
        pictures,
        method.stages(options),
        TrainOptions(folder=tmp_path, augmentation=OPTIONS, device="cpu"),
    )
    (batch,) = list(input_batches(pictures, OPTIONS, batch=48))
    grid = fit_grid(student, [batch])
    head, tail = IntegerHead(student.bottleneck, grid), IntegerTail(student, grid)
    latents = integer_latents(head, [batch])
    codec = EntropyCodec(fit_tables(latents, student.bottleneck.stream))
    layers = codec.encode([latents[0]])
    assert len(layers) == max(1, len(student.bottleneck.stream.layers))
    (decoded,) = codec.decode([TensorHead("int8", latents[0].shape, latents[0].nbytes)], layers)
    assert np.array_equal(decoded, latents[0])
    if method.name != "bottlefit":  # its integers are fitted after training
        with torch.no_grad():
            assert torch.allclose(tail(head(batch)), student(batch).logits, atol=1e-3)


def test_options_come_from_words():
    found = options_from(
        find_method("slim"),
        {"beta": "0.01", "int8": "true", "epochs": "6,2", "activation": "prelu", "task": "balanced"},
    )
    assert (found.beta, found.int8, found.epochs, found.activation) == (0.01, True, (6, 2), "prelu")
    assert found.task == TaskLoss("balanced")
    assert options_from(find_method("progressive"), {"layers": "2,8"}).layers == (2, 8)
    with pytest.raises(MethodError, match="latent_channels"):
        options_from(find_method("slim"), {"betas": "1"})
    with pytest.raises(MethodError, match="beta"):
        options_from(find_method("slim"), {"beta": "much"})
    with pytest.raises(MethodError, match="bottlefit, entropic"):
        find_method("other")


@pytest.mark.parametrize("name", list(METHODS))
def test_every_option_is_described(name):
    texts = option_help(find_method(name))
    assert all(len(text.split(" [")[0]) > 8 for text in texts.values()), texts
