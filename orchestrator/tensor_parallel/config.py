"""The architecture of a decoder-only model, read from Hugging Face's config.json or from a GGUF's metadata."""

import math
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from orchestrator.tensor_parallel.errors import CheckpointError

Family = Literal["llama", "qwen2", "qwen3", "gemma"]
Encoding = Literal["float32", "int8", "int4"]
_HF_FAMILIES: dict[str, Family] = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "GemmaForCausalLM": "gemma",
}
_GGUF_FAMILIES: dict[str, Family] = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma": "gemma"}
_LARGEST_SIZE = (1 << 31) - 1
_MOST_LAYERS = 1 << 14
_GGUF_VARIANTS: dict[str, tuple[float, ...]] = {  # what changes the function computed, and values that do not
    "expert_count": (0,),
    "rope.scaling.factor": (0, 1),
    "rope.scale_linear": (0, 1),
    "attention.clamp_kqv": (0,),
    "attn_logit_softcapping": (0,),
    "final_logit_softcapping": (0,),
    "logit_scale": (0, 1),
    "residual_scale": (0, 1),
    "embedding_scale": (0, 1),
}


class RopeScaling(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The "llama3" rule: long wavelengths are stretched by `factor`, those in between are blended."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the blocks, the cut and the planner need to know of a model."""

    family: Family
    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int
    norm_eps: float
    rope_base: float
    rope_scaling: RopeScaling | None = None
    tied_embedding: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    weights: Encoding = "float32"  # as stored in a shard set; the table and lm_head have at least 8 bit
    norm_offset: float = 0.0  # added to RMSNorm's weight: Gemma's own files store w - 1, its GGUFs store w

    def __post_init__(self) -> None:
        sizes = ("layers", "hidden", "ffn", "heads", "kv_heads", "head_dim", "vocabulary", "context")
        for name in sizes:
            most = _MOST_LAYERS if name == "layers" else _LARGEST_SIZE
            if not 1 <= getattr(self, name) <= most:
                raise CheckpointError(
                    f"Wanted {name} of 1 to {most}, found {getattr(self, name)}. The checkpoint is damaged: fetch it again."
                )
        if self.heads % self.kv_heads:
            raise CheckpointError(f"Wanted heads in whole groups, found {self.heads} over {self.kv_heads} KV heads.")
        if self.head_dim % 2:
            raise CheckpointError(f"Wanted an even head size for rotary positions, found {self.head_dim}.")
        if not (math.isfinite(self.norm_eps) and math.isfinite(self.rope_base) and self.rope_base > 0):
            raise CheckpointError(f"Wanted finite norm_eps and rope_base > 0, found {self.norm_eps}, {self.rope_base}.")

    def encoded(self, weights: Encoding) -> "ModelConfig":
        """The model with its matrices stored in another encoding.

        Raises:
            CheckpointError: Sizes that are not whole tiles of 16 x 32.
        """
        odd = [name for name in ("hidden", "head_dim", "ffn") if getattr(self, name) % 32]
        odd += ["vocabulary"] if self.vocabulary % 16 else []
        if weights != "float32" and odd:
            found = ", ".join(f"{name} {getattr(self, name)}" for name in odd)
            raise CheckpointError(
                f"Wanted multiples of 32 (vocabulary: 16) for {weights} weights, found {found}. Use --weights float32."
            )
        return msgspec.structs.replace(self, weights=weights)

    @property
    def group(self) -> int:
        """Query heads that share one key-value head."""
        return self.heads // self.kv_heads

    @property
    def embedding_scale(self) -> float:
        """Gemma multiplies embeddings by sqrt(hidden)."""
        return math.sqrt(self.hidden) if self.family == "gemma" else 1.0


def config_from_hf(values: Mapping[str, Any], where: str) -> ModelConfig:
    """Read config.json.

    Raises:
        CheckpointError: An architecture that is not handled, a missing value, or a rule (sliding window, rope scaling)
            that would change results.
    """
    architectures = values.get("architectures") or ["none"]
    named = architectures[0] if isinstance(architectures, list) else architectures
    family = _HF_FAMILIES.get(str(named))
    if family is None:
        raise CheckpointError(f"Wanted one of {', '.join(_HF_FAMILIES)}, found architecture {named} in {where}.")
    try:
        _refuse_variants(values, family, where)
        return _hf_config(values, family, where)
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise CheckpointError(f"Wanted a complete config.json, found {error!r} in {where}. Fetch it again.") from error


def _hf_config(values: Mapping[str, Any], family: Family, where: str) -> ModelConfig:
    rope = _rope_values(values, "rope_parameters")
    heads = int(values["num_attention_heads"])
    return ModelConfig(
        family=family,
        layers=int(values["num_hidden_layers"]),
        hidden=int(values["hidden_size"]),
        ffn=int(values["intermediate_size"]),
        heads=heads,
        kv_heads=int(values.get("num_key_value_heads") or heads),
        head_dim=int(values.get("head_dim") or values["hidden_size"] // heads),
        vocabulary=int(values["vocab_size"]),
        context=int(values["max_position_embeddings"]),
        norm_eps=float(values["rms_norm_eps"]),
        rope_base=float(rope.get("rope_theta") or values.get("rope_theta") or 10_000.0),
        rope_scaling=_rope_scaling(_rope_values(values, "rope_scaling") or rope, where),
        tied_embedding=bool(values.get("tie_word_embeddings", family == "gemma")),
        qkv_bias=family == "qwen2" or bool(values.get("attention_bias", False)),
        qk_norm=family == "qwen3",
        norm_offset=1.0 if family == "gemma" else 0.0,
    )


def _rope_values(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The object of this name; empty where there is none.

    Raises:
        TypeError: Something else than an object.
    """
    found = values.get(name) or {}
    if not isinstance(found, dict):
        raise TypeError(f"{name} is no object: {found!r}")
    return found


def _refuse_variants(values: Mapping[str, Any], family: Family, where: str) -> None:
    """Settings that change the function computed and that the blocks do not have."""
    window = values.get("sliding_window")
    if window and values.get("use_sliding_window", family == "llama") and window < values["max_position_embeddings"]:
        raise CheckpointError(f"Sliding-window attention ({window}) is not handled; found it in {where}.")
    if values.get("mlp_bias"):
        raise CheckpointError(f"Biases in the FFN are not handled; found mlp_bias in {where}.")
    if values.get("attention_bias") and family != "qwen2":
        raise CheckpointError(f"A bias on the attention's output is not handled; found attention_bias in {where}.")
    wanted = "gelu_pytorch_tanh" if family == "gemma" else "silu"
    found = values.get("hidden_activation") or values.get("hidden_act") or wanted
    if family == "gemma" and found == "gelu":
        return  # the checkpoints say gelu and mean the tanh form, as transformers documents
    if found != wanted:
        raise CheckpointError(f"Wanted activation {wanted}, found {found} in {where}.")


def _rope_scaling(values: Mapping[str, Any], where: str) -> RopeScaling | None:
    kind = values.get("rope_type") or values.get("type") or "default"
    if kind == "default":
        return None
    if kind != "llama3":
        raise CheckpointError(f"Wanted rope scaling default or llama3, found {kind} in {where}.")
    return RopeScaling(
        factor=float(values["factor"]),
        low_freq_factor=float(values["low_freq_factor"]),
        high_freq_factor=float(values["high_freq_factor"]),
        original_context=int(values["original_max_position_embeddings"]),
    )


def config_from_gguf(metadata: Mapping[str, Any], *, tied: bool, where: str) -> ModelConfig:
    """Read a GGUF's metadata.

    Args:
        metadata: Key to value.
        tied: The file has no tensor `output.weight`.
        where: The file, for messages.

    Raises:
        CheckpointError: An architecture or a setting that is not handled, or a missing value.
    """
    named = metadata.get("general.architecture")
    family = _GGUF_FAMILIES.get(str(named))
    if family is None:
        raise CheckpointError(f"Wanted one of {', '.join(_GGUF_FAMILIES)}, found architecture {named} in {where}.")
    kind = metadata.get(f"{named}.rope.scaling.type")
    if kind not in (None, "none"):
        raise CheckpointError(f"Wanted no rope scaling in a GGUF, found {kind} in {where}. Use the safetensors files.")
    for key, harmless in _GGUF_VARIANTS.items():
        found = metadata.get(f"{named}.{key}")
        if found is not None and found not in harmless:
            raise CheckpointError(f"Wanted a plain {named}, found {named}.{key} {found} in {where}: not handled.")

    def value(key: str) -> Any:  # noqa: ANN401 - numbers of either kind
        return metadata[f"{named}.{key}"]

    try:
        heads = int(value("attention.head_count"))
        hidden = int(value("embedding_length"))
        head_dim = int(metadata.get(f"{named}.attention.key_length", hidden // heads))
        for key in ("rope.dimension_count", "attention.value_length"):
            if int(metadata.get(f"{named}.{key}", head_dim)) != head_dim:
                raise CheckpointError(
                    f"Wanted {named}.{key} of the head's size {head_dim}, found {value(key)} in {where}: not handled."
                )
        tokens = metadata.get("tokenizer.ggml.tokens")
        return ModelConfig(
            family=family,
            layers=int(value("block_count")),
            hidden=hidden,
            ffn=int(value("feed_forward_length")),
            heads=heads,
            kv_heads=int(metadata.get(f"{named}.attention.head_count_kv", heads)),
            head_dim=head_dim,
            vocabulary=int(metadata.get(f"{named}.vocab_size") or len(tokens or ())),
            context=int(value("context_length")),
            norm_eps=round(float(value("attention.layer_norm_rms_epsilon")), 12),  # float32 of 1e-05 is 9.99999e-06
            rope_base=float(metadata.get(f"{named}.rope.freq_base", 10_000.0)),
            tied_embedding=tied,
            qkv_bias=family == "qwen2",
            qk_norm=family == "qwen3",
        )
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise CheckpointError(f"Wanted complete metadata, found {error!r} in {where}.") from error
