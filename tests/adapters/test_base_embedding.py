"""An embedding that PEFT saved along is accepted only when it is the base model's own."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.adapters.adapter_folder import BASE, config, file_bytes, lora_tensors, matrix, write_folder

from loraplex_adapters.base_embedding import equals_base_weight
from loraplex_adapters.base_shape import BaseShape
from loraplex_adapters.limits import Limits
from loraplex_adapters.module import Module
from loraplex_adapters.peft_folder import parse_peft_folder
from loraplex_adapters.tensor import TensorBytes
from loraplex_contract.errors import FailedPrecondition, InvalidArgument

TORCH = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
EMBED = matrix(32, 16, seed=7)
SAVED = "base_model.model.model.embed_tokens.base_layer.weight"


def _cast(tensor: TensorBytes, dtype: str) -> TensorBytes:
    values = torch.from_numpy(np.frombuffer(tensor.data, "<f4").copy()).to(TORCH[dtype])
    return TensorBytes(dtype, tensor.shape, values.view(torch.uint8).numpy().tobytes())


def _flip(tensor: TensorBytes, position: int = -1) -> TensorBytes:
    data = bytearray(tensor.data)
    data[position] ^= 1
    return tensor._replace(data=bytes(data))


def _write_base(
    folder: Path, embed: TensorBytes = EMBED, *, is_tied: bool = False, is_sharded: bool = False
) -> BaseShape:
    folder.mkdir(exist_ok=True)
    document = {
        "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 24,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 32, "tie_word_embeddings": is_tied,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(document))
    name = "model-00001-of-00002.safetensors" if is_sharded else "model.safetensors"
    tensors = {"model.norm.weight": matrix(1, 16), "model.embed_tokens.weight": embed}
    if not is_tied:
        tensors["lm_head.weight"] = matrix(32, 16, seed=8)
    (folder / name).write_bytes(file_bytes(tensors))
    if is_sharded:
        index = json.dumps({"weight_map": dict.fromkeys(tensors, name)})
        (folder / "model.safetensors.index.json").write_text(index)
    return BaseShape.from_folder(folder)


def _parse(folder: Path, base: BaseShape, name: str, saved: TensorBytes):
    tensors = {**lora_tensors(Module.EMBED_TOKENS), name: saved}
    write_folder(folder, tensors=tensors, document=config(target_modules=["embed_tokens"]))
    return parse_peft_folder(folder, base, Limits())


@pytest.mark.parametrize("is_sharded", [False, True])
@pytest.mark.parametrize("suffix", ["base_layer.weight", "weight"])
def test_the_bases_own_embedding_is_left_out_with_a_note(tmp_path, suffix, is_sharded):
    base = _write_base(tmp_path / "base", is_sharded=is_sharded)
    parsed = _parse(tmp_path / "a", base, f"base_model.model.model.embed_tokens.{suffix}", EMBED)
    assert set(parsed.tensors) == {"embed_tokens.A", "embed_tokens.B"}
    assert "left out" in parsed.notes[0]


@pytest.mark.parametrize("position", [0, -1, 777])
def test_one_changed_bit_is_refused_by_name(tmp_path, position):
    base = _write_base(tmp_path / "base")
    with pytest.raises(FailedPrecondition, match="embed_tokens") as caught:
        _parse(tmp_path / "a", base, SAVED, _flip(EMBED, position))
    assert (caught.value.reason, caught.value.metadata) == ("ADAPTER_BASE_MISMATCH", {"tensor": SAVED})


def test_a_tied_head_is_compared_with_the_embedding(tmp_path):
    base = _write_base(tmp_path / "base", is_tied=True)
    assert _parse(tmp_path / "a", base, "base_model.model.lm_head.weight", EMBED).notes


def test_an_untied_head_is_compared_with_the_head(tmp_path):
    base = _write_base(tmp_path / "base")
    with pytest.raises(FailedPrecondition, match="lm_head"):
        _parse(tmp_path / "a", base, "base_model.model.lm_head.weight", EMBED)


def test_a_resized_vocabulary_is_refused(tmp_path):
    base = _write_base(tmp_path / "base")
    with pytest.raises(FailedPrecondition, match="vocabulary"):
        _parse(tmp_path / "a", base, SAVED, matrix(33, 16))


def test_without_the_bases_folder_a_saved_embedding_is_refused(tmp_path):
    with pytest.raises(FailedPrecondition, match="embed_tokens"):
        _parse(tmp_path, BASE, SAVED, EMBED)


@pytest.mark.parametrize("stored", TORCH)
@pytest.mark.parametrize("saved", TORCH)
def test_a_copy_in_another_dtype_must_be_what_torch_casts_to(tmp_path, stored, saved):
    extremes = np.array([0.0, -0.0, 1e-8, 6e-5, 65504.0, 65520.0, 3.0e38, 1.00390625, 1.01171875], "<f4")
    values = np.concatenate([extremes, np.random.default_rng(0).standard_normal(32 * 16 - 9).astype("<f4")])
    original = _cast(TensorBytes("F32", (32, 16), values.tobytes()), stored)
    widened = torch.frombuffer(bytearray(original.data), dtype=TORCH[stored]).float()
    copy = _cast(TensorBytes("F32", (32, 16), widened.numpy().tobytes()), saved)
    _write_base(tmp_path, original)
    assert equals_base_weight(tmp_path, Module.EMBED_TOKENS, copy, is_tied=False)
    assert not equals_base_weight(tmp_path, Module.EMBED_TOKENS, _flip(copy), is_tied=False)


@pytest.mark.parametrize("damage", ["absent", "short", "header", "shard outside"])
def test_a_base_that_cannot_be_read_is_said_to_be_so(tmp_path, damage):
    _write_base(tmp_path)
    file = tmp_path / "model.safetensors"
    match damage:
        case "absent":
            file.unlink()
        case "short":
            file.write_bytes(file.read_bytes()[:900])
        case "header":
            file.write_bytes(b"\xff" * 100)
        case "shard outside":
            weight_map = {"model.embed_tokens.weight": "../elsewhere"}
            (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(FailedPrecondition) as caught:
        equals_base_weight(tmp_path, Module.EMBED_TOKENS, EMBED, is_tied=False)
    assert caught.value.reason == "BASE_MODEL_UNREADABLE"


def test_the_shape_of_the_base_comes_from_its_config(tmp_path):
    assert _write_base(tmp_path) == BASE
    assert [BASE.features(module) for module in Module] == [
        (16, 16), (16, 8), (16, 8), (16, 16), (16, 24), (16, 24), (24, 16), (32, 16), (16, 32),
    ]  # fmt: skip


def test_an_unknown_architecture_is_refused_by_name(tmp_path):
    _write_base(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace("Llama", "Gemma"))
    with pytest.raises(FailedPrecondition, match="GemmaForCausalLM"):
        BaseShape.from_folder(tmp_path)


def test_a_broken_config_names_the_field(tmp_path):
    _write_base(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"hidden_size": 16', '"hidden_size": "16"'))
    with pytest.raises(InvalidArgument, match="hidden_size"):
        BaseShape.from_folder(tmp_path)
