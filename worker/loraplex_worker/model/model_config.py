"""What the decoder must know about a base model, read from its Hugging Face ``config.json``.

Fail closed: a field that is not understood is refused by name, because a model that runs with the wrong numbers looks
healthy. Both spellings are read: ``rope_theta`` with ``rope_scaling``, and ``rope_parameters`` (transformers 5).
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from loraplex_contract.errors import FailedPrecondition
from loraplex_worker.model.rope import RopeConfig
from loraplex_worker.model.rope_fields import read_rope

_ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_READ = frozenset(
    [
        "architectures",
        "model_type",
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "hidden_act",
        "max_position_embeddings",
        "rms_norm_eps",
        "tie_word_embeddings",
        "rope_theta",
        "rope_scaling",
        "rope_parameters",
        "attention_bias",
        "mlp_bias",
        "sliding_window",
        "use_sliding_window",
        "max_window_layers",
        "layer_types",
        "dtype",
        "torch_dtype",
        "eos_token_id",
        "bos_token_id",
        "pad_token_id",
        "pretraining_tp",
        "partial_rotary_factor",
        "original_max_position_embeddings",
    ]
)
# Nothing in these reaches the forward pass at inference.
_INERT = frozenset(
    [
        "_name_or_path",
        "_attn_implementation_autoset",
        "attention_dropout",
        "attn_implementation",
        "auto_map",
        "chunk_size_feed_forward",
        "finetuning_task",
        "id2label",
        "initializer_range",
        "is_llama_config",
        "is_encoder_decoder",
        "is_decoder",
        "label2id",
        "language",
        "model_max_length",
        "num_labels",
        "output_attentions",
        "output_hidden_states",
        "problem_type",
        "return_dict",
        "rope_interleaved",
        "task_specific_params",
        "tokenizer_class",
        "transformers.js_config",
        "transformers_version",
        "unsloth_fixed",
        "unsloth_version",
        "use_cache",
        "use_mrope",
        "min_length",
        "max_length",
        "do_sample",
        "temperature",
        "top_p",
        "top_k",
        "num_beams",
        "repetition_penalty",
        "sep_token_id",
        "decoder_start_token_id",
        "prefix",
        "forced_bos_token_id",
        "forced_eos_token_id",
    ]
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A Llama-family decoder. Sizes are counts of features or heads."""

    architecture: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    tie_word_embeddings: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    """RMS norm over each head of q and k before the rotation (Qwen3)."""
    windows: tuple[int | None, ...]
    """Per layer: how many of the last positions a row sees, itself included; None = all."""
    rope: RopeConfig
    dtype: torch.dtype
    """The dtype that the checkpoint names (float32 where it names none); the caller may load in another."""
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    pad_token_id: int | None
    folder: Path | None = dataclasses.field(default=None, compare=False)
    """Where the weights lie, for adapters whose form depends on them (DoRA); None where it was made without."""

    @property
    def q_size(self) -> int:
        """Features of all query heads."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Features of all key heads, and of all value heads."""
        return self.num_kv_heads * self.head_dim

    @classmethod
    def from_folder(cls, folder: Path) -> "ModelConfig":
        """Read ``config.json``.

        Raises:
            FailedPrecondition: not readable, another architecture, or a field that is not understood.
        """
        path = folder / "config.json"
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise _refused(f"config.json cannot be read: {type(error).__name__}") from error
        if not isinstance(fields, dict):
            raise _refused("config.json is not a JSON object")
        return dataclasses.replace(cls.from_fields(fields), folder=folder)

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> "ModelConfig":
        """Same as ``from_folder``, from the parsed object."""
        architecture = _architecture(fields)
        family = _ARCHITECTURES[architecture]
        _refuse_unknown(fields)
        heads = _positive(fields, "num_attention_heads")
        hidden = _positive(fields, "hidden_size")
        layers = _positive(fields, "num_hidden_layers")
        max_positions = _positive(fields, "max_position_embeddings")
        kv_heads = _positive(fields, "num_key_value_heads", default=8 if family == "mistral" else heads)
        head_dim = _positive(fields, "head_dim", default=128 if family == "qwen3" else hidden // heads)
        if heads % kv_heads or head_dim % 2:
            raise _refused(
                f"num_attention_heads={heads}, num_key_value_heads={kv_heads}, head_dim={head_dim} do not fit"
            )
        attention_bias = _flag(fields, "attention_bias", family in ("llama", "qwen3"))
        return cls(
            architecture=architecture,
            num_layers=layers,
            hidden_size=hidden,
            intermediate_size=_positive(fields, "intermediate_size"),
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            vocab_size=_positive(fields, "vocab_size"),
            max_position_embeddings=max_positions,
            rms_norm_eps=float(fields.get("rms_norm_eps", 1e-6)),
            tie_word_embeddings=_flag(fields, "tie_word_embeddings", True),
            qkv_bias=attention_bias or family == "qwen2",
            o_bias=attention_bias,
            mlp_bias=_flag(fields, "mlp_bias", family == "llama"),
            qk_norm=family == "qwen3",
            windows=_windows(fields, family, layers),
            rope=read_rope(fields, max_positions),
            dtype=_dtype(fields),
            eos_token_ids=_token_ids(fields.get("eos_token_id")),
            bos_token_id=fields.get("bos_token_id"),
            pad_token_id=fields.get("pad_token_id"),
        )


def _refused(message: str) -> FailedPrecondition:
    return FailedPrecondition(message, reason="BASE_MODEL_UNSUPPORTED")


def _architecture(fields: dict[str, Any]) -> str:
    named = fields.get("architectures")
    if not isinstance(named, list) or len(named) != 1 or named[0] not in _ARCHITECTURES:
        raise _refused(f"architectures is {named!r}; known: {sorted(_ARCHITECTURES)}")
    model_type = fields.get("model_type")
    if model_type != _ARCHITECTURES[named[0]]:
        raise _refused(f"model_type {model_type!r} does not belong to architecture {named[0]}")
    return str(named[0])


def _refuse_unknown(fields: dict[str, Any]) -> None:
    unknown = sorted(
        name for name, value in fields.items() if name not in _READ | _INERT and value not in (None, False)
    )
    if unknown:
        raise _refused(f"config.json has fields that are not understood and may change the numbers: {unknown}")
    if fields.get("hidden_act", "silu") not in ("silu", "swish"):
        raise _refused(f"hidden_act is {fields['hidden_act']!r}; known: 'silu'")
    if fields.get("pretraining_tp", 1) not in (1, None):
        raise _refused(f"pretraining_tp is {fields['pretraining_tp']!r}; only 1 is known")
    if fields.get("rope_interleaved"):
        raise _refused("rope_interleaved is true; only the half-split rotation is known")
    if fields.get("use_mrope"):
        raise _refused("use_mrope is true; multimodal rotation is not known")


def _positive(fields: dict[str, Any], name: str, default: int | None = None) -> int:
    value = fields.get(name)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise _refused(f"{name} is {value!r}; it must be a positive integer")
    return value


def _flag(fields: dict[str, Any], name: str, known: bool) -> bool:
    value = fields.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise _refused(f"{name} is {value!r}; it must be true or false")
    if value and not known:
        raise _refused(f"{name} is true, which this architecture does not have")
    return value


def _dtype(fields: dict[str, Any]) -> torch.dtype:
    name = fields.get("dtype") or fields.get("torch_dtype") or "float32"
    if name not in _DTYPES:
        raise _refused(f"dtype is {name!r}; known: {sorted(_DTYPES)}")
    return _DTYPES[name]


def _token_ids(value: object) -> tuple[int, ...]:
    if value is None:
        return ()
    listed: list[Any] = value if isinstance(value, list) else [value]
    ids = tuple(token for token in listed if type(token) is int)
    if len(ids) != len(listed):
        raise _refused(f"eos_token_id is {value!r}; it must be an id or a list of ids")
    return ids


def _windows(fields: dict[str, Any], family: str, layers: int) -> tuple[int | None, ...]:
    window = fields.get("sliding_window", 4096 if family in ("mistral", "qwen2", "qwen3") else None)
    if window is not None and (not isinstance(window, int) or isinstance(window, bool) or window <= 0):
        raise _refused(f"sliding_window is {window!r}; it must be a positive integer or null")
    if family == "mistral":
        return (window,) * _no_layer_types(fields, layers)
    if family == "llama":
        if window is not None:
            raise _refused("sliding_window is set, which LlamaForCausalLM does not have")
        return (None,) * _no_layer_types(fields, layers)
    return _qwen_windows(fields, window, layers)


def _no_layer_types(fields: dict[str, Any], layers: int) -> int:
    if fields.get("layer_types") is not None or _flag(fields, "use_sliding_window", False):
        raise _refused("layer_types and use_sliding_window are known for Qwen2 and Qwen3 only")
    return layers


def _qwen_windows(fields: dict[str, Any], window: int | None, layers: int) -> tuple[int | None, ...]:
    used = window if _flag(fields, "use_sliding_window", True) else None
    types = fields.get("layer_types")
    if types is None:
        first = fields.get("max_window_layers", 28)
        return tuple(used if index >= first else None for index in range(layers))
    unknown = sorted({str(kind) for kind in types} - {"full_attention", "sliding_attention"})
    if unknown or len(types) != layers:
        raise _refused(f"layer_types has {len(types)} entries for {layers} layers, unknown kinds: {unknown}")
    if used is None and "sliding_attention" in types:
        raise _refused("layer_types names sliding_attention, but no sliding_window is in use")
    return tuple(used if kind == "sliding_attention" else None for kind in types)
