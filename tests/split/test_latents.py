"""Integer latents, their tables, and the two halves with integers between them."""

import io

import numpy as np
import onnxruntime
import pytest
import torch

from edge_runtime.entropy import EntropyCodec, parse_tables
from edge_runtime.wire import TensorHead
from split.augment import Augmentation
from split.bottlefit import BottleFit, BottleFitOptions
from split.bottleneck import BottleneckError, StreamPlan
from split.entropic_student import EntropicOptions, EntropicStudent
from split.inject import inject, trace_network
from split.latents import HIGH, IntegerHead, IntegerTail, fit_grid, fit_tables, input_batches, integer_latents

OPTIONS = Augmentation(32, "none")


@pytest.fixture
def entropic(tiny):
    trace = trace_network(tiny, torch.rand(1, 3, 32, 32))
    torch.manual_seed(1)
    network, _ = inject(
        trace, "layer1", lambda one: EntropicStudent(one.shape[0], EntropicOptions(latent_channels=4)), size=(32, 32)
    )
    network.bottleneck.encoder[4].weight.data *= 30  # latents of several steps without training
    network.bottleneck.prior.quantiles.data[:, 0, 1] = torch.tensor([0.3, -0.2, 0.0, 1.7])
    network.bottleneck.fix_encoder = lambda: None
    return network.eval()


def test_integer_halves_compute_what_the_network_computes(entropic, pictures):
    (batch,) = list(input_batches(pictures, OPTIONS, batch=48))
    grid = fit_grid(entropic, ())
    assert grid.scale == (1.0,) * 4
    head, tail = IntegerHead(entropic.bottleneck, grid), IntegerTail(entropic, grid)
    with torch.no_grad():
        latents = head(batch)
        assert latents.dtype == torch.int8
        assert len(latents.unique()) > 10
        assert torch.allclose(tail(latents), entropic(batch).logits, atol=1e-4)


def test_stream_of_real_bytes_decodes_to_the_same_latents_and_beats_raw(entropic, pictures):
    grid = fit_grid(entropic, ())
    head = IntegerHead(entropic.bottleneck, grid)
    latents = integer_latents(head, input_batches(pictures, OPTIONS))
    assert len(latents) == 48
    tables = fit_tables(latents[:40], StreamPlan((1, 4)))
    codec = EntropyCodec(parse_tables(tables.data))
    for latent in latents[40:]:
        layers = codec.encode([latent])
        assert len(layers) == 2
        assert sum(map(len, layers)) < latent.size
        (decoded,) = codec.decode([TensorHead("int8", latent.shape, latent.nbytes)], layers)
        assert np.array_equal(decoded, latent)


@pytest.mark.parametrize(("bits", "largest"), [(8, HIGH), (4, 7)])
def test_bottlefit_grid_reaches_the_largest_value(tiny, pictures, bits, largest):
    trace = trace_network(tiny, torch.rand(1, 3, 32, 32))
    make = lambda one: BottleFit(one.shape[0], BottleFitOptions(channels=3, bits=bits))  # noqa: E731
    network, _ = inject(trace, "layer2", make, size=(32, 32))
    network.eval()
    grid = fit_grid(network, input_batches(pictures, OPTIONS))
    latents = integer_latents(IntegerHead(network.bottleneck, grid), input_batches(pictures, OPTIONS))
    assert max(int(np.abs(one.astype(int)).max()) for one in latents) == largest
    with pytest.raises(BottleneckError, match="calibration"):
        fit_grid(network, ())


def test_exported_head_ends_in_the_same_integers(entropic, pictures):
    (batch,) = list(input_batches(pictures, OPTIONS, batch=48))
    head = IntegerHead(entropic.bottleneck, fit_grid(entropic, ()))
    file = io.BytesIO()
    torch.onnx.export(
        head, (batch[:1],), file, input_names=["x"], output_names=["latent"], opset_version=18, dynamo=False
    )
    session = onnxruntime.InferenceSession(file.getvalue())
    (output,) = session.get_outputs()
    assert output.type == "tensor(int8)"
    different = 0
    for one in batch[:8]:
        (found,) = session.run(None, {"x": one[None].numpy()})
        with torch.no_grad():
            different += int((head(one[None]).numpy() != found).sum())
    assert different <= 2  # float sums differ between engines; a value on the edge of a step may flip
