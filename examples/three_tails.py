"""Three tails behind one head: train head and tails together on scenes, write artefacts, send one frame, read three answers.

python examples/three_tails.py FOLDER [--scenes FILE.npz] [--epochs 4]

The file holds `images` uint8 (n, height, width, 3), `masks` uint8 (n, height, width) with 0 for background, `boxes` float (n, objects, 4)
with left, top, right, bottom in pixels, `kinds` (n, objects) with class ids from 1 and 0 for no object, and `labels` (n,) from 0.
Without it scenes are drawn. The network is a small new one: put a trained one in its place.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

import headtail
from edge_runtime.artefact import Artefact
from edge_runtime.manifest import Preprocessing
from edge_runtime.scene_maps import read_boxes, read_mask
from export.modules import from_model
from export.pair_runner import PairRunner, picture_input
from export.source import ModelSource
from export.task_tails import head_integers, write_head, write_task_tail
from export.trained_manifest import TrainedPairOptions
from export.trained_pair import augmentation_of
from split.inject import inject, trace_network
from split.latents import fit_grid
from split.methods import find_method
from split.scene_data import open_scenes
from split.scene_scores import score_tail
from split.scene_tails import TASKS, CodedTrunk, LatentTrunk, SceneTail, TaskTails, make_head
from split.scene_training import RateOptions, TailOptions, train_coded, train_tail
from split.scenes import SceneOptions, SceneSet, compose_scenes

SIDE = 64
PREPROCESSING = Preprocessing(resize_short=SIDE, crop=(SIDE, SIDE), mean=(127.5,) * 3, std=(127.5,) * 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="gets head, one folder for each tail, and all tails in one")
    parser.add_argument("--scenes", type=Path)
    parser.add_argument("--epochs", type=int, default=4)
    given = parser.parse_args()
    scenes = open_scenes(given.scenes) if given.scenes else compose_scenes(128, SceneOptions(size=SIDE))
    head = train(scenes, given.folder, given.epochs)
    ask(head, given.folder, scenes)


def train(scenes: SceneSet, out: Path, epochs: int) -> Artefact:
    """Head and tails together, then each tail alone on the integers of the finished head; returns the head."""
    torch.manual_seed(0)
    network = small_network(len(scenes.classes))
    options = TrainedPairOptions(
        out=out,
        name="scenes",
        source_sha256=from_model(ModelSource(module=network, example=(torch.zeros(1, 3, SIDE, SIDE),))).sha256,
        preprocessing=PREPROCESSING,
    )
    view = augmentation_of(PREPROCESSING)
    method = find_method("slim")
    form = method.options(latent_channels=8, decoder_width=32)
    trace = trace_network(network, torch.zeros(1, 3, SIDE, SIDE))
    student, teacher = inject(trace, "2", lambda layer: method.make(layer, form), size=(SIDE, SIDE))
    trunk = CodedTrunk(student, view)
    heads = {task: make_head(trunk, scenes.images[:1], task, len(scenes.classes), width=32) for task in TASKS}
    training = TailOptions(epochs=epochs, batch=16)
    train_coded(teacher, trunk, heads, (scenes.images, scenes), (training, RateOptions(beta=1e-4)))

    head = write_head(student, scenes.pictures(), options)
    integers = head_integers(head, scenes.images)
    tails = {task: SceneTail(LatentTrunk(student, fit_grid(student, ())), heads[task]) for task in TASKS}
    for task, tail in tails.items():
        train_tail(tail, integers, scenes, training)
        print(f"{task}: {score_tail(tail, integers, scenes):.3f} on the training scenes")
        write_task_tail(head, tail, [task], scenes.images, replace(options, out=out / task))
    write_task_tail(head, TaskTails(tails), TASKS, scenes.images, replace(options, out=out / "all"))
    return head


def small_network(classes: int) -> nn.Sequential:
    """Strides 2, 4, 8; cut behind the layer "2", of stride 4."""

    def layer(inputs: int, outputs: int, stride: int) -> nn.Sequential:
        conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())

    last = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))
    return nn.Sequential(layer(3, 16, 2), layer(16, 32, 2), layer(32, 32, 1), layer(32, 64, 2), *last)


def ask(head: Artefact, out: Path, scenes: SceneSet) -> None:
    """One frame for all tails through a broker, and the same integers through each tail alone."""
    picture = scenes.images[0].permute(1, 2, 0).numpy()
    with (
        headtail.start_broker() as broker,
        headtail.serve_tail(broker.url, out / "all"),
        headtail.Offloader(broker.url, "camera", head=head) as device,
    ):
        device.wait_connected()
        answer = device.infer(picture_input(head, picture), deadline_ms=5000)
    logits, maps, heat = answer.outputs
    mask, boxes = read_mask(maps, picture.shape[:2]), read_boxes(heat, picture.shape[0])
    print(f"{answer.bytes_sent} B sent, answered by {answer.source}")
    print(
        f"class {scenes.classes[int(logits.argmax())]}; {np.count_nonzero(mask)} pixels of objects; {len(boxes.kinds)} boxes"
    )
    for task, together in zip(TASKS, answer.outputs, strict=True):
        pair = PairRunner(head, headtail.load(out / task))
        alone = pair.outputs(pair.frame(pair.latents(picture_input(head, picture))))[0]
        print(f"{task} alone: equal {np.allclose(alone, together, atol=1e-4)}")
        pair.close()


if __name__ == "__main__":
    main()
