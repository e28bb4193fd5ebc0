"""Scenes: what they say of themselves is what the pixels show; metrics against cases computed by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from split.scene_metrics import Boxes, box_overlaps, count_pixels, match_boxes, mean_average_precision, mean_iou
from split.scenes import SHAPES, SceneError, SceneOptions, compose_scenes
from split.training_data import PictureSet


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), photos=st.booleans())
def test_boxes_masks_and_labels_agree(seed, photos):
    rng = np.random.default_rng(seed)
    source = (
        PictureSet.of_arrays(rng.integers(0, 256, (6, 3, 40, 40), np.uint8), [0, 1, 2, 0, 1, 2]) if photos else None
    )
    scenes = compose_scenes(6, SceneOptions(size=48, seed=seed), source)
    assert len(scenes.classes) == (3 if photos else len(SHAPES))
    for mask, boxes, kinds, label in zip(scenes.masks, scenes.boxes, scenes.kinds, scenes.labels, strict=True):
        assert set(mask.unique().tolist()) - {0} == set(kinds[kinds > 0].tolist())
        outside = torch.ones_like(mask, dtype=torch.bool)
        for box, kind in zip(boxes, kinds, strict=True):
            if kind:
                left, top, right, bottom = box.int().tolist()
                inside = mask[top:bottom, left:right] == kind
                assert inside[0].any()
                assert inside[-1].any()
                assert inside[:, 0].any()
                assert inside[:, -1].any()
                outside[top:bottom, left:right] = False
        assert not mask[outside].any()
        assert int(label) + 1 in kinds.tolist()


def test_equal_seeds_give_equal_scenes_and_mirrors_are_their_own_inverse():
    first, again = (compose_scenes(4, SceneOptions(size=32, seed=3)) for _ in range(2))
    other = compose_scenes(4, SceneOptions(size=32, seed=4))
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.boxes, again.boxes)
    assert not torch.equal(first.images, other.images)
    back = first.mirrored().mirrored()
    assert all(
        torch.equal(a, b)
        for a, b in ((first.images, back.images), (first.masks, back.masks), (first.boxes, back.boxes))
    )
    left, _, right, _ = first.mirrored().boxes[0, 0].int().tolist()
    columns = torch.nonzero((first.mirrored().masks[0] == first.kinds[0, 0]).any(0))[:, 0]
    assert left <= int(columns.max()) < right or int((first.kinds[0] > 0).sum()) > 1
    with pytest.raises(SceneError, match="16 pixels"):
        compose_scenes(1, SceneOptions(size=8))


def test_mean_iou_by_hand():
    wanted = np.array([[0, 0, 1], [1, 2, 2]])
    found = np.array([[0, 1, 1], [1, 2, 0]])
    # class 0: 1 of 3; class 1: 2 of 3; class 2: 1 of 2; class 3 does not occur
    counts = count_pixels(found, wanted, 4)
    assert counts.shape == (2, 4, 4)
    assert mean_iou(counts) == pytest.approx((1 / 3 + 2 / 3 + 1 / 2) / 3)
    assert mean_iou(count_pixels(wanted, wanted, 3)) == 1.0
    background = count_pixels(np.zeros_like(wanted), wanted, 3)  # 2 of 6 pixels are it, the others are never found
    assert mean_iou(background) == pytest.approx((2 / 6 + 0 + 0) / 3)
    assert mean_iou(counts, np.array([0.0, 2.0])) == mean_iou(counts[1:])


def test_overlap_by_hand():
    a = np.array([[0, 0, 2, 2], [0, 0, 1, 1]])
    assert box_overlaps(a, np.array([[1, 0, 3, 2]])).tolist() == [[pytest.approx(1 / 3)], [0.0]]


def test_average_precision_by_hand():
    true = [
        Boxes(np.array([[0, 0, 4, 4], [6, 6, 8, 8]]), np.array([1, 1])),
        Boxes(np.array([[0, 0, 4, 4]]), np.array([1])),
    ]
    found = [
        # right; the same once more, which is wrong; a miss
        Boxes(np.array([[0, 0, 4, 4], [0, 0, 4, 3], [5, 0, 8, 2]]), np.array([1, 1, 1]), np.array([0.9, 0.8, 0.3])),
        Boxes(np.array([[0, 0, 4, 3]]), np.array([1]), np.array([0.7])),  # right: 3/4
    ]
    # by score: right (1/1), wrong, right (2/3), wrong; recall 1/3 at precision 1, 2/3 at 2/3, the third box is never found
    matches = match_boxes(found, true, 2)
    assert matches.hits.tolist() == [True, False, False, True]
    assert mean_average_precision(matches) == pytest.approx(1 / 3 * 1 + 1 / 3 * 2 / 3)
    perfect = [Boxes(one.corners, one.kinds, np.ones(len(one.kinds))) for one in true]
    assert mean_average_precision(match_boxes(perfect, true, 1)) == 1.0
    nothing = [Boxes(np.zeros((0, 4)), np.zeros(0, int), np.zeros(0)) for _ in true]
    assert mean_average_precision(match_boxes(nothing, true, 1)) == 0.0
    other = [Boxes(one.corners, one.kinds + 1, one.scores) for one in perfect]
    assert mean_average_precision(match_boxes(other, true, 2)) == 0.0  # of another class


def test_a_picture_that_weighs_two_counts_as_one_that_is_there_twice():
    rng = np.random.default_rng(0)
    pictures = []
    for _ in range(6):
        corners = np.concatenate([low := rng.integers(0, 8, (4, 2)), low + rng.integers(2, 6, (4, 2))], 1)
        found = Boxes(corners + rng.integers(-1, 2, (4, 4)), rng.integers(1, 4, 4), rng.random(4))
        pictures.append((found, Boxes(corners, rng.integers(1, 4, 4))))
    often = [0, 1, 1, 3, 3, 3]
    weights = np.bincount(often, minlength=6).astype(float)
    whole = match_boxes(*zip(*pictures, strict=True), 3)
    drawn = match_boxes(*zip(*(pictures[one] for one in often), strict=True), 3)
    assert 0 < mean_average_precision(drawn) < 1
    assert mean_average_precision(whole, weights) == pytest.approx(mean_average_precision(drawn), abs=0.02)
