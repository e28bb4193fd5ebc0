"""Scenes from a file: what was written, or an error that says what is wrong."""

import numpy as np
import pytest
import torch

from split.scene_data import open_scenes
from split.scenes import SceneError, SceneOptions, compose_scenes


@pytest.fixture
def arrays():
    scenes = compose_scenes(6, SceneOptions(size=32, objects=2))
    images = scenes.images.permute(0, 2, 3, 1)
    tensors = {
        "images": images,
        "masks": scenes.masks,
        "boxes": scenes.boxes,
        "kinds": scenes.kinds,
        "labels": scenes.labels,
    }
    return {name: one.numpy().copy() for name, one in tensors.items()}


def write(folder, arrays):
    np.savez(folder / "scenes.npz", **arrays)
    return folder / "scenes.npz"


def test_scenes_are_read_as_they_were_written(arrays, tmp_path):
    names = np.array(["a", "b", "c", "d", "e", "f"])
    found = open_scenes(write(tmp_path, {**arrays, "classes": names}))
    assert found.classes == tuple(names.tolist())
    assert torch.equal(found.images.permute(0, 2, 3, 1), torch.from_numpy(arrays["images"]))
    assert all(
        torch.equal(getattr(found, name), torch.from_numpy(arrays[name]))
        for name in ("masks", "boxes", "kinds", "labels")
    )
    assert len(found) == 6


def test_what_is_wrong_is_named(arrays, tmp_path):
    def spoilt(**changed):
        return write(tmp_path, {name: one for name, one in {**arrays, **changed}.items() if one is not None})

    with pytest.raises(SceneError, match="No such file"):
        open_scenes(tmp_path / "none.npz")
    with pytest.raises(SceneError, match="none named kinds"):
        open_scenes(spoilt(kinds=None))
    with pytest.raises(SceneError, match=r"masks \(6, 32, 31\)"):
        open_scenes(spoilt(masks=arrays["masks"][:, :, 1:]))
    with pytest.raises(SceneError, match="float32"):
        open_scenes(spoilt(images=arrays["images"].astype(np.float32)))
    with pytest.raises(SceneError, match="class ids of 0 to 1 in labels"):
        open_scenes(
            spoilt(
                labels=arrays["labels"] + 2,
                masks=arrays["masks"] * 0,
                kinds=arrays["kinds"] * 0,
                classes=np.array(["a", "b"]),
            )
        )
    with pytest.raises(SceneError, match="left before right"):
        open_scenes(spoilt(boxes=arrays["boxes"][..., [2, 1, 0, 3]]))
