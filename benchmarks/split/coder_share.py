"""How much of es_bd is the coder: one trained Entropic Student, its latents coded by counted tables and by CompressAI's model.

Since both sides train alike to the last bits (row es_steps), what can differ in bytes is medians, tables and the coder. The
latents have the size of protocol A's (24 x 7 x 7); the teacher is EfficientNet-Lite0 with its ImageNet weights, on grocery
pictures of 32 pixels, so that no teacher needs to be trained. As many steps as the study's first stage has, of smaller
batches; the loss is that of the features at the cut, the bits and the quantiles.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from benchmarks.data import data_path
from benchmarks.split.peer import peer_version, run_peer, to_peer
from benchmarks.split.study_plan import LITE_MEAN, LITE_STD, PROTOCOLS
from edge_runtime.entropy import EntropyCodec
from split.augment import Augmentation, centre
from split.entropic_student import EntropicOptions, EntropicStudent
from split.inject import inject, trace_network
from split.latents import IntegerHead, fit_tables, input_batches, integer_latents
from split.training_data import DataOptions, PictureSet, open_pictures

SIZE, BATCH, STEPS = 32, 4, 1560
TRAINED, MEASURED = 800, 300  # pictures
BETAS = (0.64, 10.24)
FRAME_HEADER = 40  # bytes, of both
PLAIN = Augmentation(SIZE, "none", 0, LITE_MEAN, LITE_STD)


def rows() -> Iterator[dict[str, Any]]:
    """Rows es_bd.coder: bytes of our coder over CompressAI's, of the same latents of the same trained weights."""
    torch.set_num_threads(1)
    trained, measured = pictures()
    peer = {"peer": "CompressAI EntropyBottleneck", "peer_version": peer_version()}
    for number, beta in enumerate(BETAS, 1):
        sizes = measure(beta, trained, measured)
        theirs, same, ours = (sizes[key].mean() for key in ("peer", "same", "ours"))
        what = (
            f"frames of one trained Entropic Student, beta {beta:g}, {MEASURED} pictures: our tables and medians ({ours:.1f} B without "
            f"header) over CompressAI's ({theirs:.1f} B; smallest {sizes['peer'].min()}); the same integers in our tables: {same:.1f} B"
        )
        value = 100 * ((ours + FRAME_HEADER) / (theirs + FRAME_HEADER) - 1)
        row = {"id": f"es_bd.coder.{number}", "what": what, "value": round(float(value), 2), "unit": "%"}
        yield {**row, "direction": "info", **peer}


def pictures() -> tuple[PictureSet, PictureSet]:
    """Pictures to train on and to measure on, no one in both."""
    options = DataOptions(SIZE, label_key="coarse_label", classes=PROTOCOLS["b"].classes)
    found = open_pictures(data_path("data/grocery/train.npz"), options)
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(found)))
    parts = order[:TRAINED], order[TRAINED : TRAINED + MEASURED]
    first, second = (PictureSet(found.images[one], found.labels[one], found.classes) for one in parts)
    return first, second


def measure(beta: float, trained: PictureSet, measured: PictureSet) -> dict[str, np.ndarray]:
    """Bytes of each picture: "peer" as CompressAI codes it, "same" its integers in our tables, "ours" with our medians too."""
    block = trained_block(beta, trained)
    x = torch.cat(list(input_batches(measured, PLAIN)))
    channels = {"latent_channels": block.prior.channels, "target_channels": block.decoder[-1].out_channels, "seed": 0}
    given = {key: np.array(value) for key, value in channels.items()}
    found = {"peer": run_peer("strings", {**given, **to_peer(block), "picture": x.numpy()})["sizes"]}
    found["same"] = counted(block, trained, x)
    block.prior.settle()
    found["ours"] = counted(block, trained, x)
    return found


def trained_block(beta: float, data: PictureSet) -> EntropicStudent:
    """After the steps of the published first stage, features at the cut alone; medians as the auxiliary loss left them."""
    torch.manual_seed(0)
    trace = trace_network(PROTOCOLS["b"].network().eval(), torch.zeros(1, 3, SIZE, SIZE))
    make = lambda layer: EntropicStudent(layer.shape[0], EntropicOptions(24, layer.stride))  # noqa: E731 - one use
    student, teacher = inject(trace, PROTOCOLS["b"].layer, make, size=(SIZE, SIZE))
    block = student.bottleneck.train()
    assert isinstance(block, EntropicStudent)
    x = centre(data.images, PLAIN)
    with torch.no_grad():
        wanted = torch.cat([teacher(part).features[0] for part in x.split(64)])
    optimiser = torch.optim.Adam(block.parameters(), lr=1e-3)
    for step in range(STEPS):
        rows = torch.randint(len(x), (BATCH,), generator=torch.Generator().manual_seed(step))
        for group in optimiser.param_groups:
            group["lr"] = 1e-3 * 0.1 ** ((step >= 0.5 * STEPS) + (step >= 0.8 * STEPS))
        found, coded = block(x[rows])
        loss = functional.mse_loss(found, wanted[rows], reduction="sum") + beta * coded.bits + coded.auxiliary
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
    block.eval()
    return block


def counted(block: EntropicStudent, known: PictureSet, x: torch.Tensor) -> np.ndarray:
    """Bytes of each picture of `x` in tables counted on `known`, all layers, without the frame's header."""
    head = IntegerHead(block, block.grid())
    codec = EntropyCodec(fit_tables(integer_latents(head, [centre(known.images, PLAIN)])))
    return np.array([sum(map(len, codec.encode([one]))) for one in integer_latents(head, [x])])
