"""Model sizes and weights of a llama GGUF, as Hugging Face names and orders them."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from loraplex_worker.gguf_source import Fields, malformed, need, unsupported

Array = npt.NDArray[Any]
TensorRule = tuple[str, tuple[int, ...], Callable[[Array], Array]]
"""Hugging Face name, shape as (out, in), and what to do with the rows."""


def model_config(fields: Fields, *, is_tied: bool) -> dict[str, Any]:
    """The fields of ``config.json``; ``is_tied`` when the head shares the embedding's matrix."""
    num_heads = int(need(fields, "llama.attention.head_count"))
    hidden_size = int(need(fields, "llama.embedding_length"))
    head_dim = int(fields.get("llama.attention.key_length", hidden_size // num_heads))
    for key in ("llama.attention.value_length", "llama.rope.dimension_count"):
        if int(fields.get(key, head_dim)) != head_dim:
            raise unsupported(f"{key} {fields[key]}: it must equal the head dimension {head_dim}")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(need(fields, "tokenizer.ggml.tokens")),
        "hidden_size": hidden_size,
        "intermediate_size": int(need(fields, "llama.feed_forward_length")),
        "num_hidden_layers": int(need(fields, "llama.block_count")),
        "num_attention_heads": num_heads,
        "num_key_value_heads": int(fields.get("llama.attention.head_count_kv", num_heads)),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "max_position_embeddings": int(need(fields, "llama.context_length")),
        # GGUF keeps float32: 1e-5 comes back as 9.999999747378752e-06, which is not what the model was trained with.
        "rms_norm_eps": _shortest(need(fields, "llama.attention.layer_norm_rms_epsilon")),
        "rope_theta": _shortest(fields.get("llama.rope.freq_base", 10000.0)),
        "rope_scaling": None,
        "tie_word_embeddings": is_tied,
        "bos_token_id": fields.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": need(fields, "tokenizer.ggml.eos_token_id"),
        "pad_token_id": fields.get("tokenizer.ggml.padding_token_id"),
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }


def _shortest(value: float) -> float:
    """The shortest decimal that rounds to the same float32."""
    return float(str(np.float32(value)))


def write_weights(path: Path, tensors: Mapping[str, Any], config: dict[str, Any]) -> None:
    """Write every tensor as bf16 to the safetensors file ``path``, one at a time: the peak is one fp32 matrix.

    The format's header is written here since the safetensors package takes no bf16 from numpy, and its raw-bytes
    call changes from one release to the next.
    """
    rules = dict(_tensor_rules(config))
    for name in tensors.keys() - rules.keys():
        raise unsupported(f"tensor {name!r}")
    for name in rules.keys() - tensors.keys():
        raise malformed(f"the GGUF has no tensor {name!r}")
    with path.open("wb") as file:
        file.write(_safetensors_header([(hf_name, shape) for hf_name, shape, _ in rules.values()]))
        for name, (_, shape, fix) in rules.items():
            file.write(to_bf16_bits(fix(_dequantise(tensors[name], shape))).astype("<u2").tobytes())


def _safetensors_header(shapes: list[tuple[str, tuple[int, ...]]]) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, shape in shapes:
        end = start + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _tensor_rules(config: dict[str, Any]) -> Iterator[tuple[str, TensorRule]]:
    """GGUF name -> rule, for every tensor that a llama model has."""
    hidden, wide, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    heads, kv_heads, head_dim = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]

    def keep(rows: Array) -> Array:
        return rows

    yield "token_embd.weight", ("model.embed_tokens.weight", (vocab, hidden), keep)
    yield "output_norm.weight", ("model.norm.weight", (hidden,), keep)
    if not config["tie_word_embeddings"]:
        yield "output.weight", ("lm_head.weight", (vocab, hidden), keep)
    per_layer: dict[str, TensorRule] = {
        "attn_norm": ("input_layernorm", (hidden,), keep),
        "attn_q": ("self_attn.q_proj", (heads * head_dim, hidden), lambda rows: unpermute_rope_rows(rows, heads)),
        "attn_k": ("self_attn.k_proj", (kv_heads * head_dim, hidden), lambda rows: unpermute_rope_rows(rows, kv_heads)),
        "attn_v": ("self_attn.v_proj", (kv_heads * head_dim, hidden), keep),
        "attn_output": ("self_attn.o_proj", (hidden, heads * head_dim), keep),
        "ffn_norm": ("post_attention_layernorm", (hidden,), keep),
        "ffn_gate": ("mlp.gate_proj", (wide, hidden), keep),
        "ffn_up": ("mlp.up_proj", (wide, hidden), keep),
        "ffn_down": ("mlp.down_proj", (hidden, wide), keep),
    }
    for layer in range(config["num_hidden_layers"]):
        for name, (hf_name, shape, fix) in per_layer.items():
            yield f"blk.{layer}.{name}.weight", (f"model.layers.{layer}.{hf_name}.weight", shape, fix)


def unpermute_rope_rows(rows: Array, num_heads: int) -> Array:
    """Undo llama.cpp's row order of q and k, shape (num_heads * head_dim, in).

    A GGUF stores each head's rows as (pair, half), for RoPE on neighbouring rows;
    Hugging Face wants (half, pair), for RoPE on rows half a head apart.
    """
    out_size, in_size = rows.shape
    pairs = rows.reshape(num_heads, out_size // num_heads // 2, 2, in_size)
    return pairs.swapaxes(1, 2).reshape(out_size, in_size)


def _dequantise(tensor: Any, shape: tuple[int, ...]) -> Array:
    # GGUF lists dimensions innermost first.
    found = tuple(int(size) for size in reversed(tensor.shape))
    if found != shape:
        raise malformed(f"tensor {tensor.name!r} has shape {found}, the model's sizes ask for {shape}")
    try:
        values: Array = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(shape)
    except NotImplementedError as error:
        raise unsupported(f"quantisation {tensor.tensor_type.name} of tensor {tensor.name!r}") from error
    if not np.isfinite(values).all():
        raise malformed(f"tensor {tensor.name!r} holds NaN or infinity")
    return values


def to_bf16_bits(values: Array) -> npt.NDArray[np.uint16]:
    """float32 -> the bit patterns of the nearest bfloat16, ties to even. Finite values only."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + ((bits >> 16) & 1) + 0x7FFF) >> 16).astype(np.uint16)
