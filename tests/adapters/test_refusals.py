"""All that is wrong with an adapter is told at once, by name and with its reason, however much it is."""

import dataclasses

import pytest
from tests.adapters.adapter_folder import BASE, config, lora_tensors, matrix, write_folder

from loraplex_adapters.limits import Limits
from loraplex_adapters.module import Module
from loraplex_adapters.peft_folder import parse_peft_folder
from loraplex_adapters.refusals import Refusals
from loraplex_adapters.tensor import TensorBytes
from loraplex_contract.errors import FailedPrecondition, InvalidArgument, RequestRejected

PREFIX = "base_model.model.model.layers"


def _refusal(folder, base=BASE, limits=None):
    with pytest.raises(RequestRejected) as caught:
        parse_peft_folder(folder, base, limits or Limits())
    return caught.value


def _said(error):
    return {violation.field: violation.description for violation in error.violations}


def test_every_bad_module_is_named_with_its_own_reason(tmp_path):
    tensors = lora_tensors(Module.Q_PROJ, Module.V_PROJ, Module.UP_PROJ)
    q_a, q_b = (f"{PREFIX}.0.self_attn.q_proj.lora_{part}.weight" for part in "AB")
    v_a, v_b = (f"{PREFIX}.1.self_attn.v_proj.lora_{part}.weight" for part in "AB")
    up_b = f"{PREFIX}.0.mlp.up_proj.lora_B.weight"
    tensors[q_a] = matrix(4, 17)
    tensors[q_b] = matrix(16, 3)
    del tensors[v_a]
    tensors[v_b] = TensorBytes("F32", (8, 4), b"\0\0\xc0\x7f" * 32)
    tensors[up_b] = TensorBytes("BF16", (24, 4), b"\0" * 192)
    gate = f"{PREFIX}.1.mlp.gate_proj.lora_A.weight"
    tensors[gate] = matrix(4, 16)
    experts = f"{PREFIX}.1.mlp.experts.0.lora_A.weight"
    tensors[experts] = matrix(4, 16)
    error = _refusal(
        write_folder(tmp_path, document=config(target_modules=["q_proj", "v_proj", "up_proj"]), tensors=tensors)
    )
    expected = {
        q_a: "other dimensions",
        q_b: "its rank is 3",
        v_a: "is missing, its partner",
        v_b: "NaN",
        up_b: "is BF16",
        gate: "does not select",
        experts: "without LoRA support",
    }
    said = _said(error)
    assert set(said) == set(expected)
    for name, part in expected.items():
        assert part in said[name]
    assert error.message.endswith("(and 6 more)")


def test_unsupported_fields_and_bad_modules_are_told_together(tmp_path):
    document = config(trainable_token_indices=[1], bias="all", rank_pattern={"q_proj": 600}, some_future_field=1)
    error = _refusal(write_folder(tmp_path, document=document))
    assert isinstance(error, FailedPrecondition)
    assert (error.reason, error.metadata) == ("ADAPTER_FEATURE_UNSUPPORTED", {"field": "trainable_token_indices"})
    said = _said(error)
    assert {"trainable_token_indices", "bias", "some_future_field"} <= set(said)
    assert "512" in said["model.layers.{0-1}.self_attn.q_proj"]
    assert f"{PREFIX}.{{0-1}}.self_attn.q_proj.lora_A.weight" in said


def test_a_wrong_type_is_told_with_the_unsupported_fields_before_it(tmp_path):
    error = _refusal(write_folder(tmp_path, document=config(bias="all", r="four")))
    assert list(_said(error)) == ["bias", "adapter_config.json"]
    assert "r must be a positive integer" in error.violations[1].description


def test_modules_that_are_no_projections_are_all_named(tmp_path):
    error = _refusal(write_folder(tmp_path, document=config(target_modules=r".*(self_attn|norm)")))
    assert {"model.norm", "model.layers.{0-1}.self_attn", "model.layers.{0-1}.input_layernorm"} <= set(_said(error))


def test_the_same_in_many_layers_is_told_once_with_the_layers(tmp_path):
    """448 tensors of a wrong shape have room in a status of 4 KiB."""
    base = dataclasses.replace(BASE, num_layers=32)
    modules = (Module.Q_PROJ, Module.K_PROJ, Module.V_PROJ, Module.O_PROJ, *list(Module)[4:7])
    tensors = lora_tensors(*modules, base=base)
    names = [name for name in tensors if ".7." not in name]
    document = config(target_modules=[module.value for module in modules], r=5)
    error = _refusal(write_folder(tmp_path, document=document, tensors={name: tensors[name] for name in names}), base)
    said = _said(error)
    assert len(said) == 2 * 2 * len(modules)
    wrong = f"{PREFIX}.{{0-6,8-31}}.self_attn.q_proj.lora_A.weight"
    assert "its rank is 4 and the config says 5" in said[wrong]
    assert "no tensors for layer 7" in said[f"{PREFIX}.7.self_attn.q_proj.lora_A.weight"]
    assert error.message.endswith(f"(and {len(tensors) - 1} more)")


def test_names_of_an_attacker_are_bounded_and_quoted(tmp_path):
    extra = {f"\x1b[31m{'x' * 300}{index}": matrix(1, 1) for index in range(500)}
    error = _refusal(write_folder(tmp_path, tensors={**lora_tensors(Module.Q_PROJ), **extra}))
    assert len(error.violations) <= 65
    for violation in error.violations:
        assert "\x1b" not in violation.field + violation.description
        assert len(violation.field) < 200


def test_tensors_of_foreign_dtypes_are_all_named(tmp_path):
    tensors = lora_tensors(Module.Q_PROJ)
    folder = write_folder(tmp_path, tensors=tensors)
    path = folder / "adapter_model.safetensors"
    data = path.read_bytes().replace(b'"dtype":"F32"', b'"dtype":"U32"')
    path.write_bytes(data)
    error = _refusal(folder)
    assert error.reason == "ADAPTER_DTYPE_UNSUPPORTED"
    assert len(_said(error)) == 2, "A and B of q_proj, for both layers"


def test_one_refusal_keeps_its_own_message_and_figures():
    found = Refusals()
    found.raise_if_any()
    found.add("r", "is too large", InvalidArgument("r is too large", reason="X", metadata={"a": "b"}))
    with pytest.raises(InvalidArgument) as caught:
        found.raise_if_any()
    assert (caught.value.message, caught.value.reason, caught.value.metadata) == ("r is too large", "X", {"a": "b"})
