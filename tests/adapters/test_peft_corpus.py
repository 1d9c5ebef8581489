"""Every field of PEFT's LoraConfig switched on, alone and with every other one, by PEFT itself where it can.

What PEFT saved is then either refused by the field's name, or computes what PEFT computes. A field that a new PEFT adds
has no example here, and fails the first test until somebody has decided what to do with it.
"""

import copy
import dataclasses
import itertools
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.adapters.adapter_folder import write_folder
from transformers import LlamaConfig, LlamaForCausalLM

from loraplex_adapters.base_shape import BaseShape
from loraplex_adapters.kind import AdapterKind
from loraplex_adapters.limits import Limits
from loraplex_adapters.module import Module
from loraplex_adapters.peft_fields import REFUSED
from loraplex_adapters.peft_folder import ParsedAdapter, parse_peft_folder
from loraplex_adapters.peft_targets import module_path
from loraplex_adapters.spec import saved_name, site_key
from loraplex_contract.errors import LoraplexError

TOKENS = torch.tensor([[1, 5, 9, 2, 7, 3]])
PLAIN = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]}
ON: dict[str, Any] = {
    "task_type": "CAUSAL_LM",
    "peft_type": "LORA",
    "auto_mapping": {"base_model_class": "LlamaForCausalLM", "parent_library": "transformers"},
    "peft_version": "0.1.0",
    "base_model_name_or_path": "somebody/base",
    "revision": "main",
    "inference_mode": True,
    "r": 3,
    "target_modules": ["q_proj", "up_proj", "embed_tokens", "lm_head"],
    "exclude_modules": ["0.self_attn.q_proj"],
    "lora_alpha": 7,
    "lora_dropout": 0.3,
    "fan_in_fan_out": True,
    "bias": "lora_only",
    "use_rslora": True,
    "modules_to_save": ["norm"],
    "init_lora_weights": "gaussian",
    "layers_to_transform": [1],
    "layers_pattern": "layers",
    "rank_pattern": {"q_proj": 6, r"1\.mlp\.(up|down)_proj": 2},
    "alpha_pattern": {"v_proj": 3, "model.layers.0.self_attn.q_proj": 5},
    "megatron_config": {"a": 1},
    "megatron_core": "other.core",
    "trainable_token_indices": [1, 2],
    "loftq_config": {"loftq_bits": 4, "loftq_iter": 1},
    "eva_config": {"rho": 2.0},
    "corda_config": {"corda_method": "ipm"},
    "lora_ga_config": {"direction": "ArB2r"},
    "use_dora": True,
    "velora_config": {"num_groups": 2},
    "alora_invocation_tokens": [5, 9],
    "use_qalora": True,
    "qalora_group_size": 8,
    "monteclora_config": {"num_samples": 8},
    "layer_replication": [[0, 2], [1, 2]],
    "runtime_config": {"ephemeral_gpu_offload": True},
    "lora_bias": True,
    "target_parameters": ["mlp.experts.up_proj"],
    "use_bdlora": {"nblocks": 2},
    "arrow_config": {"top_k": 3},
    "kasa_config": {"beta": 1.0},
    "ensure_weight_tying": True,
}
CASES = [*((field,) for field in ON), *itertools.combinations(ON, 2)]


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=32,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(base_folder: Path) -> Any:
    return LlamaForCausalLM.from_pretrained(base_folder).eval()


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """PEFT warns of combinations that it then builds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def test_every_field_of_the_installed_peft_has_an_example():
    assert set(ON) == {field.name for field in dataclasses.fields(LoraConfig)}


def test_each_field_alone_and_each_pair_is_refused_by_name_or_computes_what_peft_computes(base, base_folder, tmp_path):
    """One test for 903 cases: a test each would take longer to set up than to run."""
    shape = BaseShape.from_folder(base_folder)
    outcomes = {"equal": 0, "refused": 0, "not built by peft": 0}
    for number, fields in enumerate(CASES):
        folder = tmp_path / f"{number}"
        trained = _trained(base, fields, folder)
        document = json.loads((folder / "adapter_config.json").read_text())
        must_refuse = {field for field in fields if field in REFUSED and _is_on(field, document)}
        refused, parsed = _parsed(folder, shape)
        assert must_refuse <= refused, (fields, refused)
        assert bool(refused) == (parsed is None), fields
        if trained is None:
            outcomes["not built by peft"] += 1
            assert refused, (fields, "PEFT itself refuses it")
        elif parsed is None:
            outcomes["refused"] += 1
            assert refused & (set(fields) | {"init_lora_weights"}), (fields, refused)
        else:
            outcomes["equal"] += 1
            with torch.no_grad():
                expected = trained(TOKENS).logits
            difference = (expected - _served(base, parsed)).abs().max().item()
            assert difference < 1e-5, (fields, difference)
    assert outcomes["equal"] > 100, outcomes
    assert outcomes["refused"] > 150, outcomes


def _trained(base: Any, fields: tuple[str, ...], folder: Path) -> Any:
    """PEFT's model with these fields on, saved to the folder; None if PEFT cannot build it: then the document alone."""
    options = {**PLAIN, **{field: ON[field] for field in fields}}
    if len(REFUSED.intersection(fields)) == 2:
        # Each was built by PEFT alone, and with every field that is honoured: the two names are what is left to see.
        write_folder(folder, document={"peft_type": "LORA", **options}, tensors={})
        return None
    try:
        made = {name: value for name, value in options.items() if name not in ("peft_type", "runtime_config")}
        model = get_peft_model(copy.deepcopy(base), LoraConfig(**made)).eval()
        _randomise(model)
        model.create_or_update_model_card = lambda _: None  # a third of the time, and nothing that we read
        model.save_pretrained(str(folder))
    except Exception:  # PEFT refuses with whatever comes to hand
        write_folder(folder, document={"peft_type": "LORA", **options}, tensors={})
        return None
    _add_to_document(folder, {field: ON[field] for field in fields if field in _NOT_SAVED_AS_GIVEN})
    return model


_NOT_SAVED_AS_GIVEN = ("auto_mapping", "peft_version", "runtime_config", "base_model_name_or_path", "revision")
"""PEFT writes its own values, or none; other programs may write these."""


def _add_to_document(folder: Path, more: dict[str, Any]) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **more}))


def _randomise(model: Any) -> None:
    """As training would have it: nothing stays at its initial value, so that nothing is left out unseen."""
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name or "modules_to_save" in name or "trainable_tokens" in name:
            parameter.data += 0.05 * torch.randn(parameter.shape)


def _is_on(field: str, document: dict[str, Any]) -> bool:
    """PEFT puts some fields back by itself, e.g. fan_in_fan_out for a Linear."""
    value = document.get(field)
    return value not in (None, False, [], {}, "none")


def _parsed(folder: Path, shape: BaseShape) -> tuple[set[str], ParsedAdapter | None]:
    """The fields (and tensors) that are refused, or the adapter."""
    try:
        return set(), parse_peft_folder(folder, shape, Limits())
    except LoraplexError as error:
        named = {violation.field for violation in error.violations}
        return named | {error.metadata.get("field", error.reason)}, None


@torch.no_grad()
def _served(base: Any, parsed: ParsedAdapter) -> torch.Tensor:
    """Logits of what we would serve: the base's weights plus scale · B·A of every site and its bias, nothing else."""
    weights = {}
    base = copy.deepcopy(base)
    for site in parsed.sites:
        a, b = (_values(parsed, f"{site_key(site)}.{part}") for part in "AB")
        name = f"{module_path(site.layer, site.module)}.weight"
        delta = site.scale * (b @ a)
        if site.kind is AdapterKind.LORA_BIAS:
            linear = base.get_submodule(module_path(site.layer, site.module))
            linear.bias = torch.nn.Parameter(site.scale * _values(parsed, f"{site_key(site)}.bias"))
        is_embedding = site.module is Module.EMBED_TOKENS
        weight = base.get_parameter(name) + (delta.T if is_embedding else delta)
        if site.kind is AdapterKind.DORA:
            factor = _values(parsed, f"{site_key(site)}.magnitude") / weight.norm(dim=0 if is_embedding else 1)
            weight = weight * (factor if is_embedding else factor[:, None])
        weights[name] = weight
    for module in parsed.saved:
        weights[f"{module_path(None, module)}.weight"] = _values(parsed, saved_name(module))
    result: torch.Tensor = torch.func.functional_call(base, weights, (TOKENS,)).logits
    return result


def _values(parsed: ParsedAdapter, key: str) -> torch.Tensor:
    dtype, shape, data = parsed.tensors[key]
    assert dtype == "F32"
    return torch.from_numpy(np.frombuffer(data, "<f4").reshape(shape).copy())
