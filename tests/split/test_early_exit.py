"""Early exits: calibrated, chosen on validation pictures, never worse than was allowed; the head's integers stay."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from split.augment import Augmentation
from split.early_exit import ExitOptions, HeadWithExit, exit_and_tail_logits, train_exit
from split.exit_policy import ExitError, ExitPolicy, choose_policy, confidence, fit_temperature, measure_policy
from split.inject import inject, trace_network
from split.latents import IntegerHead, IntegerTail, fit_grid, input_batches
from split.losses import TaskLoss
from split.methods import find_method

VIEW = Augmentation(32, "none")


def test_temperature_undoes_an_overconfident_scale():
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 2, (20_000, 5))
    odds = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = (odds.cumsum(1) > rng.random((20_000, 1))).argmax(1)  # drawn with these very probabilities
    assert fit_temperature(logits, labels) == pytest.approx(1, rel=0.05)
    assert fit_temperature(4 * logits, labels) == pytest.approx(4, rel=0.05)
    report = measure_policy(ExitPolicy(4.0, 0.9), 4 * logits, logits, labels)
    assert report.calibration_error < 0.02 < 0.1 < report.uncalibrated_error


def _few(seed):
    """60 pictures of which an exit knows less than a tail, with ties."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, 60)
    early, late = rng.normal(0, 1, (60, 3)).round(1), rng.normal(0, 1, (60, 3))
    early[np.arange(60), labels] += 1
    late[np.arange(60), labels] += 2
    return early, late, labels


@given(seed=st.integers(0, 10_000), max_loss=st.sampled_from([0.0, 0.005, 0.1]), sureness=st.sampled_from([0.0, 0.9]))
def test_policy_never_loses_more_than_allowed_where_it_was_chosen(seed, max_loss, sureness):
    few = _few(seed)
    policy = choose_policy(*few, max_loss=max_loss, sureness=sureness)
    sure = np.unique(confidence(few[0], policy.temperature))

    def loss(threshold):
        report = measure_policy(ExitPolicy(policy.temperature, float(threshold)), *few)
        return report.tail_accuracy - report.accuracy

    assert all(
        loss(one) <= max_loss + 1e-12 for one in sure[sure >= policy.threshold]
    )  # nor would any higher threshold
    lower = sure[sure < policy.threshold]
    if not sureness and len(lower):  # the largest share: the next threshold loses too much
        assert loss(lower[-1]) > max_loss


@given(seed=st.integers(0, 10_000))
def test_surer_policies_let_fewer_pictures_leave(seed):
    early, late, labels = _few(seed)
    thresholds = [choose_policy(early, late, labels, sureness=one).threshold for one in (0.0, 0.5, 0.9)]
    assert thresholds == sorted(thresholds)


def test_policy_holds_in_truth_more_often_than_the_threshold_that_just_holds():
    rng = np.random.default_rng(4)
    broken = {0.0: 0, 0.9: 0}
    for _ in range(60):
        chance = rng.uniform(0.5, 1, 300)  # that the exit is right, as it says itself; the tail always is
        labels = np.zeros(300, np.int64)
        odds = np.log(chance / (1 - chance)) * np.where(rng.random(300) < chance, 1, -1)
        early, late = np.stack([odds, 0 * odds], 1), np.tile([1.0, 0.0], (300, 1))
        for sureness in broken:
            policy = choose_policy(early, late, labels, max_loss=0.02, sureness=sureness)
            leaves = confidence(early, policy.temperature) >= policy.threshold
            broken[sureness] += ((1 - chance) * leaves).mean() > 0.02
    assert broken[0.9] <= 12 < 24 <= broken[0.0]


def test_chosen_share_depends_less_on_the_pictures_than_a_count_does():
    rng = np.random.default_rng(5)
    shares = {0.0: [], 0.9: []}
    for _ in range(30):
        chance = rng.uniform(0.5, 1, 300)
        labels = np.zeros(300, np.int64)
        odds = np.log(chance / (1 - chance)) * np.where(rng.random(300) < chance, 1, -1)
        early, late = np.stack([odds, 0 * odds], 1), np.tile([1.0, 0.0], (300, 1))
        for sureness, found in shares.items():
            policy = choose_policy(early, late, labels, max_loss=0.02, sureness=sureness)
            found.append(measure_policy(policy, early, late, labels).share)
    assert 0 < np.mean(shares[0.9]) < np.mean(shares[0.0])
    assert np.std(shares[0.9]) < np.std(shares[0.0])


def test_hand_computed_policy():
    labels = np.array([0, 0, 1, 1])
    early = np.array([[9.0, 0], [5, 0], [3, 0], [0, 1]])  # right, right, wrong, right
    late = np.array([[1.0, 0], [1, 0], [0, 1], [0, 1]])  # all right
    policy = choose_policy(early, late, labels, max_loss=0.0, sureness=0.0)
    report = measure_policy(policy, early, late, labels)
    assert (report.share, report.accuracy, report.tail_accuracy) == (0.5, 1.0, 1.0)
    every = choose_policy(early, late, labels, max_loss=0.25, sureness=0.0)
    assert measure_policy(every, early, late, labels).share == 1.0
    cautious = choose_policy(early, late, labels, max_loss=0.0)  # four pictures do not say that an exit never errs
    assert measure_policy(cautious, early, late, labels).share == 0.0
    with pytest.raises(ExitError, match="labels"):
        fit_temperature(np.zeros((0, 3)), np.zeros(0, np.int64))


def test_exit_learns_and_leaves_the_latents_alone(tiny, pictures):
    torch.manual_seed(1)
    method = find_method("slim")
    student, _ = inject(
        trace_network(tiny, torch.rand(1, 3, 32, 32)),
        "layer1",
        lambda one: method.make(one, method.options()),
        size=(32, 32),
    )
    student.eval()
    grid = fit_grid(student, ())
    head, tail = IntegerHead(student.bottleneck, grid), IntegerTail(student, grid)
    leaving = train_exit(
        head, tail, pictures, ExitOptions(width=16, depth=1, epochs=60, batch=16, lr=1e-2, task=TaskLoss("ce")), VIEW
    )
    early, late = exit_and_tail_logits(head, tail, leaving, pictures, VIEW)
    assert early.shape == late.shape == (48, 3)
    assert (
        float((early.argmax(1) == pictures.labels).float().mean()) > 0.5
    )  # of three classes, behind an untrained head
    (batch,) = input_batches(pictures, VIEW)
    both = HeadWithExit(head, leaving)
    with torch.no_grad():
        latent, logits = both(batch)
        assert torch.equal(latent, head(batch))
        assert torch.allclose(logits, early, atol=1e-4)


class _Notes(torch.nn.Module):
    """A head that notes what it sees."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append(x)
        return (10 * x).to(torch.int8)


def test_exit_learns_from_every_view_and_averages_its_members(pictures):
    head = _Notes()
    tail = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 3))
    options = ExitOptions(width=4, depth=1, members=2, views=3, epochs=1, batch=16)
    leaving = train_exit(head, lambda latent: tail(latent.float()), pictures, options, Augmentation(32, "crop", 4))
    centre, mirror, other = head.seen
    assert torch.equal(mirror, centre.flip(3))
    assert not torch.equal(other, centre)
    latent = head(centre)
    first, second = (member(latent.float()) for member in leaving.members)
    assert not torch.equal(first, second)
    assert torch.allclose(leaving(latent), (first + second) / 2)
