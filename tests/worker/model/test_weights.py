"""Loading checkpoints: whole, sharded, damaged."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from loraplex_contract.errors import DataLoss, FailedPrecondition
from loraplex_worker.model.model_config import ModelConfig
from loraplex_worker.model.weights import ModelWeights, load_weights
from tests.worker.model.tiny_models import make_model, save

QUERY = "model.layers.1.self_attn.q_proj.weight"


def load(folder: Path, dtype: torch.dtype = torch.float32) -> ModelWeights:
    return load_weights(folder, ModelConfig.from_folder(folder), dtype)


def test_sharded_and_single_file_load_the_same_tensors(tmp_path: Path) -> None:
    model = make_model("qwen2")
    one = load(save(model, tmp_path / "one"))
    many = load(save(model, tmp_path / "many", max_shard_size="40KB"))
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    for mine, other in zip(one.layers, many.layers, strict=True):
        assert torch.equal(mine.qkv, other.qkv)
        assert torch.equal(mine.down, other.down)
    assert one.lm_head is one.embed_tokens
    assert torch.equal(one.embed_tokens, many.embed_tokens)


def test_bf16_is_the_rounded_float32(tmp_path: Path) -> None:
    folder = save(make_model("llama"), tmp_path)
    assert torch.equal(load(folder, torch.bfloat16).layers[0].gate_up, load(folder).layers[0].gate_up.bfloat16())
    with pytest.raises(FailedPrecondition, match="float16"):
        load(folder, torch.float16)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda tensors: tensors.pop(QUERY), QUERY),
        (lambda tensors: tensors.update({QUERY: torch.zeros(48, 47)}), QUERY),
        (lambda tensors: tensors.update({QUERY: torch.zeros(48, 48, dtype=torch.int32)}), QUERY),
        (lambda tensors: tensors.update({QUERY.replace("weight", "bias"): torch.zeros(48)}), "q_proj.bias"),
        (lambda tensors: tensors.update({"model.layers.3.mlp.up_proj.weight": torch.zeros(80, 48)}), "layers.3"),
    ],
)
def test_missing_extra_and_misshapen_tensors_are_refused_by_name(
    change: Callable[[dict[str, Tensor]], object], named: str, tmp_path: Path
) -> None:
    path = save(make_model("llama"), tmp_path) / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    with pytest.raises(FailedPrecondition, match=named):
        load(tmp_path)


def test_a_cut_off_file_is_data_loss(tmp_path: Path) -> None:
    path = save(make_model("llama"), tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataLoss, match=r"model\.safetensors"):
        load(tmp_path)


def test_no_checkpoint_and_a_missing_shard_are_refused(tmp_path: Path) -> None:
    folder = save(make_model("llama"), tmp_path, max_shard_size="40KB")
    next(iter(sorted(folder.glob("*.safetensors")))).unlink()
    with pytest.raises(FailedPrecondition, match="shard"):
        load(folder)
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(FailedPrecondition, match=r"neither model\.safetensors"):
        load(folder)


def test_an_index_that_points_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = save(make_model("llama"), tmp_path, max_shard_size="40KB")
    index = {"weight_map": {QUERY: "../secret.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FailedPrecondition, match="outside"):
        load(folder)
