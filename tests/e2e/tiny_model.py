"""A model of two random layers under the real tokenizer, which steps in milliseconds, and adapters for it."""

import json
import shutil
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

TINY_ADAPTERS = ("alpha", "beta", "gamma")
TARGETS = ["q_proj", "v_proj", "down_proj"]


def save_tiny_model(folder: Path, tokenizer_folder: Path) -> Path:
    """Answers are noise, the same noise each time."""
    torch.manual_seed(5)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=json.loads((tokenizer_folder / "config.json").read_text())["vocab_size"],
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer_folder / name, folder / name)
    return folder


def save_tiny_adapters(model_folder: Path, folder: Path) -> dict[str, Path]:
    """One folder for each of ``TINY_ADAPTERS``, ranks 2, 3 and 4, as PEFT saves them."""
    result = {}
    for number, name in enumerate(TINY_ADAPTERS):
        torch.manual_seed(100 + number)
        model = LlamaForCausalLM.from_pretrained(model_folder)
        peft = get_peft_model(model, LoraConfig(r=2 + number, target_modules=TARGETS))
        for key, tensor in peft.named_parameters():
            if "lora_B" in key:
                torch.nn.init.normal_(tensor.data, std=0.5)
        peft.save_pretrained(folder / name)
        result[name] = folder / name
    return result
