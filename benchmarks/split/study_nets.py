"""Whole networks of the study: fine-tuned on compressed pictures, and a small one with a head's work that stays on the device."""

from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.split.study_plan import B_CHANNELS, PROTOCOLS, Job, Protocol, load_teacher
from export.codec_points import FRAME_BYTES, code_picture
from export.evaluate import pictures_of
from split.augment import Augmentation, augment, centre, draw, without_chance
from split.latents import IntegerHead, IntegerTail
from split.losses import TaskLoss, task_loss
from split.slim import slim_encoder
from split.slim_stages import SlimOptions
from split.training_data import PictureSet
from split.units import ConvUnit

CODEC_EPOCHS, CODEC_LR, CODEC_LOSS = 40, 2e-4, TaskLoss("kd", alpha=0.5)
SMALL_LR = 3e-3
_BATCH, _DECAY, _WARM = 64, 0.02, 0.1

Parts = dict[str, PictureSet]
Result = tuple[dict[str, np.ndarray], dict[str, Any]]


def codec_job(job: Job, work: Path, data: Parts, device: str) -> Result:
    """Bytes of each test picture's file in a frame; whether its class is right, plain and fine-tuned.

    Every layer learns, from the labels and from what the teacher says of the same crop of the uncompressed picture; crops
    and mirror images as in the teacher's own fine-tuning, so that compression stays at its scale. The best epoch on
    validation pictures stays, the plain network where none is better.
    """
    protocol = PROTOCOLS["b"]
    coded = {name: through_codec(one, job.options["codec"], job.options["quality"]) for name, one in data.items()}
    network, teacher = (load_teacher(protocol, work).to(device) for _ in range(2))
    view = Augmentation(protocol.size, "crop", 16, protocol.augmentation.mean, protocol.augmentation.std)
    plain = right(network, coded["test"][0], view, device)
    pairs = (coded["train"][0], data["train"])
    learn(network, teacher, pairs, coded["val"][0], (view, CODEC_LOSS, CODEC_EPOCHS, CODEC_LR), device)
    tuned = right(network, coded["test"][0], view, device)
    sizes = coded["test"][1] + FRAME_BYTES
    note = {
        **job.options, "tuned": "whole network", "epochs": CODEC_EPOCHS, "pillow": PIL.__version__,
        "val": round(float(right(network, coded["val"][0], view, device).mean()), 4), "test": round(float(tuned.mean()), 4),
    }  # fmt: skip
    arrays = {"sizes": sizes.astype(np.uint32), "plain": np.packbits(plain), "tuned": np.packbits(tuned)}
    return arrays, note


def raw_job(job: Job, work: Path, data: Parts, device: str) -> Result:
    """The whole network, its pixels sent as they are."""
    protocol = PROTOCOLS[job.protocol]
    network = load_teacher(protocol, work).to(device)
    good = right(network, data["test"], protocol.augmentation, device)
    sizes = np.full(len(good), data["test"].images[0].numel() + FRAME_BYTES, np.uint32)
    shares = {"val": right(network, data["val"], protocol.augmentation, device).mean(), "test": good.mean()}
    arrays = {"sizes": sizes, "plain": np.packbits(good), "tuned": np.packbits(good)}
    return arrays, {name: round(float(share), 4) for name, share in shares.items()}


class _Received(nn.Module):
    """A finished head before a tail that learns; the head is no part of what is trained."""

    def __init__(self, head: IntegerHead, tail: IntegerTail) -> None:
        super().__init__()
        self._head = (head.eval(),)
        self.tail = tail

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            latent = self._head[0](x.float())
        found: torch.Tensor = self.tail(latent)
        return found


def tune_tail(protocol: Protocol, sent: tuple[IntegerHead, IntegerTail], data: Parts, work: Path, device: str) -> None:
    """Fine-tune a tail in place, on what its head sends: pictures, loss, epochs and learning rate of `codec_job`."""
    head, tail = sent
    tail.requires_grad_(requires_grad=True)
    view = Augmentation(protocol.size, "crop", 16, protocol.augmentation.mean, protocol.augmentation.std)
    recipe = (view, CODEC_LOSS, CODEC_EPOCHS, CODEC_LR)
    teacher = load_teacher(protocol, work).to(device)
    learn(_Received(head, tail).to(device), teacher, (data["train"], data["train"]), data["val"], recipe, device)


def small_job(job: Job, work: Path, data: Parts, device: str) -> Result:
    """A network with the work of slim's head, from new weights, with the same teacher, pictures and losses."""
    protocol = PROTOCOLS["b"]
    torch.manual_seed(1000 + job.seed)
    network, teacher = SmallNetwork(protocol.classes).to(device), load_teacher(protocol, work).to(device)
    pairs = (data["train"], data["train"])
    recipe = (protocol.augmentation, TaskLoss("kd", alpha=0.0), job.options["epochs"], SMALL_LR)
    learn(network, teacher, pairs, data["val"], recipe, device)
    good = right(network, data["test"], protocol.augmentation, device)
    note = {
        **job.options, "macs": macs(network.cpu(), protocol.size), "head_macs": head_macs(), "test": round(float(good.mean()), 4),
        "parameters": sum(one.numel() for one in network.parameters()),
        "val": round(float(right(network.to(device), data["val"], protocol.augmentation, device).mean()), 4),
    }  # fmt: skip
    return {"right": np.packbits(good)}, note


class SmallNetwork(nn.Sequential):
    """Slim's head at stride 8 (24, 48, 48 channels) with one convolution less at its end, then strided ones and a classifier."""

    def __init__(self, classes: int) -> None:
        super().__init__(
            ConvUnit(3, 24, kernel=5, stride=2),
            ConvUnit(24, 48, kernel=3, stride=2),
            ConvUnit(48, 48, kernel=3, stride=2),
            ConvUnit(48, 96, kernel=3, stride=2),
            ConvUnit(96, 192, kernel=3, stride=2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(192, classes),
        )


def head_macs() -> int:
    """Those of slim's head in protocol B, which cuts at stride 8."""
    return macs(slim_encoder(8, SlimOptions(latent_channels=B_CHANNELS)), PROTOCOLS["b"].size)


def macs(network: nn.Module, size: int) -> int:
    """Multiply-accumulates of convolutions and linear layers for one picture, however the network calls them."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.eval()(torch.zeros(1, 3, size, size))
    return int(counter.get_total_flops()) // 2


def learn(
    network: nn.Module,
    teacher: nn.Module,
    pairs: tuple[PictureSet, PictureSet],
    validation: PictureSet,
    recipe: tuple[Augmentation, TaskLoss, int, float],
    device: str,
) -> None:
    """AdamW on what the network sees and what the teacher sees of the same crops; the epoch that is best on `validation` stays."""
    view, loss_options, epochs, top = recipe
    seen, shown = (one.images.to(device) for one in pairs)
    labels = pairs[0].labels.to(device)
    network.to(memory_format=torch.channels_last)
    teacher.to(memory_format=torch.channels_last)
    best = {key: one.clone() for key, one in network.state_dict().items()}
    most = right(network, validation, view, device).mean()
    optimiser = torch.optim.AdamW(network.parameters(), lr=top, weight_decay=_DECAY)
    steps = len(labels) // _BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, top, total_steps=steps * epochs, pct_start=_WARM, cycle_momentum=False
    )

    def step(both: torch.Tensor, labels_: torch.Tensor) -> None:
        own, other = both.chunk(2, 1)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=device != "cpu"):
            with torch.no_grad():
                wanted = teacher(other)
            logits = network(own)
        loss = task_loss(logits, wanted, labels_, loss_options)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()

    for epoch in range(epochs):
        network.train()
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(epoch)).to(device)
        for number in range(steps):
            rows = order[number * _BATCH : (number + 1) * _BATCH]
            draws = draw(_BATCH, epoch * steps + number)
            both = torch.cat([augment(one[rows], view, draws) for one in (seen, shown)], 1)
            step(both, labels[rows])
            schedule.step()
        share = right(network, validation, view, device).mean()
        if share > most:
            most, best = share, {key: one.clone() for key, one in network.state_dict().items()}
    network.load_state_dict(best)
    network.eval()


def right(network: nn.Module, data: PictureSet, view: Augmentation, device: str) -> np.ndarray:
    """Whether each picture's class is right, without chance."""
    network.eval()
    with torch.no_grad():
        chunks = (centre(one.to(device), without_chance(view)) for one in data.images.split(256))
        found = torch.cat([network(one).argmax(1).cpu() for one in chunks])
    return (found == data.labels).numpy()


def through_codec(data: PictureSet, codec: Any, quality: int) -> tuple[PictureSet, np.ndarray]:
    """Decoded pictures, and the bytes of their files."""
    coded = [code_picture(one, codec, quality) for one in pictures_of(data)]
    images = torch.from_numpy(np.stack([one.pixels() for one in coded])).permute(0, 3, 1, 2).contiguous()
    return PictureSet(images, data.labels, data.classes), np.array([one.size for one in coded])
