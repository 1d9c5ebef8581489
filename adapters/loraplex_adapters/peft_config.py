"""adapter_config.json of PEFT as a checked, frozen value."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

from loraplex_adapters.json_document import parse_json_object
from loraplex_adapters.kind import AdapterKind
from loraplex_adapters.limits import Limits
from loraplex_adapters.module import GLOBAL_MODULES, Module
from loraplex_adapters.name_suffix import is_plain
from loraplex_adapters.peft_fields import check_fields
from loraplex_adapters.refusal import malformed, quote, unsupported_feature
from loraplex_adapters.refusals import Refusals
from loraplex_contract.errors import InvalidArgument

CONFIG_NAME = "adapter_config.json"
_PEFT_DEFAULT_RANK = 8
_PEFT_DEFAULT_ALPHA = 8
_MAX_EXACT_INT = 2**53
_MAX_NAME_CHARS = 1024
_SAVED_NAMES = {
    "embed_tokens": Module.EMBED_TOKENS,
    "model.embed_tokens": Module.EMBED_TOKENS,
    "lm_head": Module.LM_HEAD,
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PeftConfig:
    """The fields of LoraConfig that decide what a finished adapter computes."""

    r: int
    lora_alpha: int | float
    use_rslora: bool
    kind: AdapterKind
    rank_pattern: Mapping[str, int]
    """In file order: PEFT takes the first pattern that matches."""
    alpha_pattern: Mapping[str, int | float]
    target_modules: tuple[str, ...] | str
    """Names (or their last dotted segments), a regular expression, or "all-linear"."""
    exclude_modules: tuple[str, ...] | str
    layers_to_transform: tuple[int, ...] | None
    """None: all layers."""
    layers_pattern: tuple[str, ...]
    base_model_name: str
    saved: tuple[Module, ...]
    """modules_to_save: embed_tokens, lm_head or both."""

    def scale(self, alpha: float, rank: int) -> float:
        """PEFT's scaling, computed with the same expression so that it is the same double."""
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank


def parse_peft_config(data: bytes, limits: Limits, refusals: Refusals | None = None) -> PeftConfig:
    """Parse adapter_config.json.

    Args:
        refusals: takes the features that are not supported, so that the rest can be checked too. None: raise them.

    Raises:
        InvalidArgument: not JSON, or a field of the wrong type or out of bounds (ADAPTER_MALFORMED).
        FailedPrecondition: a feature that is not supported (ADAPTER_FEATURE_UNSUPPORTED, metadata ``field``).
    """
    document = parse_json_object(data, source=CONFIG_NAME)
    found = refusals if refusals is not None else Refusals()
    check_fields(document, found)
    if refusals is None:
        found.raise_if_any()
    config = PeftConfig(
        r=_rank("r", document.get("r", _PEFT_DEFAULT_RANK)),
        lora_alpha=_alpha("lora_alpha", document.get("lora_alpha", _PEFT_DEFAULT_ALPHA)),
        use_rslora=_flag("use_rslora", document.get("use_rslora")),
        kind=_kind(document),
        rank_pattern={key: _rank("rank_pattern", rank) for key, rank in _patterns("rank_pattern", document, limits)},
        alpha_pattern={key: _alpha("alpha_pattern", a) for key, a in _patterns("alpha_pattern", document, limits)},
        target_modules=_names_or_pattern("target_modules", document.get("target_modules"), limits),
        exclude_modules=_names_or_pattern("exclude_modules", document.get("exclude_modules") or [], limits),
        layers_to_transform=_layers(document.get("layers_to_transform"), limits),
        layers_pattern=_layers_pattern(document.get("layers_pattern"), limits),
        base_model_name=_base_model_name(document.get("base_model_name_or_path")),
        saved=_saved(document.get("modules_to_save"), found),
    )
    if refusals is None:
        found.raise_if_any()
    _check_layer_selection(document, config)
    return config


def _saved(names: object, found: Refusals) -> tuple[Module, ...]:
    if names is None:
        return ()
    if not isinstance(names, list) or not all(type(name) is str for name in names):
        raise _wrong("modules_to_save", names, "a list of names")
    others = [name for name in names if name not in _SAVED_NAMES]
    if others:
        problem = f"names {quote(others[0])}; only embed_tokens and lm_head are supported"
        found.add("modules_to_save", problem, unsupported_feature("modules_to_save", f"modules_to_save {problem}"))
    chosen = {_SAVED_NAMES[name] for name in names if name in _SAVED_NAMES}
    return tuple(module for module in GLOBAL_MODULES if module in chosen)


def _kind(document: Mapping[str, Any]) -> AdapterKind:
    is_dora = _flag("use_dora", document.get("use_dora"))
    if not _flag("lora_bias", document.get("lora_bias")):
        return AdapterKind.DORA if is_dora else AdapterKind.LORA
    if is_dora:
        raise malformed("lora_bias and use_dora exclude each other, in PEFT too", field="lora_bias")
    if type(init := document.get("init_lora_weights", True)) is not bool:
        raise malformed(f"lora_bias needs init_lora_weights true or false, got {quote(init)}", field="lora_bias")
    return AdapterKind.LORA_BIAS


def _check_layer_selection(document: Mapping[str, Any], config: PeftConfig) -> None:
    """The combinations that PEFT's own LoraConfig refuses."""
    for field in ("layers_to_transform", "layers_pattern"):
        if isinstance(config.target_modules, str) and document.get(field) is not None:
            raise malformed(f"{field} cannot be used when target_modules is a string", field=field)
    if config.layers_pattern and document.get("layers_to_transform") is None:
        raise malformed("layers_pattern needs layers_to_transform", field="layers_pattern")


def _wrong(field: str, value: object, expected: str) -> InvalidArgument:
    return malformed(f"{field} must be {expected}, got {quote(value)}", field=field)


def _rank(field: str, value: object) -> int:
    if type(value) is not int or not 1 <= value < _MAX_EXACT_INT:
        raise _wrong(field, value, "a positive integer")
    return value


def _alpha(field: str, value: object) -> int | float:
    if type(value) is int and abs(value) <= _MAX_EXACT_INT:
        return value
    if type(value) is float and math.isfinite(value):
        return value
    raise _wrong(field, value, "a finite number")


def _flag(field: str, value: object) -> bool:
    if value is None or type(value) is bool:
        return bool(value)
    raise _wrong(field, value, "true or false")


def _text(field: str, value: object, limits: Limits) -> str:
    if type(value) is not str or len(value) > limits.max_pattern_chars:
        raise _wrong(field, value, f"text of at most {limits.max_pattern_chars} characters")
    return value


def _texts(field: str, value: object, limits: Limits) -> tuple[str, ...]:
    if type(value) is not list or len(value) > limits.max_patterns:
        raise _wrong(field, value, f"a list of at most {limits.max_patterns} names")
    return tuple(_text(field, item, limits) for item in value)


def _names_or_pattern(field: str, value: object, limits: Limits) -> tuple[str, ...] | str:
    return _text(field, value, limits) if type(value) is str else _texts(field, value, limits)


def _patterns(field: str, document: Mapping[str, Any], limits: Limits) -> list[tuple[str, object]]:
    value = document.get(field)
    if value is None:
        return []
    if type(value) is not dict or len(value) > limits.max_patterns:
        raise _wrong(field, value, f"an object of at most {limits.max_patterns} patterns")
    _check_num_regexes(field, value, limits)
    return [(_text(field, key, limits), item) for key, item in value.items()]


def _check_num_regexes(field: str, patterns: Iterable[str], limits: Limits) -> None:
    num_regexes = sum(not is_plain(pattern) for pattern in patterns)
    if num_regexes > limits.max_regexes:
        message = f"{field} holds {num_regexes} regular expressions; at most {limits.max_regexes} are accepted"
        raise malformed(f"{message}, plain module names are not counted", field=field)


def _layers(value: object, limits: Limits) -> tuple[int, ...] | None:
    if value is None or value == []:
        return None  # PEFT reads an empty list as "all layers"
    items = value if type(value) is list else [value]
    layers = tuple(item for item in items if type(item) is int and item >= 0)
    if len(items) > limits.max_patterns or len(layers) != len(items):
        raise _wrong("layers_to_transform", value, f"a layer index or a list of at most {limits.max_patterns}")
    return layers


def _layers_pattern(value: object, limits: Limits) -> tuple[str, ...]:
    if value is None or value == "":
        return ()
    patterns = _texts("layers_pattern", [value] if type(value) is str else value, limits)
    if len(patterns) > limits.max_regexes:
        raise _wrong("layers_pattern", value, f"at most {limits.max_regexes} patterns")
    return patterns


def _base_model_name(value: object) -> str:
    if value is None:
        return ""
    if type(value) is not str or len(value) > _MAX_NAME_CHARS:
        raise _wrong("base_model_name_or_path", value, f"text of at most {_MAX_NAME_CHARS} characters")
    return value
