"""Checkpoints, read by slices: the whole model is never in memory. One reader for each format behind one interface."""

import json
import logging
import re
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open

from orchestrator.tensor_parallel.config import ModelConfig, config_from_hf
from orchestrator.tensor_parallel.errors import CheckpointError, TokenizerError
from orchestrator.tensor_parallel.layout import tensor_shapes

log = logging.getLogger(__name__)

Array = npt.NDArray[np.float32]

_HF_LAYER = {
    "attention_norm": "input_layernorm.weight",
    "q": "self_attn.q_proj.weight",
    "k": "self_attn.k_proj.weight",
    "v": "self_attn.v_proj.weight",
    "o": "self_attn.o_proj.weight",
    "q_bias": "self_attn.q_proj.bias",
    "k_bias": "self_attn.k_proj.bias",
    "v_bias": "self_attn.v_proj.bias",
    "q_norm": "self_attn.q_norm.weight",
    "k_norm": "self_attn.k_norm.weight",
    "ffn_norm": "post_attention_layernorm.weight",
    "gate": "mlp.gate_proj.weight",
    "up": "mlp.up_proj.weight",
    "down": "mlp.down_proj.weight",
}
_HF_LAYERS = re.compile(r"model\.layers\.(\d+)\.(.+)")
_HF_OUTSIDE = {"embedding": "model.embed_tokens.weight", "final_norm": "model.norm.weight", "head": "lm_head.weight"}


class Checkpoint(Protocol):
    """Named weights of a model as float32 slices, in the order of Hugging Face's own layout."""

    config: ModelConfig
    path: Path

    def rows(self, name: str, layer: int, start: int, stop: int) -> Array:
        """Rows [start, stop) of a tensor, (rows, width); a vector counts as rows of width 1."""
        ...

    def columns(self, name: str, layer: int, start: int, stop: int) -> Array:
        """Columns [start, stop) of a matrix, transposed: (columns, rows of the tensor)."""
        ...

    def tokenizer_files(self) -> dict[str, str]:
        """tokenizer.json and, where there is one, chat_template.jinja: name to text."""
        ...


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a folder with config.json and safetensors files, or a .gguf file.

    Raises:
        CheckpointError: Neither, one that cannot be read, or tensors of other shapes than the configuration says.
    """
    if path.is_dir():
        return SafetensorsCheckpoint(path)
    if path.suffix == ".gguf" and path.is_file():
        from orchestrator.tensor_parallel.from_gguf import GgufCheckpoint

        return GgufCheckpoint(path)
    raise CheckpointError(
        f"Wanted a folder with config.json and *.safetensors, or a .gguf file, found {'nothing' if not path.exists() else 'another file'} at {path}."
    )


class SafetensorsCheckpoint:
    """A Hugging Face folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = config_from_hf(_read_json(path / "config.json"), str(path / "config.json"))
        self._files = self._open_files()
        self._where = {name: file for file in self._files for name in file.keys()}  # noqa: SIM118 - not a dict
        if _HF_OUTSIDE["head"] not in self._where and not self.config.tied_embedding:
            raise CheckpointError(f"Wanted lm_head.weight as config.json says (untied), found none in {path}.")
        self._check_shapes()

    def _check_shapes(self) -> None:
        """All tensors that will be read, from their headers; layers beyond the configuration's are passed over, as transformers does."""
        parts = {full: name for name, full in (*_HF_OUTSIDE.items(), *_HF_LAYER.items())}
        wanted, beyond = tensor_shapes(self.config), set[int]()
        for full, file in self._where.items():
            inside = _HF_LAYERS.fullmatch(full)
            if inside is not None and int(inside[1]) >= self.config.layers:
                beyond.add(int(inside[1]))
                continue
            name = parts.get(inside[2] if inside is not None else full)
            if name in wanted:
                check_shape(full, tuple(file.get_slice(full).get_shape()), wanted[name], self.path)
        if beyond:
            log.warning(
                "%s holds layers %d to %d beside the %d that config.json names (num_hidden_layers): they are not used. "
                "If they belong to the model, its config.json is another model's: fetch it again.",
                self.path, min(beyond), max(beyond), self.config.layers,
            )  # fmt: skip

    def _open_files(self) -> list[Any]:
        names = sorted(self.path.glob("*.safetensors"))
        if not names:
            raise CheckpointError(f"Wanted *.safetensors, found none in {self.path}.")
        files = []
        for name in names:
            try:
                files.append(safe_open(name, framework="pt"))
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"Wanted a safetensors file, found {error} at {name}. Fetch it again.") from error
        return files

    def _slice(self, name: str, layer: int) -> Any:  # noqa: ANN401 - safetensors is a native library
        full = _HF_OUTSIDE[name] if layer < 0 else f"model.layers.{layer}.{_HF_LAYER[name]}"
        if full not in self._where:
            raise CheckpointError(f"Wanted tensor {full}, found none in {self.path}: a file of the set is missing.")
        return self._where[full].get_slice(full)

    def rows(self, name: str, layer: int, start: int, stop: int) -> Array:
        """As `Checkpoint.rows`.

        Raises:
            CheckpointError: Missing.
        """
        tensor = self._slice(name, layer)
        return _as_float(tensor[start:stop]).reshape(stop - start, -1)

    def columns(self, name: str, layer: int, start: int, stop: int) -> Array:
        """As `Checkpoint.columns`.

        Raises:
            CheckpointError: Missing.
        """
        tensor = self._slice(name, layer)
        return np.ascontiguousarray(_as_float(tensor[:, start:stop]).T)

    def tokenizer_files(self) -> dict[str, str]:
        """As `Checkpoint.tokenizer_files`; empty without a tokenizer.json.

        Raises:
            TokenizerError: A file that is not UTF-8, or special tokens that are none.
            CheckpointError: A settings file that is not JSON.
        """
        tokenizer = self.path / "tokenizer.json"
        if not tokenizer.is_file():
            return {}
        files = {"tokenizer.json": read_text(tokenizer)}
        settings_file = self.path / "tokenizer_config.json"
        settings = _read_json(settings_file) if settings_file.is_file() else {}
        template = self.path / "chat_template.jinja"
        if template.is_file():
            files["chat_template.jinja"] = read_text(template)
        elif (named := _chat_template(settings.get("chat_template"))) is not None:
            files["chat_template.jinja"] = named
        names = {key: settings[key] for key in ("bos_token", "eos_token") if settings.get(key)}
        special = {key: _token_text(value, key, settings_file) for key, value in names.items()}
        generation = self.path / "generation_config.json"
        files["special_tokens.json"] = json.dumps({**special, "end_ids": _end_ids(generation)})
        return files


def read_text(path: Path) -> str:
    """Text of a tokenizer's file.

    Raises:
        TokenizerError: It cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"Wanted text in UTF-8, found {error} at {path}. Fetch it again.") from error


def check_shape(full: str, found: tuple[int, ...], wanted: tuple[int, ...], path: Path) -> None:
    """Compare a tensor's whole shape with what the configuration says: a larger one would be cut without a word.

    Raises:
        CheckpointError: They differ.
    """
    if found != wanted:
        raise CheckpointError(
            f"Wanted {full} of shape {wanted} as the configuration says, found {found} in {path}. "
            "One of them belongs to another model: fetch both again."
        )


def _chat_template(value: Any) -> str | None:  # noqa: ANN401 - a template, or several with names
    if isinstance(value, list):
        value = {one.get("name"): one.get("template") for one in value if isinstance(one, dict)}.get("default")
    return value if isinstance(value, str) else None


def _token_text(value: Any, key: str, where: Path) -> str:  # noqa: ANN401 - a string, or a struct around it
    text = value.get("content") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise TokenizerError(f"Wanted the text of {key}, found {value!r} in {where}. Fetch it again.")
    return text


def _end_ids(path: Path) -> int | list[int] | None:
    """Tokens that end a text as generation_config.json says, where it is there and says so."""
    found = (_read_json(path) if path.is_file() else {}).get("eos_token_id")
    for one in found if isinstance(found, list) else [found]:
        if type(one) is not int and found is not None:
            raise TokenizerError(
                f"Wanted numbers of tokens as eos_token_id, found {found!r} in {path}. Fetch it again."
            )
    return found


def _as_float(tensor: Any) -> Array:  # noqa: ANN401 - torch is untyped here
    if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise CheckpointError(f"Wanted float32, float16 or bfloat16 weights, found {tensor.dtype}.")
    array: Array = tensor.to(torch.float32).numpy()
    return array


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"Wanted JSON, found {error} at {path}.") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"Wanted a JSON object, found {type(values).__name__} at {path}.")
    return values
