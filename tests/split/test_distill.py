"""The training loop: it learns, and a run that was killed ends where an uninterrupted one does."""

import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from split.augment import Augmentation
from split.bottlefit import BottleFitOptions, QuantisedBottleFit, bottlefit_stages
from split.checkpoint import CHECKPOINT, METRICS, CheckpointError, MetricsFile, make_folder, replace_file
from split.distill import TrainingError, TrainOptions, train
from split.entropic_student import EntropicOptions, EntropicStudent, entropic_stages
from split.estimate import estimate
from split.inject import inject, trace_network
from split.losses import TaskLoss, task_loss

ROOT = Path(__file__).parent.parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "OMP_NUM_THREADS": "1"}
AUGMENTATION = Augmentation(32, "crop", padding=2)
STAGES = entropic_stages(0.05, epochs=(2, 2), batches=(16, 12))


class Killed(Exception):
    pass


def _pair(tiny, seed=3):
    trace = trace_network(tiny, torch.rand(1, 3, 32, 32))
    torch.manual_seed(seed)
    make = lambda layer: EntropicStudent(layer.shape[0], EntropicOptions(latent_channels=2))  # noqa: E731
    return inject(trace, "layer1", make, size=(32, 32))


def _options(folder, **more):
    return TrainOptions(folder=folder, augmentation=AUGMENTATION, device="cpu", log_every=1, **more)


def _killed_after(steps):
    left = [steps]

    def on_step(_):
        left[0] -= 1
        if not left[0]:
            raise Killed

    return on_step


@pytest.mark.parametrize("augmentation", [AUGMENTATION, Augmentation(32, "flip")], ids=["crop", "cached"])
def test_killed_runs_end_like_an_uninterrupted_one(tiny, pictures, tmp_path, augmentation):
    def _options(folder, **more):
        return TrainOptions(
            folder=folder, augmentation=augmentation, device="cpu", log_every=1, cache_bytes=200_000, **more
        )

    student, teacher = _pair(tiny)
    report = train(student, teacher, pictures, STAGES, _options(tmp_path / "whole"))
    assert report.steps == (6, 8)
    wanted, rows = student.state_dict(), (tmp_path / "whole" / METRICS).read_bytes()
    assert len(rows.splitlines()) == 14
    # killed again and again: in both stages, at their ends, with a checkpoint after each step or only rarely
    folder = tmp_path / "parts"
    for steps, every in ((1, 0), (2, 1e9), (3, 0), (3, 0), (1, 0), (2, 1e9)):
        student, teacher = _pair(tiny)
        with pytest.raises(Killed):
            train(
                student,
                teacher,
                pictures,
                STAGES,
                _options(folder, checkpoint_every_s=every, on_step=_killed_after(steps)),
            )
    student, teacher = _pair(tiny, seed=99)
    report = train(student, teacher, pictures, STAGES, _options(folder))
    assert report.resumed_at.step > 0
    assert all(torch.equal(student.state_dict()[name], value) for name, value in wanted.items())
    assert (folder / METRICS).read_bytes() == rows
    again, teacher = _pair(tiny, seed=98)
    assert train(again, teacher, pictures, STAGES, _options(folder)).steps == (6, 8)  # taken before
    assert all(torch.equal(again.state_dict()[name], value) for name, value in wanted.items())


def test_cached_teacher_runs_once_for_each_view_and_changes_nothing(tiny, pictures, tmp_path):
    found = []
    for cache_bytes in (0, 1 << 26, 130_000):
        student, teacher = _pair(tiny)
        seen = []
        teacher.register_forward_hook(lambda _, inputs, __, seen=seen: seen.append(len(inputs[0])))
        options = _options(tmp_path / str(cache_bytes), cache_bytes=cache_bytes)
        train(student, teacher, pictures, STAGES, replace(options, augmentation=Augmentation(32, "flip")))
        found.append((sum(seen), student.state_dict()))
    (every, plain), (once, cached), (some, partly) = found
    assert every == 48 * 4
    assert once <= 48 * 2 + 1 < some < every
    for state in (cached, partly):
        assert all(torch.allclose(plain[name], state[name], atol=1e-5) for name in plain)


def test_estimate_measures_each_stage_and_leaves_the_student_alone(tiny, pictures, tmp_path):
    student, teacher = _pair(tiny)
    before = {name: one.clone() for name, one in student.state_dict().items()}
    cost = estimate(student, teacher, pictures, STAGES, _options(tmp_path / "run"))
    assert len(cost.seconds) == 2
    assert all(one > 0 for one in cost.seconds)
    assert cost.peak_bytes > 1 << 20
    assert not (tmp_path / "run").exists()
    assert all(torch.equal(before[name], one) for name, one in student.state_dict().items())


def test_sigkill_leaves_a_checkpoint_that_loads(tiny, pictures, tmp_path):
    code = """
        import sys, numpy, torch
        from pathlib import Path
        sys.path.insert(0, "tests/split")
        from conftest import ResNet
        from split.augment import Augmentation
        from split.distill import TrainOptions, train
        from split.entropic_student import EntropicOptions, EntropicStudent, entropic_stages
        from split.inject import inject, trace_network
        from split.training_data import PictureSet
        torch.set_num_threads(1)
        images = torch.randint(0, 255, (32, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
        data = PictureSet(images, torch.arange(32) % 2, ("a", "b"))
        torch.manual_seed(1)
        trace = trace_network(ResNet((1, 1, 1, 1), base=2, classes=3), torch.rand(1, 3, 32, 32))
        pair = inject(trace, "layer1", lambda one: EntropicStudent(one.shape[0], EntropicOptions(2)), size=(32, 32))
        options = TrainOptions(folder=Path(sys.argv[1]), augmentation=Augmentation(32), device="cpu", checkpoint_every_s=0,
                               on_step=lambda p: print(p.step, flush=True))
        report = train(*pair, data, entropic_stages(0.1, epochs=(int(sys.argv[2]), 1), batches=(8, 8)), options)
        print("from", report.resumed_at)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path), "400"]
    with subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as child:
        while (line := child.stdout.readline()) and int(line) < 5:
            pass
        child.send_signal(signal.SIGKILL)
    assert line
    state = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    assert state["position"][1] >= 4
    rows = (tmp_path / METRICS).read_bytes()[: state["position"][3]].splitlines()
    assert json.loads(rows[0])["step"] == 1


def test_entropic_learns_features_and_spends_fewer_bits_with_a_larger_beta(tiny, pictures, tmp_path):
    last = {}
    for beta in (0.0, 4.0):
        student, teacher = _pair(tiny)
        (first, _) = entropic_stages(beta, epochs=(8, 1), batches=(16, 16))
        first = replace(first, lr=1e-2)
        train(student, teacher, pictures, [first], _options(tmp_path / str(beta)))
        rows = [json.loads(line) for line in (tmp_path / str(beta) / METRICS).read_text().splitlines()]
        assert rows[-1]["loss"] < rows[0]["loss"]
        last[beta] = rows[-1]
    assert last[4.0]["bits"] < 0.8 * last[0.0]["bits"]


def test_bottlefit_freezes_the_tail_then_the_head(tiny, pictures, tmp_path):
    trace = trace_network(tiny, torch.rand(1, 3, 64, 64))
    make = lambda layer: QuantisedBottleFit(layer.shape[0], BottleFitOptions(channels=3))  # noqa: E731
    student, teacher = inject(trace, "layer2", make, size=(64, 64))
    big = replace(pictures, images=pictures.images.repeat_interleave(2, 2).repeat_interleave(2, 3))
    before = {name: one.clone() for name, one in student.named_parameters()}
    stages = bottlefit_stages(epochs=(1, 1), batch=16)
    options = replace(_options(tmp_path), augmentation=Augmentation(64, "flip"))
    train(student, teacher, big, stages[:1], options)
    middle = {name: one.clone() for name, one in student.state_dict().items()}
    assert all(torch.equal(before[name], one) for name, one in student.named_parameters() if name.startswith("tail."))
    assert not torch.equal(before["bottleneck.encoder.0.weight"], middle["bottleneck.encoder.0.weight"])
    train(student, teacher, big, stages[1:], replace(options, folder=tmp_path / "2"))
    after = student.state_dict()
    encoder = [name for name in after if name.startswith("bottleneck.encoder")]
    assert any("running_mean" in name for name in encoder)
    assert all(
        torch.equal(middle[name], after[name]) for name in encoder
    )  # statistics too: a deployed head stays valid
    assert not torch.equal(middle["tail.fc.weight"], after["tail.fc.weight"])


def test_time_budget_ends_both_stages_early(tiny, pictures, tmp_path):
    student, teacher = _pair(tiny)
    stages = entropic_stages(0.1, epochs=(100_000, 100_000), batches=(16, 16))
    shown = []
    report = train(student, teacher, pictures, stages, _options(tmp_path, time_budget_s=1.5, on_step=shown.append))
    assert all(0 < steps < 300_000 for steps in report.steps)
    assert report.seconds < 20
    assert 0 <= shown[0].left_s <= 1.5
    rows = [json.loads(line) for line in (tmp_path / METRICS).read_text().splitlines()]
    assert rows[-1]["lr"] == pytest.approx(1e-4)
    again = train(*_pair(tiny), pictures, stages, _options(tmp_path, time_budget_s=1.5))
    assert again.stages == report.stages  # a later process knows that the budget ended them
    assert all(one.step < one.steps == 300_000 for one in again.stages)


def test_mixed_pictures_want_a_loss_without_labels(tiny, pictures, tmp_path):
    options = replace(_options(tmp_path), augmentation=Augmentation(32, "resized", mixes=True))
    with pytest.raises(TrainingError, match="mixes pictures"):
        train(*_pair(tiny), pictures, STAGES, options)
    alone = entropic_stages(0.05, epochs=(1, 1), batches=(16, 16), task=TaskLoss(alpha=0.0))
    assert len(train(*_pair(tiny), pictures, alone, options).steps) == 2


def test_wrong_runs_are_named(tiny, pictures, tmp_path):
    student, teacher = _pair(tiny)
    with pytest.raises(TrainingError, match="one batch of 64"):
        train(student, teacher, pictures, entropic_stages(0.1), _options(tmp_path))
    with pytest.raises(TrainingError, match="finite"):
        train(student, teacher, pictures, entropic_stages(float("inf"), batches=(16, 16)), _options(tmp_path))
    train(student, teacher, pictures, STAGES[:1], _options(tmp_path))
    with pytest.raises(CheckpointError, match="Another network"):
        train(student, teacher, pictures, STAGES[:1], _options(tmp_path, seed=1))
    teacher.graph.fc.bias.data += 1  # another teacher of the same form
    with pytest.raises(CheckpointError, match="Another network"):
        train(student, teacher, pictures, STAGES[:1], _options(tmp_path))
    (tmp_path / CHECKPOINT).write_bytes(b"PK damaged")
    with pytest.raises(CheckpointError, match="Delete it"):
        train(student, teacher, pictures, STAGES[:1], _options(tmp_path))


def test_full_disk_keeps_the_last_checkpoint(tmp_path):
    path = tmp_path / "state"
    replace_file(path, b"good")
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, old[1]))
    try:
        with pytest.raises(CheckpointError, match="What was there before is kept"):
            replace_file(path, bytes(100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert path.read_bytes() == b"good"
    assert [one.name for one in tmp_path.iterdir()] == ["state"]


def test_a_disk_that_fills_up_costs_only_the_steps_behind_the_last_checkpoint(tiny, pictures, tmp_path):
    student, teacher = _pair(tiny)
    train(student, teacher, pictures, STAGES, _options(tmp_path / "whole"))
    wanted = student.state_dict()
    old = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fills(step):
        if step.step == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, old[1]))  # less than a checkpoint

    student, teacher = _pair(tiny)
    try:
        with pytest.raises(CheckpointError, match="What was there before is kept"):
            train(student, teacher, pictures, STAGES, _options(tmp_path / "full", checkpoint_every_s=0, on_step=fills))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    student, teacher = _pair(tiny, seed=99)
    report = train(student, teacher, pictures, STAGES, _options(tmp_path / "full"))
    assert report.resumed_at.step == 2
    assert all(torch.equal(student.state_dict()[name], value) for name, value in wanted.items())


def _fill(metrics):
    for number in range(10):
        metrics.add({"loss": number})


def test_metrics_without_room_are_a_named_error(tmp_path):
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    metrics = MetricsFile(tmp_path, 0)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, old[1]))
    try:
        with pytest.raises(CheckpointError, match="Wanted to append"):  # closing does not hide it
            _fill(metrics)
        metrics.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    (tmp_path / "file").write_bytes(b"")
    for wrong in (lambda: MetricsFile(tmp_path / "file", 0), lambda: make_folder(tmp_path / "file" / "run")):
        with pytest.raises(CheckpointError, match="Give a folder that can be written"):
            wrong()


def test_balanced_divergence_equals_both_kinds_mixed():
    student, teacher = torch.randn(6, 4), torch.randn(6, 4)
    labels = torch.arange(6) % 4
    s, t = student.softmax(1), teacher.softmax(1)
    forward, reverse = (t * (t / s).log()).sum(1), (s * (s / t).log()).sum(1)
    sure = (-(s * s.log()).sum(1) < -(t * t.log()).sum(1)).float()
    wanted = (((1 + sure) * forward + (2 - sure) * reverse) / 3).mean()
    found = task_loss(student, teacher, labels, TaskLoss("balanced", alpha=0))
    assert torch.allclose(found, wanted, atol=1e-6)
    assert torch.allclose(task_loss(student, teacher, labels, TaskLoss("kd", alpha=0)), forward.mean(), atol=1e-6)
    assert task_loss(teacher, teacher, labels, TaskLoss("kd", alpha=0)).abs() < 1e-6


def test_two_processes_learn_what_one_does(tmp_path):
    """torchrun halves each batch; without noise and batch statistics the result is the same."""
    code = """
        import os, sys, torch
        from pathlib import Path
        from torch import nn
        from split.augment import Augmentation
        from split.distill import TrainOptions, train
        from split.entropic_student import EntropicOptions, EntropicStudent, entropic_stages
        from split.inject import inject, trace_network
        from split.training_data import PictureSet
        torch.set_num_threads(1)
        images = torch.randint(0, 255, (24, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
        data = PictureSet(images, torch.arange(24) % 2, ("a", "b"))
        torch.manual_seed(1)
        net = nn.Sequential(nn.Conv2d(3, 4, 3, 4, 1), nn.ReLU(), nn.Conv2d(4, 8, 3, 2, 1), nn.Flatten(), nn.Linear(128, 2))
        pair = inject(trace_network(net, torch.rand(1, 3, 32, 32)), "1", lambda one: EntropicStudent(4, EntropicOptions(2)), size=(32, 32))
        options = TrainOptions(folder=Path(sys.argv[1]), augmentation=Augmentation(32, "flip"), device="cpu")
        train(*pair, data, entropic_stages(0.1, epochs=(1, 2), batches=(8, 8))[1:], options)
        torch.save(pair[0].state_dict(), Path(sys.argv[1]) / f"rank{os.environ.get('RANK', 'one')}.pt")
    """
    script = tmp_path / "run.py"
    script.write_text(textwrap.dedent(code))
    two = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for name, launcher in (("two", two), ("one", [])):
        command = [sys.executable, *launcher, str(script), str(tmp_path / name)]
        subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, check=True, capture_output=True, timeout=200)
    states = [tmp_path / "two" / "rank0.pt", tmp_path / "two" / "rank1.pt", tmp_path / "one" / "rankone.pt"]
    first, second, alone = (torch.load(path, weights_only=True) for path in states)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(torch.allclose(first[name], alone[name], atol=1e-5) for name in first)
