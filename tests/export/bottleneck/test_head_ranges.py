"""A head that was trained for int8 is exported on the ranges that it was trained with."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from export.errors import ConversionError
from export.head_graph import IMAGE, LATENT, fold_head, head_to_onnx, trained_ranges
from split.inject import CutLayer
from split.latents import IntegerHead
from split.slim import Slim
from split.slim_stages import SlimOptions


def _head(*, int8):
    torch.manual_seed(4)
    slim = Slim(CutLayer("layer", (8, 8, 8), 4), SlimOptions(width=8, latent_channels=4))
    if int8:
        slim.quantise_encoder()
    slim.train()
    for _ in range(20):
        slim.encoder(torch.randn(8, 3, 32, 32))
    return IntegerHead(slim.eval(), slim.grid())


def _scales(model):
    """Of every activation's QuantizeLinear, in order."""
    graph = onnx.ModelProto.FromString(model).graph
    values = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    return [float(values[node.input[1]]) for node in graph.node if node.op_type == "QuantizeLinear"]


def test_trained_ranges_are_those_of_the_graph_whatever_calibrates():
    head = _head(int8=True)
    ranges = trained_ranges(head)
    assert len(ranges) == 4
    pictures = [[np.full((1, 3, 32, 32), 0.1, np.float32)]]  # would choose far narrower ranges
    model = head_to_onnx(fold_head(head), torch.zeros(1, 3, 32, 32), pictures, ranges)
    assert _scales(model)[:4] == pytest.approx([(high - low) / 255 for low, high in ranges], rel=1e-5)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    x = torch.randn(16, 3, 32, 32)
    found = np.concatenate([session.run([LATENT], {IMAGE: one[None].numpy()})[0] for one in x]).astype(int)
    wanted = head(x).numpy().astype(int)
    assert np.abs(found - wanted).max() <= 1
    assert (found != wanted).mean() < 0.05


def test_a_head_without_trained_ranges_has_none_and_other_numbers_are_refused():
    head = _head(int8=False)
    assert trained_ranges(head) == ()
    with pytest.raises(ConversionError, match="found 1 ranges for 4 tensors"):
        head_to_onnx(fold_head(head), torch.zeros(1, 3, 32, 32), [[np.zeros((1, 3, 32, 32), np.float32)]], [(0.0, 1.0)])
