"""The example of three tails: trained on scenes of one's own, written as artefacts, and asked with one frame."""

import re
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from edge_runtime.artefact import open_artefact
from export.pair_runner import PairRunner, picture_input
from export.task_tails import TaskTailError, head_integers, write_task_tail
from export.trained_manifest import TrainedPairOptions
from split.scenes import SceneOptions, compose_scenes

EXAMPLE = Path(__file__).parents[3] / "examples" / "three_tails.py"
TASKS = ("classes", "masks", "boxes")


@pytest.fixture(scope="module")
def scenes():
    return compose_scenes(32, SceneOptions(size=64, seed=4))


@pytest.fixture(scope="module")
def written(scenes, tmp_path_factory):
    """The folder that the example fills, and what it says."""
    folder = tmp_path_factory.mktemp("tails")
    arrays = {name: getattr(scenes, name).numpy() for name in ("masks", "boxes", "kinds", "labels")}
    np.savez(
        folder / "own.npz", images=scenes.images.permute(0, 2, 3, 1).numpy(), classes=np.array(scenes.classes), **arrays
    )
    with pytest.MonkeyPatch.context() as patch:
        said = []
        patch.setattr(sys, "argv", [str(EXAMPLE), str(folder), "--scenes", str(folder / "own.npz"), "--epochs", "1"])
        patch.setattr("builtins.print", lambda *text: said.append(" ".join(map(str, text))))
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    return folder, "\n".join(said)


def test_one_frame_is_answered_by_all_tails(written):
    _, said = written
    assert re.search(r"^\d+ B sent, answered by remote$", said, re.MULTILINE)
    assert [f"{task} alone: equal True" for task in TASKS] == said.splitlines()[-3:]


def test_all_tails_accept_the_same_bytes_of_one_head(written, scenes):
    folder, _ = written
    head = open_artefact(folder / "head")
    tails = [open_artefact(folder / name) for name in (*TASKS, "all")]
    picture = picture_input(head, scenes.images[1].permute(1, 2, 0).numpy())
    found = []
    for tail in tails:
        pair = PairRunner(head, tail)
        found.append((pair.frame(pair.latents(picture)), pair.outputs(pair.frame(pair.latents(picture)))))
        pair.close()
    assert len({frame for frame, _ in found}) == 1
    assert [one.shape for one in found[3][1]] == [(1, 6), (1, 7, 16, 16), (1, 10, 16, 16)]
    assert [one.manifest.outputs[0].semantic for one in tails] == ["logits", "masks", "boxes", "logits"]
    assert [tail.manifest.cut.accepts for tail in tails] == [(head.manifest.cut.cut_id,)] * 4
    integers = head_integers(head, scenes.images[:3])
    assert (integers.dtype, tuple(integers.shape)) == (torch.int8, (3, 8, 16, 16))


def test_what_cannot_be_written_is_named(written, scenes, tmp_path):
    folder, _ = written
    head = open_artefact(folder / "head")
    options = TrainedPairOptions(
        out=tmp_path / "tail", name="scenes", source_sha256="0" * 64, preprocessing=head.manifest.preprocessing
    )
    with pytest.raises(TaskTailError, match="fp32 or fp16"):
        write_task_tail(head, torch.nn.Identity(), ["classes"], scenes.images, replace(options, tail_precision="int8"))
    with pytest.raises(TaskTailError, match="1 different names"):
        write_task_tail(head, torch.nn.Identity(), ["a", "b"], scenes.images, options)
