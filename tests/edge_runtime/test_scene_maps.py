"""Maps to masks and boxes: against torch's interpolation, and by hand."""

import numpy as np
import pytest

from edge_runtime.scene_maps import read_boxes, read_mask


def test_a_mask_is_the_largest_of_bilinearly_enlarged_maps():
    torch = pytest.importorskip("torch")
    maps = np.random.default_rng(0).normal(size=(1, 4, 6, 5)).astype(np.float32)
    large = torch.nn.functional.interpolate(torch.from_numpy(maps), size=(24, 17), mode="bilinear")
    assert np.mean(read_mask(maps, (24, 17)) == large[0].argmax(0).numpy()) > 0.99  # ties round either way
    assert read_mask(maps[:, :, :1, :1], (3, 2)).tolist() == [[int(maps[0, :, 0, 0].argmax())] * 2] * 3


def test_a_box_lies_around_its_peak_and_smaller_neighbours_are_no_peaks():
    maps = np.full((1, 2 + 4, 4, 4), -9, np.float32)
    maps[0, 1, 2, 1], maps[0, 1, 2, 2], maps[0, 0, 0, 3] = 3.0, 2.0, 1.0
    maps[0, 2:] = 0.25
    boxes = read_boxes(maps, 64)
    assert boxes.kinds.tolist() == [2, 1]
    assert boxes.scores.tolist() == pytest.approx([1 / (1 + np.exp(-3)), 1 / (1 + np.exp(-1))])
    middle_x, middle_y = 1.5 / 4 * 64, 2.5 / 4 * 64
    assert boxes.corners[0].tolist() == pytest.approx([middle_x - 16, middle_y - 16, middle_x + 16, middle_y + 16])
    assert boxes.corners[1].tolist() == pytest.approx([40, 0, 64, 24])  # cut at the picture's edge
    assert len(read_boxes(maps, 64, most=1).kinds) == 1
    assert len(read_boxes(maps, 64, least=0.9).kinds) == 1
