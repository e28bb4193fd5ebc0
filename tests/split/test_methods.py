"""The registry: every method can be made, trained for a step, and turned into integers by its entry alone."""

import io
import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from edge_runtime.entropy import EntropyCodec
from edge_runtime.wire import TensorHead
from split.augment import Augmentation
from split.bottleneck import BottleneckError, Coded
from split.distill import TrainOptions, train
from split.gdn import GDN1
from split.inject import Features, StudentOutput, inject, trace_network
from split.latents import IntegerHead, IntegerTail, fit_grid, fit_tables, input_batches, integer_latents
from split.losses import TaskLoss, relative_feature_loss
from split.methods import METHODS, MethodError, find_method, option_help, options_from
from split.processes import TrainingError
from split.slim_stages import SlimOptions, slim_stages
from split.stage_loss import stage_loss

OPTIONS = Augmentation(32, "none")
ROOT = Path(__file__).parent.parent.parent
SLIM = ("slim", "progressive", "codebook", "positions")


@pytest.mark.parametrize("name", list(METHODS))
def test_a_method_trains_and_its_stream_decodes_to_what_the_tail_saw(name, tiny, pictures, tmp_path):
    method = find_method(name)
    options = replace(method.options(), epochs=(2, 1), batch=16)
    layer = "layer2" if name == "bottlefit" else "layer1"
    torch.manual_seed(1)
    trace = trace_network(tiny, torch.rand(1, 3, 32, 32))
    front = method.front(options, layer)
    student, teacher = inject(trace, layer, lambda one: method.make(one, options), size=(32, 32), front=front)
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
        {"beta": "0.01", "int8": "true", "epochs": "6,2", "activation": "prelu", "task": "balanced", "targets": "deep"},
    )
    assert (found.beta, found.int8, found.epochs, found.activation) == (0.01, True, (6, 2), "prelu")
    assert (found.task, found.targets) == (TaskLoss("balanced"), "deep")
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


def _tiny_pair(tiny, name, seed=1, **settings):
    method = find_method(name)
    small = {"width": 4, "decoder_width": 8} if name in SLIM else {}
    options = replace(method.options(), epochs=(3, 1), batch=16, **small, **settings)
    torch.manual_seed(seed)
    trace = trace_network(tiny, torch.rand(1, 3, 32, 32))
    front = method.front(options, "layer1")
    pair = inject(trace, "layer1", lambda one: method.make(one, options), size=(32, 32), front=front)
    return pair, method.stages(options)


class Killed(Exception):
    pass


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        *((name, {"int8": True, "saliency": True}) for name in SLIM),
        ("slim", {"front": "maxpool"}),
        ("klt", {}),
        ("bottlefit", {"front": "maxpool", "rounds": True}),
    ],
)
def test_a_killed_run_ends_like_an_uninterrupted_one(name, settings, tiny, pictures, tmp_path):
    def run(folder, seed=1, stop_at=0):
        (student, teacher), stages = _tiny_pair(tiny, name, seed, **settings)
        seen = []

        def on_step(_):
            seen.append(1)
            if len(seen) == stop_at:
                raise Killed

        options = TrainOptions(
            folder=folder, augmentation=Augmentation(32, "flip"), device="cpu", checkpoint_every_s=0, on_step=on_step
        )
        train(student, teacher, pictures, stages, options)
        return student.state_dict()

    whole = run(tmp_path / "whole")
    for stop_at in (2, 5, 3):
        with pytest.raises(Killed):
            run(tmp_path / "parts", stop_at=stop_at)
    parts = run(tmp_path / "parts", seed=9)
    assert all(torch.equal(parts[key], value) for key, value in whole.items())


def test_two_processes_hold_the_same_weights(tmp_path):
    code = """
        import os, sys, torch
        from pathlib import Path
        from torch import nn
        from split.augment import Augmentation
        from split.distill import TrainOptions, train
        from split.inject import inject, trace_network
        from split.methods import find_method
        from split.training_data import PictureSet
        torch.set_num_threads(1)
        images = torch.randint(0, 255, (24, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
        data = PictureSet(images, torch.arange(24) % 2, ("a", "b"))
        torch.manual_seed(1)
        net = nn.Sequential(nn.Conv2d(3, 4, 3, 4, 1), nn.ReLU(), nn.Conv2d(4, 8, 3, 2, 1), nn.Flatten(), nn.Linear(128, 2))
        method = find_method("progressive")
        options = method.options(epochs=(2, 1), batch=8, width=4, decoder_width=8, int8=True)
        folder = Path(sys.argv[1])
        for run in ("one", "two", "three", "three"):  # the last finds its own end
            pair = inject(trace_network(net, torch.rand(1, 3, 32, 32)), "1", lambda one: method.make(one, options), size=(32, 32))
            given = TrainOptions(folder=folder / run, augmentation=Augmentation(32, "flip"), device="cpu")
            train(*pair, data, method.stages(options), given)
        torch.save(dict(pair[0].named_parameters()), folder / f"rank{os.environ['RANK']}.pt")
    """
    script = tmp_path / "run.py"
    script.write_text(textwrap.dedent(code))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, str(tmp_path)], cwd=ROOT, env=environment, check=True, capture_output=True, timeout=200)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_larger_beta_spends_fewer_bytes(tiny, pictures, tmp_path):
    sizes = []
    for beta in (0.0, 0.3):
        (student, teacher), stages = _tiny_pair(tiny, "slim", beta=beta)
        first = replace(stages[0], epochs=20, lr=1e-2)
        train(
            student,
            teacher,
            pictures,
            [first],
            TrainOptions(folder=tmp_path / str(beta), augmentation=OPTIONS, device="cpu"),
        )
        head = IntegerHead(student.bottleneck, fit_grid(student, ()))
        latents = integer_latents(head, input_batches(pictures, OPTIONS))
        codec = EntropyCodec(fit_tables(latents))
        sizes.append(sum(len(layer) for one in latents for layer in codec.encode([one])))
    assert sizes[1] < 0.8 * sizes[0]


def test_every_prefix_of_a_progressive_stream_reaches_the_tail(tiny, pictures):
    (student, _), _ = _tiny_pair(tiny, "progressive")
    student.eval()
    student.bottleneck.encoder[-1].conv.weight.data *= 30
    grid = fit_grid(student, ())
    head, tail = IntegerHead(student.bottleneck, grid), IntegerTail(student, grid)
    latents = integer_latents(head, input_batches(pictures, OPTIONS))
    codec = EntropyCodec(fit_tables(latents, student.bottleneck.stream))
    layers = codec.encode([latents[0]])
    answers = set()
    for count, stop in enumerate(student.bottleneck.stream.layers, 1):
        (found,) = codec.decode([TensorHead("int8", latents[0].shape, latents[0].nbytes)], layers[:count])
        assert np.array_equal(found[:, :stop], latents[0][:, :stop])
        assert not found[:, stop:].any()
        with torch.no_grad():
            answers.add(tuple(tail(torch.from_numpy(found))[0].tolist()))
    assert len(answers) == 4


def test_a_gdn_head_trains_and_keeps_its_integers_when_it_is_folded(tiny, pictures, tmp_path):
    (student, teacher), stages = _tiny_pair(tiny, "slim", activation="gdn")
    train(student, teacher, pictures, stages, TrainOptions(folder=tmp_path, augmentation=OPTIONS, device="cpu"))
    norms = [one for one in student.bottleneck.encoder.modules() if isinstance(one, GDN1)]
    assert len(norms) == 3
    assert all(not torch.equal(one.gamma.detach(), GDN1(len(one.beta)).gamma.detach()) for one in norms)  # they learn
    student.eval().bottleneck.encoder[-1].conv.weight.data *= 30
    (batch,) = input_batches(pictures, OPTIONS, batch=48)
    head = IntegerHead(student.bottleneck, fit_grid(student, ()))
    with torch.no_grad():
        wanted = torch.clamp(torch.round(student.bottleneck.encoder(batch)), -128, 127).to(torch.int8)
        found = head(batch)
    assert len(torch.unique(wanted)) > 5
    assert (found != wanted).float().mean() < 0.01
    with pytest.raises(BottleneckError, match="has no int8 form"):
        _tiny_pair(tiny, "slim", activation="gdn", int8=True)


def test_targets_say_whose_feature_errors_count():
    torch.manual_seed(0)
    mine, theirs = ([torch.rand(2, 3, 4, 4), torch.rand(2, 5, 2, 2), torch.rand(2, 6, 1, 1)] for _ in range(2))
    logits, zero, labels = torch.rand(2, 3), torch.zeros(()), torch.tensor([0, 1])
    output = StudentOutput(logits, tuple(mine), Coded(mine[0], zero, zero))
    wanted = Features(logits, tuple(theirs), saliency=torch.rand(2, 1, 4, 4))
    found = {}
    for targets in ("all", "cut", "deep"):
        (stage,) = slim_stages(SlimOptions(targets=targets, saliency=True, epochs=(1, 0)))
        found[targets] = float(stage_loss(stage, output, wanted, labels)[1]["features"])
    each = [float(relative_feature_loss([s], [t], wanted.saliency)) for s, t in zip(mine, theirs, strict=True)]
    assert found == pytest.approx({"all": sum(each) / 3, "cut": each[0], "deep": (each[1] + each[2]) / 2})
    assert len(set(each)) == 3


def test_deep_targets_want_a_layer_behind_the_cut(tiny, pictures, tmp_path):
    method = find_method("slim")
    options = method.options(targets="deep", batch=16)
    trace = trace_network(tiny, torch.rand(1, 3, 32, 32))
    pair = inject(trace, "layer1", lambda one: method.make(one, options), size=(32, 32), compared=())
    with pytest.raises(TrainingError, match="behind the cut at 'layer1' for deep targets"):
        train(*pair, pictures, method.stages(options), TrainOptions(folder=tmp_path, augmentation=OPTIONS))


@pytest.mark.parametrize("name", SLIM)
def test_an_int8_trained_head_exports_and_gives_the_same_integers(name, tiny, pictures):
    (student, _), _ = _tiny_pair(tiny, name)
    (batch,) = input_batches(pictures, OPTIONS, batch=48)
    if hasattr(student.bottleneck, "prior"):
        student.bottleneck.encoder[-1].conv.weight.data *= 30
    student.train()
    student.bottleneck.quantise_encoder()
    student.bottleneck.encoder(batch)  # ranges
    student.eval()
    head = IntegerHead(student.bottleneck, fit_grid(student, ()))
    file = io.BytesIO()
    torch.onnx.export(
        head, (batch[:1],), file, input_names=["x"], output_names=["latent"], opset_version=18, dynamo=False
    )
    session = onnxruntime.InferenceSession(file.getvalue())
    found = np.concatenate([session.run(None, {"x": one[None].numpy()})[0] for one in batch])
    with torch.no_grad():
        wanted = head(batch).numpy()
    assert len(np.unique(wanted)) > 5
    assert (found != wanted).mean() < 0.01
