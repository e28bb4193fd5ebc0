"""The OpenAI-compatible requests and answers, as far as they are handled: structs and pure conversions."""

import time
import uuid
from typing import Any, Literal

import msgspec

from orchestrator.tensor_parallel.errors import PromptError
from orchestrator.tensor_parallel.jobs import Request
from orchestrator.tensor_parallel.sampling import SamplingOptions
from orchestrator.tensor_parallel.text import Text

DEFAULT_TOKENS = 256
_REFUSED = ("tools", "functions", "logit_bias", "response_format", "logprobs", "top_logprobs", "suffix", "echo")


class StreamOptions(msgspec.Struct, frozen=True):
    """`include_usage`: a last chunk with the token counts."""

    include_usage: bool | None = None


class _Common(msgspec.Struct, frozen=True, kw_only=True):
    """Fields of both kinds of request. Unknown fields are passed over: clients of other versions send them."""

    model: str = ""
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    ignore_eos: bool | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    tools: Any = None
    functions: Any = None
    logit_bias: Any = None
    response_format: Any = None
    logprobs: Any = None
    top_logprobs: Any = None
    suffix: Any = None
    echo: Any = None


class ContentPart(msgspec.Struct, frozen=True):
    """A part of a message; only text is handled."""

    type: str
    text: str = ""


class ChatMessage(msgspec.Struct, frozen=True):
    """One turn of a conversation."""

    role: str
    content: str | list[ContentPart] | None = None


class ChatRequest(_Common, frozen=True, kw_only=True):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage]
    max_completion_tokens: int | None = None


class CompletionRequest(_Common, frozen=True, kw_only=True):
    """POST /v1/completions."""

    prompt: str | list[int | str]  # a text, a list of one, or its tokens


def parse(body: bytes, kind: type[ChatRequest] | type[CompletionRequest]) -> ChatRequest | CompletionRequest:
    """Read a request.

    Raises:
        PromptError: Not valid, or it asks for something that is not handled.
    """
    try:
        asked = msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PromptError(f"Wanted a request as JSON, found: {error}.") from error
    for name in _REFUSED:
        value = getattr(asked, name)
        # logprobs 0 asks for the chosen token's
        asks = bool(value) or (name == "logprobs" and value is not None and value is not False)
        if asks and value != {"type": "text"}:
            raise PromptError(f"{name} is not handled. Leave it out.")
    if asked.n not in (None, 1):
        raise PromptError(f"Wanted n = 1, found {asked.n}: send several requests instead, they share each step.")
    for name in ("frequency_penalty", "presence_penalty"):
        if getattr(asked, name):
            raise PromptError(f"{name} is not handled. Use repetition_penalty.")
    return asked


def to_request(
    asked: ChatRequest | CompletionRequest, text: Text, *, guessing: tuple[int, int], context: int
) -> Request:
    """What the generator runs. Temperature is 1 where a client names none, as in the original.

    Args:
        asked: The request.
        text: The model's.
        guessing: Tokens that are guessed at a time, and guesses that are checked together.
        context: Most tokens of prompt and answer.

    Raises:
        PromptError: Messages that the template does not take, or too many stop strings.
    """
    limit = asked.max_tokens
    if isinstance(asked, ChatRequest):
        prompt = text.chat([{"role": message.role, "content": _content(message)} for message in asked.messages])
        given = [one for one in (asked.max_completion_tokens, limit) if one is not None]
        limit = given[0] if given else context  # up to the end of the context, as in the original
    else:
        prompt = _prompt(asked.prompt, text)
    stops = [asked.stop] if isinstance(asked.stop, str) else asked.stop or []
    if len(stops) > 16:
        raise PromptError(f"Wanted at most 16 stop strings, found {len(stops)}.")
    sampling = SamplingOptions(
        temperature=1.0 if asked.temperature is None else asked.temperature,
        top_k=asked.top_k or 0,
        top_p=1.0 if asked.top_p is None else asked.top_p,
        min_p=asked.min_p or 0.0,
        repetition_penalty=1.0 if asked.repetition_penalty is None else asked.repetition_penalty,
        seed=asked.seed,
    )
    return Request(
        prompt=tuple(prompt),
        max_tokens=DEFAULT_TOKENS if limit is None else limit,
        sampling=sampling,
        stops=tuple(stops),
        ignore_end=bool(asked.ignore_eos),
        lookup=guessing[0],
        drafts=guessing[1],
    )


def _prompt(prompt: str | list[int | str], text: Text) -> list[int]:
    texts = [prompt] if isinstance(prompt, str) else [part for part in prompt if isinstance(part, str)]
    if not texts:
        return [part for part in prompt if isinstance(part, int)]
    if isinstance(prompt, list) and len(prompt) > 1:
        raise PromptError(
            f"Wanted one prompt, found {len(prompt)}: send several requests instead, they share each step."
        )
    return text.encode(texts[0])


def _content(message: ChatMessage) -> str:
    if isinstance(message.content, list):
        other = [part.type for part in message.content if part.type != "text"]
        if other:
            raise PromptError(f"Wanted text, found a part of type {other[0]}: this model reads text alone.")
        return "".join(part.text for part in message.content)
    return message.content or ""


class Answer:
    """Makes the answer's JSON, whole or in chunks.

    Args:
        model: Name of the served model.
        kind: Of the request.
        prompt_tokens: For the usage.
    """

    def __init__(self, model: str, kind: Literal["chat", "text"], prompt_tokens: int) -> None:
        self._chat = kind == "chat"
        self._identifier = f"{'chatcmpl' if self._chat else 'cmpl'}-{uuid.uuid4().hex[:24]}"
        self._created, self._model, self._prompt_tokens = int(time.time()), model, prompt_tokens

    def whole(self, text: str, finish: str, completion_tokens: int) -> bytes:
        """The answer of a request that does not stream."""
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish, "logprobs": None}
        choice |= {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}
        return self._encode("chat.completion" if self._chat else "text_completion", [choice], completion_tokens)

    def chunk(self, text: str, finish: str | None, *, first: bool = False) -> bytes:
        """One server-sent event."""
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish, "logprobs": None}
        delta = ({"role": "assistant"} if first else {}) | ({"content": text} if text or first else {})
        choice |= {"delta": delta} if self._chat else {"text": text}
        return self._event(self._encode(self._chunk_name, [choice], None))

    def usage(self, completion_tokens: int) -> bytes:
        """The last event for clients that ask for usage."""
        return self._event(self._encode(self._chunk_name, [], completion_tokens))

    @property
    def _chunk_name(self) -> str:
        return "chat.completion.chunk" if self._chat else "text_completion"

    @staticmethod
    def _event(data: bytes) -> bytes:
        return b"data: " + data + b"\n\n"

    def _encode(self, name: str, choices: list[dict[str, Any]], completion_tokens: int | None) -> bytes:
        value: dict[str, Any] = {"id": self._identifier, "object": name, "created": self._created, "model": self._model}
        value["choices"] = choices
        if completion_tokens is not None:
            total = self._prompt_tokens + completion_tokens
            value["usage"] = {
                "prompt_tokens": self._prompt_tokens,
                "completion_tokens": completion_tokens,
                "total_tokens": total,
            }
        return msgspec.json.encode(value)


def error_body(message: str, kind: str, code: str) -> bytes:
    """An error as OpenAI's clients read it."""
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": None, "code": code}})
