"""adapter_config.json is a closed schema: every field of LoraConfig is classified, and refused by name if need be."""

import dataclasses
import json
import time

import pytest
from peft import LoraConfig
from tests.adapters.adapter_folder import BASE, config

from loraplex_adapters.limits import Limits
from loraplex_adapters.peft_config import parse_peft_config
from loraplex_adapters.peft_fields import HARMLESS, HONOURED, REFUSED
from loraplex_adapters.peft_targets import resolve_targets
from loraplex_contract.errors import FailedPrecondition, InvalidArgument

ACTIVE_VALUES = {
    "bias": "all",
    "fan_in_fan_out": True,
    "trainable_token_indices": [1, 2],
    "layer_replication": [[0, 2], [1, 2]],
    "target_parameters": ["mlp.experts.up_proj"],
    "alora_invocation_tokens": [5, 6],
    "use_qalora": True,
    "use_bdlora": {"nblocks": 2},
    "ensure_weight_tying": True,
    "megatron_config": {"a": 1},
    "loftq_config": {"loftq_bits": 4},
    "eva_config": {"rho": 2.0},
    "corda_config": {"corda_method": "ipm"},
    "lora_ga_config": {"direction": "ArB2r"},
    "velora_config": {"num_groups": 2},
    "monteclora_config": {"num_samples": 8},
    "arrow_config": {"top_k": 3},
    "kasa_config": {"beta": 1.0},
}


BOTH = {"lora_bias": True, "use_dora": True}


def _parse(document):
    return parse_peft_config(json.dumps(document).encode(), Limits())


def test_every_field_of_the_installed_peft_is_classified_exactly_once():
    fields = {field.name for field in dataclasses.fields(LoraConfig)}
    assert fields == HONOURED | HARMLESS | REFUSED
    assert len(fields) == len(HONOURED) + len(HARMLESS) + len(REFUSED)


def test_a_bias_of_another_type_or_initialisation_is_malformed():
    for changes in ({"lora_bias": "all"}, {"lora_bias": True, "init_lora_weights": "gaussian"}, BOTH):
        with pytest.raises(InvalidArgument, match="lora_bias"):
            _parse(config(**changes))


def test_the_defaults_of_peft_are_accepted():
    document = LoraConfig(target_modules=["q_proj"]).to_dict()
    document["target_modules"] = ["q_proj"]
    assert _parse(document).target_modules == ("q_proj",)


def test_every_refused_field_has_an_active_value_here():
    assert set(ACTIVE_VALUES) == REFUSED


@pytest.mark.parametrize("field", sorted(REFUSED))
def test_a_refused_field_is_refused_by_its_name(field):
    with pytest.raises(FailedPrecondition, match=field) as caught:
        _parse(config(**{field: ACTIVE_VALUES[field]}))
    assert caught.value.reason == "ADAPTER_FEATURE_UNSUPPORTED"
    assert caught.value.metadata == {"field": field}


@pytest.mark.parametrize(
    "field", sorted(name for name in REFUSED if name.endswith("_config") and name != "loftq_config")
)
def test_an_empty_sub_config_is_refused_since_peft_switches_the_feature_on(field):
    with pytest.raises(FailedPrecondition, match=field):
        _parse(config(**{field: {}}))


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_16", "olora", "corda", "loftq", "eva", "lora_ga", "PISSA", 1])
def test_initialisations_that_may_change_the_base_are_refused(init):
    with pytest.raises(FailedPrecondition) as caught:
        _parse(config(init_lora_weights=init))
    assert caught.value.metadata == {"field": "init_lora_weights"}


def test_an_unknown_field_is_refused_unless_it_is_plainly_off():
    assert _parse(config(some_future_switch=False, some_future_config=None)).r == 4
    with pytest.raises(FailedPrecondition, match="some_future_switch") as caught:
        _parse(config(some_future_switch=True))
    assert caught.value.metadata == {"field": "some_future_switch"}


@pytest.mark.parametrize("peft_type", ["IA3", "LOHA", "lora", None, 3])
def test_another_peft_type_is_refused(peft_type):
    with pytest.raises(FailedPrecondition) as caught:
        _parse(config(peft_type=peft_type))
    assert caught.value.metadata == {"field": "peft_type"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("r", 0), ("r", -1), ("r", True), ("r", 4.0), ("r", "4"), ("r", 2**60),
        ("lora_alpha", True), ("lora_alpha", "16"), ("lora_alpha", 10**400), ("lora_alpha", None),
        ("use_rslora", 1), ("use_rslora", "true"),
        ("rank_pattern", []), ("rank_pattern", {"q_proj": 0}), ("rank_pattern", {"q_proj": 2.0}),
        ("alpha_pattern", {"q_proj": None}), ("alpha_pattern", "q"),
        ("target_modules", None), ("target_modules", 3), ("target_modules", [3]), ("target_modules", {"q_proj": 1}),
        ("target_modules", ["x"] * 2000), ("target_modules", ["x" * 5000]),
        ("exclude_modules", 3), ("exclude_modules", [None]),
        ("layers_to_transform", -1), ("layers_to_transform", [1.0]), ("layers_to_transform", "0"),
        ("layers_pattern", 3), ("layers_pattern", "layers"),
        ("base_model_name_or_path", 3), ("base_model_name_or_path", "x" * 2000),
    ],
)  # fmt: skip
def test_a_field_of_the_wrong_type_or_size_is_malformed_and_named(field, value):
    with pytest.raises(InvalidArgument, match=field) as caught:
        _parse(config(**{field: value}))
    assert caught.value.reason == "ADAPTER_MALFORMED"


@pytest.mark.parametrize(
    "text",
    [
        b"", b"[]", b"3", b"{", b"\xff\xfe", b'{"r": NaN}', b'{"r": 1, "r": 2}', b"[" * 100_000, b'{"a":' * 50_000,
        b'{"r": ' + b"9" * 5000 + b"}",
    ],
)  # fmt: skip
def test_what_is_not_one_strict_json_object_is_malformed(text):
    with pytest.raises(InvalidArgument) as caught:
        parse_peft_config(text, Limits())
    assert caught.value.reason == "ADAPTER_MALFORMED"


@pytest.mark.parametrize("pattern", [r"(?=q)q_proj", r"(q)\1_proj", "x{,3}", "[[:alpha:]]+", "a++"])
def test_a_pattern_outside_re2_is_refused_clearly(pattern):
    with pytest.raises(FailedPrecondition, match="target_modules") as caught:
        resolve_targets(_parse(config(target_modules=pattern)), BASE, Limits())
    assert caught.value.reason == "ADAPTER_FEATURE_UNSUPPORTED"


@pytest.mark.parametrize("pattern", ["(", "*", "[", r"\Q", "(" * 3000])
def test_a_pattern_that_is_no_regular_expression_is_malformed(pattern):
    with pytest.raises(InvalidArgument):
        resolve_targets(_parse(config(rank_pattern={pattern: 3})), BASE, Limits())


def test_a_layer_beyond_the_base_is_refused():
    with pytest.raises(FailedPrecondition, match="layer 7") as caught:
        resolve_targets(_parse(config(layers_to_transform=[0, 7])), BASE, Limits())
    assert caught.value.reason == "ADAPTER_BASE_MISMATCH"


def test_no_target_at_all_is_refused():
    with pytest.raises(FailedPrecondition) as caught:
        resolve_targets(_parse(config(target_modules=[])), BASE, Limits())
    assert caught.value.reason == "ADAPTER_NO_MODULES"


def test_a_rank_above_the_limit_is_refused_with_the_limit():
    with pytest.raises(FailedPrecondition, match="512") as caught:
        resolve_targets(_parse(config(r=513)), BASE, Limits())
    assert caught.value.reason == "ADAPTER_RANK_TOO_LARGE"


def test_many_plain_rank_patterns_are_fast_and_many_regular_expressions_are_refused():
    base = dataclasses.replace(BASE, num_layers=80)
    patterns = {f"^model.layers.{i % 80}.self_attn.{'x' * (i // 80)}q_proj": 4 for i in range(1000)}
    started = time.process_time()
    targets = resolve_targets(_parse(config(rank_pattern=patterns, alpha_pattern=patterns)), base, Limits())
    assert time.process_time() - started < 5.0
    assert any("rank_pattern: 920 patterns without" in note for note in targets.notes)
    with pytest.raises(InvalidArgument, match="65 regular expressions"):
        _parse(config(alpha_pattern={f"q.*{i}": 1 for i in range(65)}))


@pytest.mark.parametrize("unit", ["(a|b|c|.*)*" * 300, "(.{0,30}){0,30}x", "(m?.?)*" * 200])
def test_regular_expressions_that_are_too_much_work_are_refused_before_they_run(unit):
    patterns = {f"{unit}{i}": 3 for i in range(64)}
    started = time.process_time()
    with pytest.raises(FailedPrecondition, match="instructions") as caught:
        resolve_targets(_parse(config(rank_pattern=patterns)), BASE, Limits())
    assert caught.value.metadata == {"field": "rank_pattern"}
    assert time.process_time() - started < 2.0


def test_a_scale_that_overflows_is_refused():
    with pytest.raises(InvalidArgument, match="lora_alpha") as caught:
        resolve_targets(_parse(config(lora_alpha=1e30)), BASE, Limits())
    assert caught.value.reason == "ADAPTER_NONFINITE"
