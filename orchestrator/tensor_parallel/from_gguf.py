"""GGUF files as checkpoints: slices are dequantised one by one; rotary row order is turned back."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize

from orchestrator.tensor_parallel.checkpoint import Array, check_shape
from orchestrator.tensor_parallel.config import config_from_gguf
from orchestrator.tensor_parallel.errors import CheckpointError
from orchestrator.tensor_parallel.gguf_tokenizer import tokenizer_from_metadata
from orchestrator.tensor_parallel.layout import tensor_shapes

_LAYER = {
    "attention_norm": "attn_norm.weight",
    "q": "attn_q.weight",
    "k": "attn_k.weight",
    "v": "attn_v.weight",
    "o": "attn_output.weight",
    "q_bias": "attn_q.bias",
    "k_bias": "attn_k.bias",
    "v_bias": "attn_v.bias",
    "q_norm": "attn_q_norm.weight",
    "k_norm": "attn_k_norm.weight",
    "ffn_norm": "ffn_norm.weight",
    "gate": "ffn_gate.weight",
    "up": "ffn_up.weight",
    "down": "ffn_down.weight",
}
_OUTSIDE = {"embedding": "token_embd.weight", "final_norm": "output_norm.weight", "head": "output.weight"}
_LAYERS = re.compile(r"blk\.(\d+)\.(.+)")
_UNUSED = ("attn_rot_embd", "attn_rot_embd.weight")  # old converters' plain frequencies, which llama.cpp does not read
_ROWS_AT_ONCE = 1024
_HANDLED = {
    GGMLQuantizationType[name]
    for name in ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
}


class GgufCheckpoint:
    """One .gguf file, memory-mapped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            reader = GGUFReader(path)
        except (ValueError, IndexError, KeyError, OSError, OverflowError, MemoryError) as error:
            raise CheckpointError(f"Wanted a GGUF file, found {error!r} at {path}. Fetch it again.") from error
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self._metadata = {name: field.contents() for name, field in reader.fields.items()}
        if any("rope_freqs" in name or "rope_factors" in name for name in self._tensors):
            raise CheckpointError(f"Rotary factors in a GGUF are not handled ({path}). Use the safetensors files.")
        tied = _OUTSIDE["head"] not in self._tensors
        self.config = config_from_gguf(self._metadata, tied=tied, where=str(path))
        self._check_tensors()

    def _check_tensors(self) -> None:
        """Every tensor is one that the blocks use, of the shape that they want: another would change results."""
        parts = {full: name for name, full in (*_OUTSIDE.items(), *_LAYER.items())}
        wanted = tensor_shapes(self.config)
        for full, tensor in self._tensors.items():
            inside = _LAYERS.fullmatch(full)
            if inside is not None and inside[2] in _UNUSED:
                continue
            name = parts.get(inside[2] if inside is not None else full)
            if name not in wanted or (inside is not None and int(inside[1]) >= self.config.layers):
                raise CheckpointError(
                    f"Wanted the tensors of a {self.config.family} of {self.config.layers} layers, found {full} in "
                    f"{self.path}, which is not handled. Use a model without it."
                )
            check_shape(full, tuple(int(size) for size in reversed(tensor.shape)), wanted[name], self.path)

    def _tensor(self, name: str, layer: int) -> Any:  # noqa: ANN401 - gguf.ReaderTensor
        full = _OUTSIDE[name] if layer < 0 else f"blk.{layer}.{_LAYER[name]}"
        tensor = self._tensors.get(full)
        if tensor is None:
            raise CheckpointError(f"Wanted tensor {full}, found none in {self.path}.")
        if tensor.tensor_type not in _HANDLED:
            raise CheckpointError(f"{full} has type {tensor.tensor_type.name}, which is not handled ({self.path}).")
        return tensor

    def rows(self, name: str, layer: int, start: int, stop: int) -> Array:
        """As `Checkpoint.rows`.

        Raises:
            CheckpointError: Missing, or of a type that is not handled.
        """
        tensor = self._tensor(name, layer)
        rotary = name in ("q", "k", "q_bias", "k_bias") and self.config.family == "llama"
        rows = _decoded(tensor, start, stop).reshape(stop - start, -1)
        return _to_halves(rows, self.config.head_dim) if rotary else rows

    def columns(self, name: str, layer: int, start: int, stop: int) -> Array:
        """As `Checkpoint.columns`; all rows are decoded, `_ROWS_AT_ONCE` at a time.

        Raises:
            CheckpointError: As `rows`.
        """
        tensor = self._tensor(name, layer)
        count = tensor.data.shape[0]
        out = np.empty((stop - start, count), np.float32)
        for first in range(0, count, _ROWS_AT_ONCE):
            last = min(count, first + _ROWS_AT_ONCE)
            rows = _decoded(tensor, first, last)
            out[:, first:last] = rows[:, start:stop].T
        return out

    def tokenizer_files(self) -> dict[str, str]:
        """As `Checkpoint.tokenizer_files`, built from the metadata.

        Raises:
            TokenizerError: A tokenizer of a kind that is not handled.
        """
        files = tokenizer_from_metadata(self._metadata, str(self.path))
        ends = [self._metadata.get("tokenizer.ggml.eos_token_id"), self._metadata.get("tokenizer.ggml.eot_token_id")]
        tokens = self._metadata.get("tokenizer.ggml.tokens", [])
        special = {"end_ids": sorted({int(end) for end in ends if end is not None})}
        for key, name in (("bos_token", "bos_token_id"), ("eos_token", "eos_token_id")):
            number = self._metadata.get(f"tokenizer.ggml.{name}")
            if number is not None and int(number) < len(tokens):
                special[key] = tokens[int(number)]
        template = self._metadata.get("tokenizer.chat_template")
        if template:
            files["chat_template.jinja"] = str(template)
        files["special_tokens.json"] = json.dumps(special)
        return files


def _decoded(tensor: Any, start: int, stop: int) -> Array:  # noqa: ANN401
    rows = tensor.data[start:stop]
    if tensor.tensor_type in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
        return np.asarray(rows, np.float32)
    decoded: Array = dequantize(rows, tensor.tensor_type)
    return decoded


def _to_halves(rows: Array, head_dim: int) -> Array:
    """Turn llama.cpp's interleaved rotary rows (0, d/2, 1, d/2 + 1, ..) back to halves; whole heads only."""
    heads = rows.reshape(-1, head_dim // 2, 2, rows.shape[1])  # (heads, pair, half, width)
    return np.ascontiguousarray(heads.swapaxes(1, 2).reshape(rows.shape))
