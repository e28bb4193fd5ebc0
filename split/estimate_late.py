"""What is trained behind the finished head will cost: a refined tail and an early exit, measured on some of the pictures."""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from edge_runtime.process_memory import resident_bytes
from split.augment import centre
from split.early_exit import ExitOptions, train_exit
from split.inject import SplitNetwork, Teacher
from split.latents import IntegerHead, IntegerTail, fit_grid, input_batches
from split.refine import Front, Material, RefineOptions, divide_tail, refine_tail

_PICTURES = 64  # that are measured on, at most
_EPOCHS = 2
_HALF = 2  # bytes of a number
_COPIES = 2  # in parts, and put together


@dataclass(frozen=True)
class LateEstimate:
    """Cost of what follows training.

    Attributes:
        seconds: By what it is for, "refine" and "exit", on this machine as busy as it is now.
        peak_bytes: Of the process while the dearest of them runs.
    """

    seconds: dict[str, float]
    peak_bytes: int


def estimate_late(
    network: SplitNetwork,
    teacher: Teacher,
    material: Material,
    refine: RefineOptions | None = None,
    leaving: ExitOptions | None = None,
) -> LateEstimate:
    """Run both on a few pictures and on copies; nothing is kept.

    The head that they run behind does not exist yet: the encoder as it is stands in for it, one picture at a time like the
    quantised one.

    Args:
        network: With a bottleneck, trained or not.
        teacher: The unsplit network.
        material: As for `refine_tail`; an exit is trained on its training pictures.
        refine: Options of the refined tail; null for none.
        leaving: Options of the exit; null for none.

    Raises:
        BottleneckError: As `refine_tail` would.
    """
    network = copy.deepcopy(network).cpu().eval()
    teacher = copy.deepcopy(teacher).cpu()
    share = max(1.0, len(material.train) / _PICTURES)
    train, validation = (one.evenly(int(len(one) / share)) for one in (material.train, material.validation))
    few = Material(train, validation, material.view)
    plain = replace(material.view, kind="none", padding=0)
    grid = fit_grid(network, input_batches(few.train, plain))
    head, tail = _OneByOne(IntegerHead(network.bottleneck, grid)), IntegerTail(network, grid)
    latent = head(centre(few.train.images[:1], plain))
    seconds: dict[str, float] = {}
    kept = [0]
    if refine is not None:

        def fine_tune(epochs: int) -> None:
            short = replace(refine, epochs=epochs, views=1)
            refine_tail(copy.deepcopy(network), head, grid, teacher, few, short)

        made, epoch = _measured(fine_tune)
        seconds["refine"] = share * (made * refine.views + epoch * refine.epochs)
        first, _ = divide_tail(network, refine.layer)
        features = Front(network, grid, first)(latent).numel() * _HALF
        kept.append(_COPIES * features * refine.views * len(material.train))
    if leaving is not None:

        def leave(epochs: int) -> None:
            train_exit(head, tail, few.train, replace(leaving, epochs=epochs), plain)

        made, epoch = _measured(leave)
        seconds["exit"] = share * (made + epoch * leaving.epochs)
        kept.append(_COPIES * latent.numel() * leaving.views * len(material.train))
    return LateEstimate(seconds, (resident_bytes() or 0) + max(kept))


class _OneByOne(nn.Module):
    """A head that takes the pictures of a batch one at a time, as the quantised one does."""

    def __init__(self, head: IntegerHead) -> None:
        super().__init__()
        self.head = head

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """As the head."""
        with torch.no_grad():
            return torch.cat([self.head(one[None]) for one in batch])


def _measured(run: Callable[[int], None]) -> tuple[float, float]:
    """Seconds of what is done once, and of each epoch."""
    times = []
    for epochs in (
        1,
        1 + _EPOCHS,
    ):  # the first one warms up, too: what is done once is rather over- than underestimated
        begun = time.monotonic()
        run(epochs)
        times.append(time.monotonic() - begun)
    each = max(0.0, (times[1] - times[0]) / _EPOCHS)
    return max(0.0, times[0] - each), each
