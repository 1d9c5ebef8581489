"""Random LoRA adapters in PEFT's format, written without PEFT: all seven linears, float16."""

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from loraplex_adapters.base_shape import BaseShape
from loraplex_adapters.module import GLOBAL_MODULES, Module

PROJECTIONS = tuple(module for module in Module if module not in GLOBAL_MODULES)
_PARENT = {"q": "self_attn", "k": "self_attn", "v": "self_attn", "o": "self_attn"}


def write_adapter(folder: Path, base: BaseShape, *, rank: int, seed: int) -> None:
    """A folder as ``PeftModel.save_pretrained`` leaves it. B is small, so that answers stay text."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": rank, "bias": "none"}
    config |= {"target_modules": [module.value for module in PROJECTIONS], "base_model_name_or_path": "benchmark"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    generator = np.random.default_rng(seed)
    tensors: dict[str, npt.NDArray[np.float16]] = {}
    for layer in range(base.num_layers):
        for module in PROJECTIONS:
            num_in, num_out = base.features(module)
            name = f"base_model.model.model.layers.{layer}.{_PARENT.get(module.value[0], 'mlp')}.{module.value}"
            tensors[f"{name}.lora_A.weight"] = _normal(generator, (rank, num_in), num_in**-0.5)
            tensors[f"{name}.lora_B.weight"] = _normal(generator, (num_out, rank), 0.01)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _normal(generator: np.random.Generator, shape: tuple[int, int], deviation: float) -> npt.NDArray[np.float16]:
    return (generator.standard_normal(shape, dtype=np.float32) * deviation).astype(np.float16)
