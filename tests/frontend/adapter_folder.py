"""PEFT folders that fit the tiny model."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file


def write_adapter(folder: Path, *, seed: int = 0, rank: int = 2, width: int = 32) -> Path:
    """LoRA on q_proj of both layers."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "tiny",
        "r": rank,
        "lora_alpha": 4,
        "target_modules": ["q_proj"],
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    random = np.random.default_rng(seed)
    tensors = {}
    for layer in range(2):
        prefix = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        tensors[f"{prefix}.lora_A.weight"] = random.standard_normal((rank, width), dtype=np.float32)
        tensors[f"{prefix}.lora_B.weight"] = random.standard_normal((32, rank), dtype=np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder
