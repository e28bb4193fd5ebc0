"""A GGUF's vocabulary and merges as a tokenizer.json of the `tokenizers` library."""

import json
from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from orchestrator.tensor_parallel.errors import TokenizerError

_LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_CONTROL, _USER_DEFINED = 3, 4  # llama.cpp's token types


def tokenizer_from_metadata(metadata: Mapping[str, Any], where: str) -> dict[str, str]:
    """Build tokenizer.json; empty where the file has no vocabulary.

    Raises:
        TokenizerError: Not byte-level BPE, or a pre-tokenizer that is not handled.
    """
    model = metadata.get("tokenizer.ggml.model")
    if model is None:
        return {}
    if model != "gpt2":
        raise TokenizerError(f"Wanted byte-level BPE (gpt2), found tokenizer {model} in {where}. Use tokenizer.json.")
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    kinds: list[int] = metadata.get("tokenizer.ggml.token_type", [1] * len(tokens))
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    try:
        tokenizer = Tokenizer(models.BPE(vocab={text: i for i, text in enumerate(tokens)}, merges=merges))
    except Exception as error:  # tokenizers raises bare Exception
        raise TokenizerError(f"Wanted a vocabulary with its merges, found {error} in {where}.") from error
    tokenizer.pre_tokenizer = _pre_tokenizer(str(metadata.get("tokenizer.ggml.pre", "default")), where)
    tokenizer.decoder = decoders.ByteLevel()
    specials = [
        AddedToken(text, special=True, normalized=False)
        for text, kind in zip(tokens, kinds, strict=True)
        if kind == _CONTROL
    ]
    tokenizer.add_special_tokens(specials)
    tokenizer.add_tokens(
        [AddedToken(text, normalized=False) for text, kind in zip(tokens, kinds, strict=True) if kind == _USER_DEFINED]
    )
    return {"tokenizer.json": json.dumps(json.loads(tokenizer.to_str()))}


def _pre_tokenizer(name: str, where: str) -> Any:  # noqa: ANN401 - tokenizers is a native library
    if name in ("smollm", "starcoder", "refact", "command-r"):
        return pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    if name in ("default", "gpt-2", "gpt2"):
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    pattern = {"llama-bpe": _LLAMA3, "llama3": _LLAMA3, "qwen2": _QWEN2}.get(name)
    if pattern is None:
        raise TokenizerError(f"Wanted pre-tokenizer smollm, gpt-2, llama-bpe or qwen2, found {name} in {where}.")
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
