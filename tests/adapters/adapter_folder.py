"""Builds small PEFT folders by hand, without torch, so that each test can bend exactly one thing."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from loraplex_adapters.base_shape import BaseShape
from loraplex_adapters.module import Module
from loraplex_adapters.peft_targets import module_path
from loraplex_adapters.safetensors_file import encode_header
from loraplex_adapters.tensor import TensorBytes

BASE = BaseShape(
    architecture="LlamaForCausalLM",
    num_layers=2,
    hidden_size=16,
    intermediate_size=24,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    vocab_size=32,
    tie_word_embeddings=False,
)
Q_A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
Q_B = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"


def config(**changes: Any) -> dict[str, Any]:
    """A minimal adapter_config.json for q_proj with rank 4."""
    return {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], **changes}


def matrix(rows: int, columns: int, *, seed: int = 0) -> TensorBytes:
    """A random F32 matrix."""
    values = np.random.default_rng(seed).standard_normal((rows, columns)).astype("<f4")
    return TensorBytes("F32", (rows, columns), values.tobytes())


def lora_tensors(*modules: Module, rank: int = 4, base: BaseShape = BASE) -> dict[str, TensorBytes]:
    """A and B of each module, in every layer of ``base``."""
    tensors: dict[str, TensorBytes] = {}
    for module in modules:
        is_global = module in (Module.EMBED_TOKENS, Module.LM_HEAD)
        for layer in (None,) if is_global else range(base.num_layers):
            path = "base_model.model." + module_path(layer, module)
            in_features, out_features = base.features(module)
            names = (
                ("lora_embedding_A", "lora_embedding_B")
                if module is Module.EMBED_TOKENS
                else ("lora_A.weight", "lora_B.weight")
            )
            tensors[f"{path}.{names[0]}"] = matrix(rank, in_features, seed=len(tensors))
            tensors[f"{path}.{names[1]}"] = matrix(out_features, rank, seed=len(tensors))
    return tensors


def file_bytes(tensors: Mapping[str, TensorBytes]) -> bytes:
    """A safetensors file."""
    return encode_header(tensors) + b"".join(tensor.data for tensor in tensors.values())


def write_folder(
    folder: Path, *, document: Mapping[str, Any] | None = None, tensors: Mapping[str, TensorBytes] | None = None
) -> Path:
    """Write adapter_config.json and adapter_model.safetensors; by default a good q_proj adapter."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config() if document is None else document))
    content = lora_tensors(Module.Q_PROJ) if tensors is None else tensors
    (folder / "adapter_model.safetensors").write_bytes(file_bytes(content))
    return folder
