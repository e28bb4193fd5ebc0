"""Text to tokens and back: the tokenizer, the chat template in a sandbox, streamed text and stop strings."""

import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from orchestrator.tensor_parallel.errors import PromptError, TokenizerError

_TEMPLATE_LIMIT = 1 << 20


class Text:
    """The tokenizer and chat template of a shard set.

    Raises:
        TokenizerError: None there, or damaged.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise TokenizerError(
                f"Wanted tokenizer.json, found none in {folder}. Put the model's tokenizer.json beside its weights and shard again."
            )
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
            self._tokenizer.no_truncation()  # a training script may have stored both; they are for its batches
            self._tokenizer.no_padding()
            special = json.loads((folder / "special_tokens.json").read_text())
        except Exception as error:  # tokenizers raises bare Exception
            raise TokenizerError(f"Wanted a tokenizer, found {error} at {path}.") from error
        ends = special.get("end_ids")
        self.end_ids = frozenset([ends] if isinstance(ends, int) else ends or ())
        self._names = {key: special[key] for key in ("bos_token", "eos_token") if key in special}
        if not self.end_ids and "eos_token" in self._names:
            number = self._tokenizer.token_to_id(self._names["eos_token"])
            self.end_ids = frozenset(() if number is None else (number,))
        template = folder / "chat_template.jinja"
        self._template = template.read_text() if template.is_file() else None

    def encode(self, text: str, *, add_special: bool = True) -> list[int]:
        """Tokens of a text."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special).ids
        return ids

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of tokens, without special ones."""
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=True)
        return text

    def chat(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        """Tokens of a conversation, up to where the assistant's next turn begins.

        Raises:
            PromptError: The model has no chat template, or it refuses these messages.
        """
        if self._template is None:
            raise PromptError("Wanted a model with a chat template, found none. Use /v1/completions.")
        environment = (
            ImmutableSandboxedEnvironment(  # as transformers does: templates ask for fields that are not there
                trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
            )
        )
        environment.globals |= {"raise_exception": _raise, "strftime_now": _now}
        environment.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
        values = {"bos_token": "", "eos_token": "", "tools": None, **self._names}
        try:
            template = environment.from_string(self._template[:_TEMPLATE_LIMIT])
            text = template.render(messages=list(messages), add_generation_prompt=True, **values)
        except (TemplateError, TypeError, KeyError, ValueError) as error:
            raise PromptError(f"Wanted messages that the model's chat template takes, found: {error}.") from error
        return self.encode(text, add_special=False)


def _raise(message: str) -> None:
    raise TemplateError(message)


def _now(pattern: str) -> str:
    """Templates of newer models name the date."""
    return datetime.datetime.now().strftime(pattern)


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
