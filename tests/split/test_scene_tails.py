"""Three tails behind one frozen head: they learn, the head's bytes and the stream's stay the same."""

import hashlib

import pytest
import torch

from split.augment import Augmentation
from split.inject import inject, trace_network
from split.latents import IntegerHead, fit_grid, fit_tables, input_batches, integer_latents
from split.methods import find_method
from split.scene_metrics import mean_average_precision
from split.scene_scores import matches_of, score_tail
from split.scene_tails import TASKS, CodedTrunk, LatentTrunk, PictureTrunk, SceneTail, make_head
from split.scene_training import RateOptions, TailOptions, centre_targets, train_coded, train_tail
from split.scenes import SceneOptions, compose_scenes

VIEW = Augmentation(32, "none")
OPTIONS = TailOptions(epochs=25, batch=16, lr=1e-2)


@pytest.fixture(scope="module")
def scenes():
    return compose_scenes(48, SceneOptions(size=32, objects=2, smallest=0.4, largest=0.7))


@pytest.fixture
def pair(tiny):
    torch.manual_seed(2)
    method = find_method("slim")
    options = method.options(width=8, decoder_width=16, latent_channels=8)
    student, teacher = inject(
        trace_network(tiny, torch.rand(1, 3, 32, 32)), "layer1", lambda one: method.make(one, options), size=(32, 32)
    )
    student.bottleneck.encoder[-1].conv.weight.data *= 30  # latents of several steps without training
    return student, teacher


def _digest(head, latents):
    parts = [one.numpy().tobytes() for one in head.state_dict().values() if one.numel()] + [
        one.tobytes() for one in latents
    ]
    tables = fit_tables(latents).data
    return hashlib.sha256(b"".join([*parts, tables])).hexdigest()


def test_three_tails_learn_from_the_same_bytes(pair, scenes):
    student, _ = pair
    student.eval()
    grid = fit_grid(student, ())
    head = IntegerHead(student.bottleneck, grid)
    latents = integer_latents(head, input_batches(scenes.pictures(), VIEW))
    inputs = torch.cat([torch.from_numpy(one) for one in latents])
    digests = set()
    for task in TASKS:
        trunk = LatentTrunk(student, grid)
        torch.manual_seed(1)
        tail = SceneTail(trunk, make_head(trunk, inputs[:1], task, len(scenes.classes), width=16))
        before = score_tail(tail, inputs, scenes)
        train_tail(tail, inputs, scenes, OPTIONS)
        assert score_tail(tail, inputs, scenes) > before
        again = IntegerHead(student.bottleneck, grid)
        digests.add(_digest(again, integer_latents(again, input_batches(scenes.pictures(), VIEW))))
    assert digests == {_digest(head, latents)}


def test_a_tail_without_bottleneck_learns_from_pictures(pair, scenes):
    _, teacher = pair
    trunk = PictureTrunk(teacher, VIEW)
    tail = SceneTail(trunk, make_head(trunk, scenes.images[:1], "masks", len(scenes.classes), width=16))
    before = score_tail(tail, scenes.images, scenes)
    train_tail(tail, scenes.images, scenes, OPTIONS)
    assert score_tail(tail, scenes.images, scenes) > before
    assert not any(one.requires_grad for one in teacher.parameters())


def test_boxes_read_from_perfect_outputs_are_the_true_ones():
    scenes = compose_scenes(12, SceneOptions(size=64, objects=3))
    classes = len(scenes.classes)
    heat, place, sides = centre_targets(scenes.boxes / 64, scenes.kinds, classes, (16, 16))
    outputs = torch.zeros(12, classes + 4, 256)
    outputs[:, :classes] = torch.logit(heat.flatten(2), 1e-4)
    outputs[:, classes:].scatter_(2, place[:, None].expand(-1, 4, -1), sides)
    matches = matches_of(outputs.view(12, classes + 4, 16, 16), scenes)
    assert mean_average_precision(matches) > 0.95  # two centres in one place would be one box


def test_a_bottleneck_learns_what_three_tails_need_and_is_fixed_then(pair, scenes):
    student, teacher = pair
    first = student.bottleneck.encoder[1].conv.weight.clone()
    trunk = CodedTrunk(student, VIEW)
    heads = {task: make_head(trunk, scenes.images[:1], task, len(scenes.classes), width=16) for task in TASKS}
    options = TailOptions(epochs=10, batch=16, lr=5e-3)
    bits = [float(trunk.coded(scenes.images)[1].detach())]
    before = {task: score_tail(SceneTail(trunk, head), scenes.images, scenes) for task, head in heads.items()}
    train_coded(teacher, trunk, heads, (scenes.images, scenes), (options, RateOptions(beta=3e-2)))
    after = {task: score_tail(SceneTail(trunk, head), scenes.images, scenes) for task, head in heads.items()}
    bits.append(float(trunk.coded(scenes.images)[1].detach()))
    assert all(after[task] > before[task] for task in TASKS)
    assert bits[1] < bits[0]
    assert not torch.equal(first, student.bottleneck.encoder[1].conv.weight)
    assert student.bottleneck.encoder_fixed
    assert student.bottleneck.encoder[0].quantises


def test_mirrored_scenes_follow_the_scenes(scenes):
    both = scenes.with_mirrored()
    assert len(both) == 2 * len(scenes)
    assert torch.equal(both.images[len(scenes) :], scenes.mirrored().images)
    assert torch.equal(both.boxes[: len(scenes)], scenes.boxes)
