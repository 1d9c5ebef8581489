"""Every field of PEFT's LoraConfig (0.21), and what is done with it. A closed schema: what is not here is refused.

A field is *honoured* (``peft_config.py`` reads it), *harmless* (it cannot change what a finished adapter computes) or
*refused* when it has any value but its inert ones. For most refused fields an empty value is not inert: PEFT turns
``{}`` into a sub-config with defaults and switches the feature on.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from loraplex_adapters.refusal import malformed, quote, unsupported_feature
from loraplex_adapters.refusals import Refusals

HONOURED: Final = frozenset(
    {
        "peft_type",
        "base_model_name_or_path",
        "r",
        "lora_alpha",
        "use_rslora",
        "rank_pattern",
        "alpha_pattern",
        "target_modules",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
        "lora_bias",
        "use_dora",
        "modules_to_save",
    }
)

_INITS_THAT_LEAVE_THE_BASE_ALONE = (True, False, None, "gaussian", "orthogonal", "mica")
"""pissa, olora, corda, loftq and lora_ga also change the base weights; eva comes with eva_config."""


def _is_one_of(*values: object) -> Callable[[object], bool]:
    return lambda value: any(type(value) is type(inert) and value == inert for inert in values)


def _has_type(*types: type) -> Callable[[object], bool]:
    return lambda value: value is None or type(value) in types


_HARMLESS: Final[Mapping[str, Callable[[object], bool]]] = {
    "task_type": _is_one_of(None, "CAUSAL_LM"),
    "auto_mapping": _has_type(dict),  # names of Python classes; never imported here
    "peft_version": _has_type(str),
    "revision": _has_type(str),
    "inference_mode": _has_type(bool),
    "lora_dropout": _has_type(int, float),  # training only
    "init_lora_weights": _is_one_of(*_INITS_THAT_LEAVE_THE_BASE_ALONE),
    "megatron_core": _has_type(str),  # read by PEFT only with megatron_config
    "qalora_group_size": _has_type(int),  # read by PEFT only with use_qalora
    "runtime_config": _has_type(dict),  # where PEFT keeps weights while it computes
}

_REFUSED: Final[Mapping[str, Callable[[object], bool]]] = {
    "bias": _is_one_of(None, "none"),
    "fan_in_fan_out": _is_one_of(None, False),
    "trainable_token_indices": _is_one_of(None),
    "layer_replication": _is_one_of(None, []),
    "target_parameters": _is_one_of(None, []),
    "alora_invocation_tokens": _is_one_of(None),
    "use_qalora": _is_one_of(None, False),
    "use_bdlora": _is_one_of(None, False),
    "ensure_weight_tying": _is_one_of(None, False),
    "megatron_config": _is_one_of(None),
    "loftq_config": _is_one_of(None, {}),
    "eva_config": _is_one_of(None),
    "corda_config": _is_one_of(None),
    "lora_ga_config": _is_one_of(None),
    "velora_config": _is_one_of(None),
    "monteclora_config": _is_one_of(None),
    "arrow_config": _is_one_of(None),
    "kasa_config": _is_one_of(None),
}

HARMLESS: Final = frozenset(_HARMLESS)
REFUSED: Final = frozenset(_REFUSED)

_is_inert_unknown = _is_one_of(None, False)


def check_fields(document: Mapping[str, Any], found: Refusals) -> None:
    """Refuse by name every field that would make the adapter compute something else than plain LoRA.

    Finds:
        FailedPrecondition: ADAPTER_FEATURE_UNSUPPORTED with metadata ``field``.

    Raises:
        InvalidArgument: peft_type is missing (ADAPTER_MALFORMED).
    """
    if "peft_type" not in document:
        raise malformed("adapter_config.json has no peft_type; PEFT writes it", field="peft_type")
    if document["peft_type"] != "LORA":
        message = f"peft_type is {quote(document['peft_type'])}; only 'LORA' is supported"
        found.add("peft_type", message, unsupported_feature("peft_type", message))
        # Nothing else in it means what it would mean for LoRA.
        found.raise_if_any()
    for field, value in document.items():
        if field not in HONOURED and not _inert_check(field)(value):
            message = _explain(field, value)
            found.add(field, message, unsupported_feature(field, message))


def _inert_check(field: str) -> Callable[[object], bool]:
    return _HARMLESS.get(field) or _REFUSED.get(field) or _is_inert_unknown


def _explain(field: str, value: object) -> str:
    if field in _HARMLESS or field in _REFUSED:
        return f"{field}={quote(value)} is not supported; train or export the adapter without it"
    return f"adapter_config.json has a field that is not known here: {quote(field)}={quote(value)}"
