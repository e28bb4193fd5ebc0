"""From logits to a token: repetition penalty, temperature, top-k, top-p, min-p, a seed. Pure but for the generator."""

from collections.abc import Sequence
from typing import Any

import msgspec
import torch

from orchestrator.tensor_parallel.errors import PromptError

Tensor = Any  # torch is untyped here
_COLDEST = 1e-6  # below it a draw is the most probable token all the same


class SamplingOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How tokens are chosen. Temperature 0 is greedy."""

    temperature: float = 0.0
    top_k: int = 0  # 0: all
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def check(self) -> None:
        """Refuse values without a meaning.

        Raises:
            PromptError: The first that is out of range.
        """
        for name, low, high in (
            ("temperature", 0.0, 10.0),
            ("top_k", 0, 1 << 20),
            ("top_p", 0.0, 1.0),
            ("min_p", 0.0, 1.0),
            ("repetition_penalty", 0.01, 10.0),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise PromptError(f"Wanted {name} from {low} to {high}, found {value}.")
        if self.seed is not None and not -(1 << 63) <= self.seed < 1 << 63:
            raise PromptError(f"Wanted a seed of 64 bit, found {self.seed}.")

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is taken."""
        return self.temperature == 0.0


def choose(logits: Tensor, options: SamplingOptions, history: Sequence[int], generator: Tensor) -> int:
    """One token.

    Args:
        logits: (vocabulary,), not changed.
        options: How.
        history: Prompt and tokens so far, for the repetition penalty.
        generator: torch.Generator of this request.
    """
    if options.repetition_penalty != 1.0 and history:
        logits = penalise(logits, history, options.repetition_penalty)
    if options.greedy:
        return int(logits.argmax())
    return int(torch.multinomial(probabilities(logits, options), 1, generator=generator))


def penalise(logits: Tensor, history: Sequence[int], penalty: float) -> Tensor:
    """Divide positive logits of tokens seen before by `penalty`, multiply negative ones (arXiv:1909.05858, section 4.1)."""
    seen = torch.tensor(sorted(set(history)))
    values = logits[seen]
    out = logits.clone()
    out[seen] = torch.where(values > 0, values / penalty, values * penalty)
    return out


def probabilities(logits: Tensor, options: SamplingOptions) -> Tensor:
    """The distribution that is drawn from, (vocabulary,), after temperature, top-k, top-p and min-p in this order."""
    scaled = (logits - logits.max()) / max(options.temperature, _COLDEST)  # the largest is 0: nothing overflows
    if 0 < options.top_k < scaled.shape[0]:
        smallest = scaled.topk(options.top_k).values[-1]
        scaled = scaled.masked_fill(scaled < smallest, -torch.inf)
    found = torch.softmax(scaled, dim=-1)
    if options.top_p < 1.0:
        ordered, order = found.sort(descending=True)
        before = ordered.cumsum(0) - ordered
        found = found.index_fill(0, order[before > options.top_p], 0.0)
    if options.min_p > 0.0:
        found = found.masked_fill(found < options.min_p * found.max(), 0.0)
    return found / found.sum()
