"""Several small codebooks instead of a grid: the head sends, for each place, which word of each book is nearest.

On the device this is one more 1x1 convolution and the place of its largest output, so a head stays trivial in C. The indices
travel as int8 latents, one channel for each book, and are coded with tables like any others.

Sources: van den Oord et al. 2017 (arXiv:1711.00937); several books side by side as in Zhu et al. 2022, McQuic
(arXiv:2203.10897), without its levels; rate as in Chou et al. 1989, entropy-constrained vector quantisation.
"""

import copy
import math

import torch
from torch import nn
from torch.nn import functional

from split.bottleneck import Bottleneck, BottleneckError, Coded, LatentGrid
from split.inject import CutLayer
from split.slim import check_form, slim_decoder, slim_encoder
from split.slim_stages import CodebookOptions
from split.units import quantise_units

FIRST_WORD = -128  # the integer of a book's first word
_MOST_WORDS = 256
_COMMITMENT = 0.25
_SPREAD = 0.5  # of the words at the start


class Codebook(Bottleneck):
    """The block for a layer; its latent has `books` channels of indices on the wire."""

    def __init__(self, layer: CutLayer, form: CodebookOptions) -> None:
        check_form(layer, form)
        if form.books < 1 or form.latent_channels % form.books or not 2 <= form.words <= _MOST_WORDS:
            raise BottleneckError(
                f"Wanted books that share {form.latent_channels} channels evenly, of 2 to {_MOST_WORDS} words, found {form.books} "
                f"books of {form.words}."
            )
        encoder = slim_encoder(layer.stride, form, gain=1.0, front=layer.front)
        super().__init__(encoder, slim_decoder(layer, form), stride=layer.stride)
        self.form, self.fixed_norm = form, form.fixed_norm
        size = form.latent_channels // form.books
        self.words = nn.Parameter(torch.randn(form.books, form.words, size) * _SPREAD)
        self.odds = nn.Parameter(torch.zeros(form.books, form.words))  # logits of each word's frequency
        self.stream = form.stream

    def grid(self) -> LatentGrid:
        """Indices are integers already."""
        return LatentGrid((1.0,) * len(self.words), (0.0,) * len(self.words))

    def code(self, latent: torch.Tensor) -> Coded:
        """The nearest words, and the cost of their indices."""
        with torch.autocast(latent.device.type, enabled=False):
            parts = _split(latent.float(), len(self.words))  # (books, places, size)
            distance = torch.cdist(parts, self.words).square()
            chosen = distance.argmin(2)
            nearest = self.words.gather(1, chosen[..., None].expand(-1, -1, self.words.shape[2]))
            costs = -functional.log_softmax(self.odds, 1) / math.log(2)
            if not self.training or self.encoder_fixed:
                bits = costs.gather(1, chosen).sum()
                return Coded(_join(nearest.detach(), latent), bits, bits.new_zeros(()))
            share = functional.softmax(-distance, 2)  # soft, so that the rate moves encoder and words
            bits = (share * costs[:, None]).sum()
            frequencies = costs.gather(1, chosen).mean()  # moves the odds to what is chosen
            pull = functional.mse_loss(nearest, parts.detach()) + _COMMITMENT * functional.mse_loss(
                parts, nearest.detach()
            )
            seen = parts + (nearest - parts).detach()
            return Coded(_join(seen, latent), bits, pull * self.words.shape[2] + frequencies)

    def fix_encoder(self) -> None:
        """Freeze encoder and books."""
        super().fix_encoder()
        self.words.requires_grad_(requires_grad=False)
        self.odds.requires_grad_(requires_grad=False)

    def quantise_encoder(self) -> None:
        """From now on the encoder computes what its int8 form will."""
        quantise_units(self.encoder)

    def deployed_encoder(self) -> nn.Module:
        """Pictures to indices."""
        return nn.Sequential(*copy.deepcopy(self.encoder), NearestWord(self.words.detach()))

    def deployed_decoder(self) -> nn.Module:
        """Indices to the target layer's output."""
        return nn.Sequential(WordOf(self.words.detach()), *copy.deepcopy(self.decoder))


class NearestWord(nn.Module):
    """(batch, channels, h, w) to the index of the nearest word in each book, less 128: (batch, books, h, w), float."""

    def __init__(self, words: torch.Tensor) -> None:
        super().__init__()
        books, count, size = words.shape
        self.books, self.count = books, count
        self.score = nn.Conv2d(books * size, books * count, 1, groups=books)  # 2 x.w - w.w: largest where w is nearest
        self.score.weight.data.copy_(2 * words.reshape(books * count, size, 1, 1))
        self.score.bias.data.copy_(-words.square().sum(2).reshape(-1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As real numbers, which ONNX heads round and cast like any latent."""
        return self.numbers(x).to(torch.float32) + FIRST_WORD

    def numbers(self, x: torch.Tensor) -> torch.Tensor:
        """One convolution and the place of the largest of each `count` channels: int64 (batch, books, h, w)."""
        scores = self.score(x)
        batch, _, height, width = scores.shape
        return scores.reshape(batch, self.books, self.count, height, width).argmax(2)


class WordOf(nn.Module):
    """Indices less 128, (batch, books, h, w), to the words, (batch, channels, h, w)."""

    def __init__(self, words: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("words", words.clone())

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        """Indices outside of a book take its last word."""
        books, count, size = self.words.shape
        rows = torch.clamp(indices - FIRST_WORD, 0, count - 1).to(torch.int64)
        start = torch.arange(books, device=rows.device)[None, :, None, None] * count
        found = self.words.reshape(books * count, size)[rows + start]  # (batch, books, h, w, size)
        return found.permute(0, 1, 4, 2, 3).flatten(1, 2)


def _split(latent: torch.Tensor, books: int) -> torch.Tensor:
    """(batch, channels, h, w) to (books, places, size)."""
    batch, channels, height, width = latent.shape
    parts = latent.reshape(batch, books, channels // books, height * width)
    return parts.permute(1, 0, 3, 2).reshape(books, batch * height * width, channels // books)


def _join(parts: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The inverse."""
    batch, channels, height, width = like.shape
    books = len(parts)
    whole = parts.reshape(books, batch, height * width, channels // books).permute(1, 0, 3, 2)
    return whole.reshape(batch, channels, height, width)
