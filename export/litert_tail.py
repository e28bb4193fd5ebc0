"""The tail of a trained bottleneck as .tflite: integers in, logits out; real numbers between, or int8 everywhere."""

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from export.cut_litert import load_tflite
from export.errors import ConversionError
from export.exit_graph import EXIT
from export.head_graph import IMAGE, LATENT
from export.source import ModelSource
from export.tail_graph import LOGITS, TailPrecision
from export.tflite_join import join_tflite, rename_ends
from export.to_litert import quantize_tflite, torch_to_tflite
from split.early_exit import ExitClassifier
from split.fold import fold
from split.latents import HIGH, LOW, IntegerTail


class ChannelsLastTail(nn.Module):
    """A tail whose integers come channels last."""

    def __init__(self, tail: IntegerTail) -> None:
        super().__init__()
        self.decoder = nn.Sequential(_ToChannelsFirst(), tail.decoder)
        self.tail = tail.tail
        for name in ("step", "offset"):
            self.register_buffer(name, getattr(tail, name).permute(0, 2, 3, 1).contiguous())

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        """int8 (batch, height, width, channels) to logits."""
        logits: torch.Tensor = self.tail(self.decoder(latent.to(torch.float32) * self.step + self.offset))[0]
        return logits


class _ToChannelsFirst(nn.Module):
    """(batch, height, width, channels) to (batch, channels, height, width)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The same values in the other order."""
        return x.permute(0, 3, 1, 2)


class _BehindIntegers(nn.Module):
    """A tail that takes its integers as real numbers; a grid of step 1 multiplies nothing."""

    def __init__(self, tail: nn.Module) -> None:
        super().__init__()
        self.decoder, self.tail = tail.decoder, tail.tail
        self.step, self.offset = tail.step, tail.offset
        self.plain = bool((tail.step == 1).all()) and not bool(tail.offset.any())

    def forward(self, steps: torch.Tensor) -> torch.Tensor:
        """Real numbers in steps of the grid to logits."""
        latent = steps if self.plain else steps * self.step + self.offset
        logits: torch.Tensor = self.tail(self.decoder(latent))[0]
        return logits


class _ExitBehindIntegers(nn.Module):
    """An exit whose integers come channels last."""

    def __init__(self, leaving: ExitClassifier) -> None:
        super().__init__()
        self.leaving = fold(copy.deepcopy(leaving).cpu()).eval()

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        """int8 (batch, height, width, channels) to logits."""
        logits: torch.Tensor = self.leaving(latent.to(torch.float32).permute(0, 3, 1, 2))
        return logits


def add_litert_exit(head: bytes, leaving: ExitClassifier, latent: np.ndarray) -> bytes:
    """A head whose second output, `exit`, are the logits of an exit; the latents stay as they are, bit for bit.

    Args:
        head: A .tflite head.
        leaving: Trained on this head's integers; it is not changed.
        latent: One of its latents.

    Raises:
        ConversionError: The exit cannot be converted.
    """
    source = ModelSource(module=_ExitBehindIntegers(leaving), example=(torch.from_numpy(latent),))
    behind = torch_to_tflite(source, as_it_is=True)
    return rename_ends(join_tflite(head, behind, keep_latent=True), (IMAGE,), (LATENT, EXIT))


def tail_to_litert(tail: nn.Module, latents: Sequence[np.ndarray], precision: TailPrecision) -> bytes:
    """The tail as a .tflite file: int8 latents in the module's own order to logits, (1, classes).

    Args:
        tail: `split.latents.IntegerTail` on a CPU, or `ChannelsLastTail`.
        latents: Of calibration pictures; the first one is the example, all of them choose the ranges for int8.
        precision: fp32 or int8. With int8 the logits are integers too; their scale stands in the file.

    Raises:
        ConversionError: fp16, or an operator that the converter or the quantiser does not know.
    """
    if precision == "fp16":
        raise ConversionError("Wanted a LiteRT tail as fp32 or int8, found fp16. Pass --tail-precision fp32 or int8.")
    example = torch.from_numpy(latents[0])
    if precision == "fp32":
        source = ModelSource(module=tail, example=(example,), input_names=(LATENT,), output_names=(LOGITS,))
        return rename_ends(torch_to_tflite(source, as_it_is=True), (LATENT,), (LOGITS,))
    real = ModelSource(module=_BehindIntegers(tail), example=(example.to(torch.float32),), input_names=(LATENT,))
    fp32 = torch_to_tflite(real, as_it_is=True)
    grid = {load_tflite(fp32).graph.inputs[0]: (float(LOW), float(HIGH))}  # scale 1: nothing is rounded there
    samples = [[one.astype(np.float32)] for one in latents]
    return rename_ends(quantize_tflite(fp32, samples, ranges=grid, floats=True), (LATENT,), (LOGITS,))
