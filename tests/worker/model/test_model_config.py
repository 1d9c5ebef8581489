"""What a config.json says, and what it may not say."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from loraplex_contract.errors import FailedPrecondition
from loraplex_worker.model.model_config import ModelConfig
from tests.worker.model.tiny_models import VARIANTS, make_model

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "bfloat16",
    "eos_token_id": [2, 5],
}


def test_old_and_new_spelling_of_the_rotation_read_the_same() -> None:
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling["original_max_position_embeddings"] = 64
    old = ModelConfig.from_fields({**LLAMA, "rope_theta": 500000.0, "rope_scaling": scaling})
    new = ModelConfig.from_fields({**LLAMA, "rope_parameters": {**scaling, "rope_theta": 500000.0}})
    oldest = {**scaling, "type": scaling["rope_type"]}
    del oldest["rope_type"]
    assert old == new == ModelConfig.from_fields({**LLAMA, "rope_theta": 500000.0, "rope_scaling": oldest})
    assert old.rope.theta == 500000.0


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_config_that_transformers_saves_agrees_with_its_model(variant: str, tmp_path: Path) -> None:
    model = make_model(variant)
    model.save_pretrained(tmp_path)
    config = ModelConfig.from_folder(tmp_path)
    theirs = model.config
    sizes = (theirs.num_hidden_layers, theirs.hidden_size, theirs.num_key_value_heads)
    assert (config.num_layers, config.hidden_size, config.num_kv_heads) == sizes
    assert config.eos_token_ids == (2,)
    assert config.tie_word_embeddings is theirs.tie_word_embeddings


def test_fields_left_out_have_the_defaults_of_transformers() -> None:
    config = ModelConfig.from_fields(
        {k: v for k, v in LLAMA.items() if k not in ("num_key_value_heads", "torch_dtype")}
    )
    assert (config.num_kv_heads, config.head_dim, config.rope.theta) == (6, 8, 10000.0)
    assert config.dtype == torch.float32
    assert ModelConfig.from_fields(LLAMA).dtype == torch.bfloat16
    assert config.eos_token_ids == (2, 5)


def test_qwen2_windows_follow_max_window_layers() -> None:
    qwen = {**LLAMA, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "sliding_window": 7}
    assert ModelConfig.from_fields({**qwen, "max_window_layers": 1}).windows == (None, None)
    assert ModelConfig.from_fields({**qwen, "max_window_layers": 1, "use_sliding_window": True}).windows == (None, 7)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel"),
        ({"model_type": "mistral"}, "mistral"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"logit_scale": 0.5}, "logit_scale"),
        ({"pretraining_tp": 2}, "pretraining_tp"),
        ({"rope_interleaved": True}, "rope_interleaved"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "longrope"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "extra": 1}}, "extra"),
        ({"rope_scaling": {"rope_type": "linear", "factor": "2"}}, "factor"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "flat"),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_type": "default"}},
            "rope_scaling and rope_parameters",
        ),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"sliding_window": 4}, "sliding_window"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "layer_types"),
        ({"num_key_value_heads": 4}, "num_key_value_heads=4"),
        ({"hidden_size": None}, "hidden_size"),
        ({"attention_bias": "yes"}, "attention_bias"),
        ({"torch_dtype": "int8"}, "int8"),
        ({"eos_token_id": "2"}, "eos_token_id"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(change: dict[str, Any], named: str) -> None:
    with pytest.raises(FailedPrecondition, match=named):
        ModelConfig.from_fields({**LLAMA, **change})


def test_a_folder_without_a_readable_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match=r"config\.json"):
        ModelConfig.from_folder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps([1]))
    with pytest.raises(FailedPrecondition, match="object"):
        ModelConfig.from_folder(tmp_path)
