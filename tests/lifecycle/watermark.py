"""A model that says one token without an adapter, and adapters that each make it say another one, whatever the prompt.

Each adapter works twice: on the values that attention keeps in the KV cache, and on the head. One alone does not reach
the base model's token, so weights of one adapter over KV of another (or of none) give neither watermark but that.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

HIDDEN = 64
NUM_LAYERS = 2
BASE_TOKEN = 40_000
"""What the model says without an adapter, and where an adapter is applied by half."""
_FIRST_TOKEN = 300
_BASE_LEVEL = 45.0
_VALUE_STRENGTH = 4.0
_HEAD_STRENGTH = 23.6
"""With these, KV and head each add 8 to a token's logit, and the base token has 15.3."""


class Watermarks:
    """The model's embeddings. Feature 0 is 1 in each token, so that a rank of 1 can add a constant."""

    def __init__(self, tokenizer_folder: Path) -> None:
        self._tokenizer_folder = tokenizer_folder
        vocab_size = json.loads((tokenizer_folder / "config.json").read_text())["vocab_size"]
        table = np.random.default_rng(5).standard_normal((vocab_size, HIDDEN), dtype=np.float32)
        table[:, 0] = 0
        table /= np.linalg.norm(table, axis=1, keepdims=True)
        table[:, 0] = 1
        table[BASE_TOKEN] = 0
        table[BASE_TOKEN, 0] = _BASE_LEVEL
        self.embeddings: npt.NDArray[np.float32] = table

    def token(self, number: int) -> int:
        """Another for each number below 39,000."""
        token = _FIRST_TOKEN + number
        assert token < BASE_TOKEN
        return token

    def save_model(self, folder: Path) -> Path:
        """Attention passes its values on as they are; base values and the MLP add nothing."""
        folder.mkdir(parents=True)
        config = {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "hidden_size": HIDDEN,
            "intermediate_size": HIDDEN,
            "num_hidden_layers": NUM_LAYERS,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "vocab_size": len(self.embeddings),
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "hidden_act": "silu",
            "tie_word_embeddings": True,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "dtype": "float32",
        }
        (folder / "config.json").write_text(json.dumps(config))
        save_file(self._weights(), folder / "model.safetensors", metadata={"format": "pt"})
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(self._tokenizer_folder / name, folder / name)
        return folder

    def _weights(self) -> dict[str, npt.NDArray[np.float32]]:
        square = np.zeros((HIDDEN, HIDDEN), np.float32)
        ones = np.ones(HIDDEN, np.float32)
        weights = {"model.embed_tokens.weight": self.embeddings, "model.norm.weight": ones}
        for layer in range(NUM_LAYERS):
            at = f"model.layers.{layer}"
            for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"):
                weights[f"{at}.{name}.weight"] = square.copy()
            for name in ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"):
                weights[f"{at}.{name}.weight"] = square.copy()
            weights[f"{at}.self_attn.o_proj.weight"] = np.eye(HIDDEN, dtype=np.float32)
            weights[f"{at}.input_layernorm.weight"] = ones.copy()
            weights[f"{at}.post_attention_layernorm.weight"] = ones.copy()
        return weights

    def save_adapter(self, folder: Path, token: int) -> Path:
        """Rank 1 on the values of both layers and on the head, as PEFT saves it."""
        folder.mkdir(parents=True)
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": "watermark",
            "r": 1,
            "lora_alpha": 1,
            "target_modules": ["v_proj", "lm_head"],
            "bias": "none",
        }
        (folder / "adapter_config.json").write_text(json.dumps(config))
        constant = np.zeros((1, HIDDEN), np.float32)
        constant[0, 0] = 1
        value = (self.embeddings[token] * _VALUE_STRENGTH)[:, None].copy()
        value[0] = 0
        head = np.zeros((len(self.embeddings), 1), np.float32)
        head[token] = _HEAD_STRENGTH
        tensors = {"base_model.model.lm_head.lora_A.weight": constant, "base_model.model.lm_head.lora_B.weight": head}
        for layer in range(NUM_LAYERS):
            at = f"base_model.model.model.layers.{layer}.self_attn.v_proj"
            tensors[f"{at}.lora_A.weight"] = constant.copy()
            tensors[f"{at}.lora_B.weight"] = value.copy()
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        return folder
