"""Prompt lookup: guess the next tokens by finding the last few earlier in the text. Pure.

A guess costs one pass whether it is right or not, so the result is that of decoding token by token, only sooner.
"""

from collections.abc import Sequence


def guess(tokens: Sequence[int], *, longest: int = 3, count: int = 8) -> tuple[int, ...]:
    """The tokens that followed the most recent earlier occurrence of the text's end.

    Args:
        tokens: Prompt and everything so far.
        longest: Tokens of the end that are looked for; shorter ends are tried when that is not found.
        count: Most tokens to guess.

    Returns:
        At most `count` tokens; none when the end is new.
    """
    for size in range(min(longest, len(tokens) - 1), 0, -1):
        end = tuple(tokens[-size:])
        for start in range(len(tokens) - size - 1, -1, -1):
            if tokens[start] == end[0] and tuple(tokens[start : start + size]) == end:
                return tuple(tokens[start + size : start + size + count])
    return ()


def accepted(guessed: Sequence[int], chosen: Sequence[int]) -> int:
    """How many guessed tokens are those that were chosen behind each earlier one."""
    agreed = 0
    while agreed < len(guessed) and guessed[agreed] == chosen[agreed]:
        agreed += 1
    return agreed
