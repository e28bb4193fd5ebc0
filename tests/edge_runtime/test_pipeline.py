"""Ranking the classes of an answer."""

import msgspec
import numpy as np
import pytest

from edge_runtime.manifest import Quantisation, TensorSpec
from edge_runtime.pipeline import rank


def test_the_highest_scores_come_first_with_their_names():
    top = rank([np.array([[1.0, 3.0, 2.0]], np.float32)], (), ("a", "b"), softmax=False, count=2)
    assert [(one.index, one.score, one.label) for one in top] == [(1, 3.0, "b"), (2, 2.0, None)]


def test_softmax_makes_probabilities_and_survives_large_logits():
    top = rank([np.array([[1000.0, 1000.0, -1000.0]], np.float32)], (), (), softmax=True)
    assert [one.score for one in top] == [0.5, 0.5, 0.0]


def test_stored_integers_become_real_numbers_where_their_scale_is_known():
    stored = [np.array([[10, 20]], np.uint8)]
    spec = TensorSpec(
        name="y", engine_name="y", dtype="uint8", shape=(1, 2), quantisation=Quantisation(scale=0.5, zero_point=10)
    )
    assert [one.score for one in rank(stored, (spec,), (), softmax=False)] == [5.0, 0.0]
    assert [one.score for one in rank(stored, (), (), softmax=True)] == [20.0, 10.0], "no scale: they stay integers"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("softmax", [False, True])
def test_what_is_no_number_is_never_published(value, softmax):
    top = rank([np.array([[value, 1.0, 2.0]], np.float32)], (), (), softmax=softmax)
    assert all(np.isfinite(one.score) for one in top)
    assert b"null" not in msgspec.json.encode([one.score for one in top])


@pytest.mark.parametrize("shape", [(1, 1), (1, 2, 2), (2, 3)])
def test_outputs_that_are_no_classes_are_not_ranked(shape):
    assert rank([np.zeros(shape, np.float32)], (), (), softmax=False) == ()
