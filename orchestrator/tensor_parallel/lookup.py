"""Prompt lookup: guess the next tokens by finding the last few earlier in the text. Pure.

Several guesses are checked in one pass, each behind the same beginning. Every token is still drawn from the model's own
distribution at its place, and a guess is right where it says the same; so the text, greedy or sampled with a seed, is that
of decoding token by token, only sooner. For guesses that are certain of themselves, as these are, no way to accept them
keeps the distribution and is right more often: the probability is the sum over the guessed tokens, which is the bound of
optimal transport (SpecTr, arXiv:2310.15141, section 4).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Guess = tuple[int, ...]


def guess(tokens: Sequence[int], *, longest: int = 3, count: int = 8, branches: int = 1) -> tuple[Guess, ...]:
    """What followed earlier occurrences of the text's end, longer ends first, then the most recent.

    Args:
        tokens: Prompt and everything so far.
        longest: Tokens of the end that are looked for; shorter ends are tried when that is not found.
        count: Most tokens to guess.
        branches: Most guesses; they differ in their first token.

    Returns:
        Guesses of one length, at most `count` tokens; none when the end is new.
    """
    text = np.asarray(tokens)
    found: list[Guess] = []
    for size in range(min(longest, len(text) - 1), 0, -1):
        if found and size == 1:
            break  # one token says little: good for a first guess alone
        same = np.ones(len(text) - size, dtype=bool)
        for place in range(size):
            same &= text[place : len(text) - size + place] == text[len(text) - size + place]
        for start in np.flatnonzero(same)[::-1]:
            one = tuple(int(token) for token in text[start + size : start + size + count])
            if one[0] not in {other[0] for other in found} and (not found or len(one) >= len(found[0])):
                found.append(one)
            if len(found) == branches:
                break
        if len(found) == branches:
            break
    return tuple(one[: len(found[0])] for one in found)


@dataclass
class Pace:
    """How many tokens are worth guessing: more while guesses are right, fewer while they are wrong."""

    most: int
    now: int = 0

    def __post_init__(self) -> None:
        """Begin with everything."""
        self.now = self.most

    def note(self, guessed: int, right: int) -> None:
        """Learn from a pass: all right doubles the number, a miss goes to what was right and one more."""
        if guessed:
            self.now = min(self.most, 2 * self.now if right == guessed else right + 1)
