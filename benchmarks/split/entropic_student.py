"""Our Entropic Student against sc2bench's: equal outputs from equal weights, and equal first steps of training."""

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from benchmarks.split.nets import CifarResNet18
from benchmarks.split.peer import from_peer, peer_version, run_peer, to_peer
from split.augment import Augmentation, normalise
from split.distill import Progress, TrainOptions, train
from split.entropic_student import EntropicOptions, EntropicStudent, entropic_stages
from split.inject import Features, SplitNetwork, StudentOutput, Teacher, inject, trace_network
from split.training_data import PictureSet

SIZE = 32
LAYER, TARGET_CHANNELS, LATENT_CHANNELS = "layer3", 256, 24
STEPS, BATCH, BETA = 50, 16, 0.16
_LAST_BIT = 2.0**-23
WEIGHTS_BAR, STEPS_BAR = 1e-5, 1e-4
TERMS = ("squared error of layer3", "squared error of layer4", "bits", "auxiliary loss")


def rows() -> Iterator[dict[str, Any]]:
    """Rows es_weights and es_steps, with one figure for each direction and each term."""
    torch.set_num_threads(1)
    peer = {"peer": "sc2bench FPBasedResNetBottleneck", "peer_version": peer_version()}
    latents, logits = zip(ours_to_peer(), peer_to_ours(), strict=True)
    what = f"Entropic Student, {LATENT_CHANNELS} channels, weights copied both ways: largest difference of"
    for name, values in (("latents", latents), ("logits", logits)):
        row = {"id": f"es_weights.{name}", "what": f"{what} {name}", "value": max(values), "unit": ""}
        yield {**row, "direction": "<=", "bar": WEIGHTS_BAR, **peer}
    by_step, own = step_errors()
    errors = [float(one) for one in by_step.max(0)]
    what = f"first {STEPS} training steps from the same state, batches and noise: largest relative difference of"
    for name, value in zip(("all", *TERMS), (max(errors), *errors), strict=True):
        row_id = "es_steps" if name == "all" else f"es_steps.{name.replace(' ', '_')}"
        bar = STEPS_BAR if name == "all" else None
        row = {"id": row_id, "what": f"{what} {'any loss term' if name == 'all' else name}", "value": value, "unit": ""}
        yield {**row, "direction": "<=" if bar else "info", "bar": bar, **peer}
    what = "the same of our training against itself from weights that differ in their last bit: largest of any term"
    yield {"id": "es_steps.last_bit", "what": what, "value": float(own.max()), "unit": "", "direction": "info"}
    together = int((np.append(by_step.max(1), np.inf) > STEPS_BAR).argmax())
    what = f"of {STEPS} training steps before any term differs by more than {STEPS_BAR:g}"
    yield {"id": "es_steps.together", "what": what, "value": together, "unit": "steps", "direction": "info", **peer}


def network(seed: int) -> tuple[SplitNetwork, Teacher, CifarResNet18]:
    """A student with new weights, its teacher, and the whole network."""
    torch.manual_seed(seed)
    whole = CifarResNet18()
    whole.train()
    with torch.no_grad():  # statistics of its normalisation, as a trained network has them
        for number in range(8):
            whole(normalise(torch.from_numpy(pictures(64, 100 + number)).float(), Augmentation(SIZE)))
    whole.eval()
    trace = trace_network(whole, torch.zeros(1, 3, SIZE, SIZE))
    student, teacher = inject(
        trace,
        LAYER,
        lambda layer: EntropicStudent(layer.shape[0], EntropicOptions(LATENT_CHANNELS, layer.stride)),
        compared=(LAYER, "layer4")[1:],
        size=(SIZE, SIZE),
    )
    return student, teacher, whole


def pictures(count: int, seed: int) -> np.ndarray:
    """Pictures of smooth noise, uint8 (count, 3, 32, 32): contents do not matter here, only that both see the same."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.uniform(0, 255, (count, 3, 8, 8)))
    return functional.interpolate(coarse, size=SIZE, mode="bilinear").round().to(torch.uint8).numpy()


def ours_to_peer() -> tuple[float, float]:
    """Largest differences of latents and logits when the peer has our weights."""
    student, _, _ = network(0)
    block = student.bottleneck.eval()
    x = normalise(torch.from_numpy(pictures(32, 1)).float(), Augmentation(SIZE))
    found = run_peer("weights", {**sizes(), **to_peer(block), "picture": x.numpy()})
    return differences(student, x, found)


def peer_to_ours() -> tuple[float, float]:
    """The same when we have the peer's."""
    student, _, _ = network(1)
    x = normalise(torch.from_numpy(pictures(32, 2)).float(), Augmentation(SIZE))
    found = run_peer("weights", {**sizes(), "picture": x.numpy()})
    from_peer(student.bottleneck, found)
    return differences(student, x, found)


def sizes() -> dict[str, np.ndarray]:
    """What both sides must agree on to build a block."""
    values = {"seed": 3, "latent_channels": LATENT_CHANNELS, "target_channels": TARGET_CHANNELS}
    return {key: np.array(value) for key, value in values.items()}


def differences(student: SplitNetwork, x: torch.Tensor, found: dict[str, np.ndarray]) -> tuple[float, float]:
    """Largest absolute differences of the latents, and of the logits of one tail behind both decoders."""
    student.eval()
    with torch.no_grad():
        latent = student.bottleneck.encoder(x)
        target = student.bottleneck(x)[0]
        logits, theirs = (student.tail(one)[0] for one in (target, torch.from_numpy(found["target"])))
    return float(np.abs(latent.numpy() - found["latent"]).max()), float((logits - theirs).abs().max())


class _Enough(Exception):
    """The wanted steps are done."""


@dataclass
class _Watch:
    """Notes what the trainer's own steps see and compute."""

    batches: list[np.ndarray] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    wanted: list[Features] = field(default_factory=list)
    terms: list[list[float]] = field(default_factory=list)

    def before(self, _: torch.nn.Module, given: tuple[torch.Tensor]) -> None:
        """The batch, and the seed that the noise of this step is drawn from."""
        self.batches.append(given[0].numpy().copy())
        self.seeds.append(torch.initial_seed())

    def teach(self, _: torch.nn.Module, __: object, result: Features) -> None:
        """The teacher's features."""
        self.wanted.append(result)

    def after(self, _: torch.nn.Module, __: object, result: StudentOutput) -> None:
        """The terms of the loss."""
        pairs = zip(result.features, self.wanted[-1].features, strict=True)
        errors = [float(functional.mse_loss(ours, theirs, reduction="sum").detach()) for ours, theirs in pairs]
        coded = result.coded
        self.terms.append([*errors, float(coded.bits.detach()), float(coded.auxiliary.detach())])

    def stop(self, progress: Progress) -> None:
        """End the run after enough steps."""
        if progress.step == STEPS:
            raise _Enough


def step_errors() -> tuple[np.ndarray, np.ndarray]:
    """Relative differences of each loss term at each step, (steps, terms), twice: against the peer, and against ourselves.

    Ours by `split.distill.train`, the peer's by a loop of its own; the second time from weights that differ in their last bit.
    """
    ours, given = our_steps(nudge=0.0)
    theirs = run_peer("steps", given)["terms"]
    nudged, _ = our_steps(nudge=_LAST_BIT)
    return np.abs(ours - theirs) / np.abs(theirs), np.abs(ours - nudged) / np.abs(nudged)


def our_steps(*, nudge: float) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Terms of the first steps, (steps, terms), and the arrays from which the peer repeats them."""
    student, teacher, whole = network(4)
    given = {**sizes(), **to_peer(student.bottleneck), "beta": np.array(BETA)}
    given |= {f"net.{key}": value.numpy().copy() for key, value in whole.state_dict().items()}
    with torch.no_grad():
        student.bottleneck.encoder[0].weight.mul_(1 + nudge)
    watch = _Watch()
    student.register_forward_pre_hook(watch.before)
    student.register_forward_hook(watch.after)
    teacher.register_forward_hook(watch.teach)
    data = PictureSet.of_arrays(pictures(STEPS * BATCH, 5), np.arange(STEPS * BATCH) % 10)
    with tempfile.TemporaryDirectory() as folder:
        options = TrainOptions(
            folder=Path(folder),
            augmentation=Augmentation(SIZE, "none"),
            device="cpu",
            cache_bytes=0,
            on_step=watch.stop,
        )
        with contextlib.suppress(_Enough):
            train(student, teacher, data, entropic_stages(BETA, batches=(BATCH, BATCH)), options)
    given |= {"batches": np.stack(watch.batches[-STEPS:]), "noise_seeds": np.array(watch.seeds[-STEPS:])}
    return np.array(watch.terms[-STEPS:]), given
