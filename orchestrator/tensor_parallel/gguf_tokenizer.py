"""A GGUF's vocabulary as a tokenizer.json of the `tokenizers` library: byte-level BPE with its merges, or SentencePiece with scores."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from orchestrator.tensor_parallel.checkpoint import read_text
from orchestrator.tensor_parallel.errors import TokenizerError

_LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_LLAMA3_NAMES = ("llama-bpe", "llama3", "llama-v3")
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4  # llama.cpp's token types
_SPACE = "\u2581"  # how SentencePiece writes a space


def tokenizer_from_metadata(metadata: Mapping[str, Any], where: str) -> dict[str, str]:
    """Build tokenizer.json; one that lies beside the file goes before its metadata. Empty where there is neither.

    Raises:
        TokenizerError: Another kind than these two, a pre-tokenizer that is not handled, or incomplete metadata.
    """
    beside = Path(where).with_name("tokenizer.json")
    if beside.is_file():
        return {"tokenizer.json": read_text(beside)}
    model = metadata.get("tokenizer.ggml.model")
    if model is None:
        return {}
    if model not in ("gpt2", "llama"):
        raise TokenizerError(
            f"Wanted byte-level BPE (gpt2) or SentencePiece (llama), found tokenizer {model} in {where}. "
            "Put the model's tokenizer.json beside the file."
        )
    try:
        tokenizer = _byte_level(metadata, where) if model == "gpt2" else _sentencepiece(metadata)
        _add_special(tokenizer, metadata)
    except TokenizerError:
        raise
    except Exception as error:  # tokenizers raises bare Exception
        raise TokenizerError(f"Wanted a vocabulary with its merges or scores, found {error!r} in {where}.") from error
    return {"tokenizer.json": json.dumps(json.loads(tokenizer.to_str()))}


def _byte_level(metadata: Mapping[str, Any], where: str) -> Tokenizer:
    name = str(metadata.get("tokenizer.ggml.pre", "default"))
    vocabulary = {text: i for i, text in enumerate(metadata["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=name in _LLAMA3_NAMES))
    tokenizer.pre_tokenizer = _pre_tokenizer(name, where)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(metadata: Mapping[str, Any]) -> Tokenizer:
    """SentencePiece's BPE: of all neighbours those are joined first whose piece has the highest score; unknown characters are bytes."""
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    scores: list[float] = metadata["tokenizer.ggml.scores"]
    kinds = _kinds(metadata)
    unknown = next((text for text, kind in zip(tokens, kinds, strict=True) if kind == _UNKNOWN), None)
    vocabulary = {text: i for i, text in enumerate(tokens)}
    merges = _merges(vocabulary, scores)
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    spaces = normalizers.Replace(" ", _SPACE)
    joined = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if metadata.get("tokenizer.ggml.add_space_prefix", True):
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), spaces])
        joined.append(decoders.Strip(" ", 1, 0))
    else:
        tokenizer.normalizer = spaces
    tokenizer.decoder = decoders.Sequence(joined)
    return tokenizer


def _merges(vocabulary: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Every way to make a piece of two others, the highest score first."""
    found = [
        (-scores[number], number, text[:at], text[at:])
        for text, number in vocabulary.items()
        for at in range(1, len(text))
        if text[:at] in vocabulary and text[at:] in vocabulary
    ]
    return [(left, right) for _, _, left, right in sorted(found)]


def _add_special(tokenizer: Tokenizer, metadata: Mapping[str, Any]) -> None:
    """Control tokens, tokens of the model's maker, and the token in front of every text where the model wants one."""
    tokens, kinds = metadata["tokenizer.ggml.tokens"], _kinds(metadata)
    pairs = list(zip(tokens, kinds, strict=True))
    tokenizer.add_special_tokens(
        [AddedToken(text, special=True, normalized=False) for text, k in pairs if k == _CONTROL]
    )
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text, kind in pairs if kind == _USER_DEFINED])
    usual = metadata["tokenizer.ggml.model"] == "llama" or metadata.get("tokenizer.ggml.pre") in _LLAMA3_NAMES
    number = metadata.get("tokenizer.ggml.bos_token_id")
    if number is not None and metadata.get("tokenizer.ggml.add_bos_token", usual):
        first = tokens[int(number)]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[first, "$A"], pair=[first, "$A", first, "$B"], special_tokens=[(first, int(number))]
        )


def _kinds(metadata: Mapping[str, Any]) -> list[int]:
    kinds: list[int] = metadata.get("tokenizer.ggml.token_type", [1] * len(metadata["tokenizer.ggml.tokens"]))
    return kinds


def _pre_tokenizer(name: str, where: str) -> Any:  # noqa: ANN401 - tokenizers is a native library
    if name in ("smollm", "starcoder", "refact", "command-r"):
        return pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    if name in ("default", "gpt-2", "gpt2"):
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    pattern = _LLAMA3 if name in _LLAMA3_NAMES else {"qwen2": _QWEN2}.get(name)
    if pattern is None:
        raise TokenizerError(
            f"Wanted pre-tokenizer smollm, gpt-2, llama-bpe or qwen2, found {name} in {where}. "
            "Put the model's tokenizer.json beside the file."
        )
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
