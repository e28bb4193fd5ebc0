"""Text to tokens and back: the tokenizer, the chat template, streamed text and stop strings."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from orchestrator.tensor_parallel.chat_template import ChatTemplate
from orchestrator.tensor_parallel.errors import ContextLengthError, PromptError, TokenizerError
from orchestrator.tensor_parallel.shard_set import read_set
from orchestrator.tensor_parallel.template_child import MOST_CHARACTERS

_PIECE = 1 << 14  # characters that are counted at a time
_SLACK = 2  # a text cut into pieces may have more tokens than the whole, and a normaliser may shorten it


class Text:
    """The tokenizer and chat template of a shard set.

    Args:
        folder: The set's.
        context: Most tokens of a prompt and its answer; the model's own where none is given.

    Raises:
        TokenizerError: None there, or damaged.
        ShardError: `set.json` is damaged.
    """

    def __init__(self, folder: Path, *, context: int | None = None) -> None:
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise TokenizerError(
                f"Wanted tokenizer.json, found none in {folder}. Put the model's tokenizer.json beside its weights and shard again."
            )
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
            self._tokenizer.no_truncation()  # a training script may have stored both; they are for its batches
            self._tokenizer.no_padding()
            self._template = _read_template(folder)
            special = json.loads((folder / "special_tokens.json").read_text(encoding="utf-8"))
            ends = special.get("end_ids")
            self.end_ids = frozenset([ends] if isinstance(ends, int) else ends or ())
            self._names = {key: str(special[key]) for key in ("bos_token", "eos_token") if key in special}
        except Exception as error:  # tokenizers raises bare Exception
            raise TokenizerError(
                f"Wanted a tokenizer, found {error!r} at {path}. Shard the checkpoint again."
            ) from error
        if not self.end_ids and "eos_token" in self._names:
            number = self._tokenizer.token_to_id(self._names["eos_token"])
            self.end_ids = frozenset(() if number is None else (number,))
        if context is None and (folder / "set.json").is_file():
            context = read_set(folder).config.context
        self._context = context
        pieces = (self._tokenizer.id_to_token(number) or "" for number in range(self._tokenizer.get_vocab_size()))
        self._longest = max((len(piece.encode()) for piece in pieces), default=1)  # bytes; one by one: no second copy

    def encode(self, text: str, *, add_special: bool = True) -> list[int]:
        """Tokens of a text.

        Raises:
            ContextLengthError: It cannot fit into the context; found without tokenising all of it.
        """
        self._check_length(text)
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special).ids
        return ids

    def _check_length(self, text: str) -> None:
        """Refuse what is far too long before it costs memory and time; whoever runs the tokens knows the exact limit."""
        if self._context is None or len(text) <= _PIECE:
            return
        most = _SLACK * self._context
        found = 0 if len(text.encode()) <= most * self._longest else most + 1
        for at in range(0, len(text), _PIECE):
            if found > most:
                raise ContextLengthError(
                    f"Wanted a prompt of 1 to {self._context - 1} tokens, found far more in a text of {len(text)} characters. "
                    "Shorten it, or serve with a larger --context."
                )
            found += len(self._tokenizer.encode(text[at : at + _PIECE], add_special_tokens=False).ids)

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of tokens, without special ones."""
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=True)
        return text

    def chat(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        """Tokens of a conversation, up to where the assistant's next turn begins.

        Raises:
            PromptError: The model has no chat template, or it refuses these messages, fails on them or wants too much time or memory.
            ContextLengthError: As `encode`.
        """
        if self._template is None:
            raise PromptError("Wanted a model with a chat template, found none. Use /v1/completions.")
        given = "".join(str(message.get("content", "")) for message in messages)
        if len(given) > MOST_CHARACTERS:  # more than the template's process takes
            self._check_length(given)
        values = {"bos_token": "", "eos_token": "", "tools": None, **self._names}
        text = self._template.render({"messages": list(messages), "add_generation_prompt": True, **values})
        return self.encode(text, add_special=False)


def _read_template(folder: Path) -> ChatTemplate | None:
    path = folder / "chat_template.jinja"
    return ChatTemplate(path.read_text(encoding="utf-8")) if path.is_file() else None


class TextStream:
    """Turns tokens into text piece by piece: whole characters only, and nothing behind a stop string.

    Args:
        text: The tokenizer.
        stops: Strings that end the text; they are not part of it.
    """

    def __init__(self, text: Text, stops: Sequence[str]) -> None:
        self._text, self._stops = text, [stop for stop in stops if stop]
        self._tokens: list[int] = []
        self._from = self._read = (
            0  # tokens before `_read` are in the text; those from `_from` on are their surroundings
        )
        self._held_back = ""  # may begin a stop string
        self.stopped = False

    def add(self, token: int) -> str:
        """The text that one more token makes certain."""
        self._tokens.append(token)
        return self._advance(final=False)

    def finish(self) -> str:
        """What was held back."""
        return "" if self.stopped else self._advance(final=True)

    def _advance(self, *, final: bool) -> str:
        fresh = self._held_back + self._decoded(final=final)
        hits = [at for at in (fresh.find(stop) for stop in self._stops) if at >= 0]
        if hits:
            self.stopped = True
            return fresh[: min(hits)]
        held = 0 if final else self._held(fresh)
        self._held_back = fresh[len(fresh) - held :]
        return fresh[: len(fresh) - held]

    def _decoded(self, *, final: bool) -> str:
        """Text of the tokens that are not read yet; none in the middle of a character. Cost does not grow with the text."""
        known = self._text.decode(self._tokens[self._from : self._read])
        whole = self._text.decode(self._tokens[self._from :])
        if not final and whole.endswith("\ufffd"):
            return ""
        self._from, self._read = self._read, len(self._tokens)
        return whole[len(known) :]

    def _held(self, fresh: str) -> int:
        """Characters at the end that may begin a stop string."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for size in range(min(longest, len(fresh)), 0, -1):
            if any(stop.startswith(fresh[-size:]) for stop in self._stops):
                return size
        return 0
