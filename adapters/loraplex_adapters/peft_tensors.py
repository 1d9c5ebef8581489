"""The tensors of a PEFT file against the sites that its config selects: they must agree exactly."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from loraplex_adapters.base_embedding import equals_base_weight
from loraplex_adapters.base_shape import BaseShape
from loraplex_adapters.finite import is_finite, is_zero
from loraplex_adapters.module import GLOBAL_MODULES, Module
from loraplex_adapters.peft_targets import module_path, module_paths
from loraplex_adapters.refusal import (
    BASE_MISMATCH,
    DTYPE_UNSUPPORTED,
    MODULE_UNSUPPORTED,
    NONFINITE,
    malformed,
    quote,
    unfit,
    unsupported_feature,
)
from loraplex_adapters.spec import LoraSite, site_key
from loraplex_adapters.tensor import TensorBytes

_PREFIX = "base_model.model."
_LORA_NAME = re.compile(r"base_model\.model\.(?P<path>.+)\.(lora_[AB]\.weight|lora_embedding_[AB])")
_LAYER_PATH = re.compile(r"model\.layers\.(?P<layer>\d{1,9})\.")
_FEATURE_MARKS = {
    "lora_magnitude_vector": "use_dora",
    "lora_B.bias": "lora_bias",
    "lora_embedding_bias": "lora_bias",
    "modules_to_save": "modules_to_save",
    "trainable_tokens": "trainable_token_indices",
    "lora_diag": "kasa_config",
}
"""Part of a tensor name -> the LoraConfig field that makes PEFT write it."""


class _Expected(NamedTuple):
    name: str
    """In the PEFT file."""
    key: str
    """Ours: ``<site key>.A`` or ``<site key>.B``."""
    shape: tuple[int, int]
    rank_dim: int
    """Which of the two dimensions is the rank."""


class CheckedTensors(NamedTuple):
    """The adapter's own tensors, under our names, and what the report should say about them."""

    tensors: dict[str, TensorBytes]
    notes: tuple[str, ...]


def check_tensors(found: Mapping[str, TensorBytes], sites: tuple[LoraSite, ...], base: BaseShape) -> CheckedTensors:
    """Match ``found`` one to one with what ``sites`` need.

    All LoRA tensors must have one dtype: results are promised for that dtype, and PEFT writes no others.

    Raises:
        InvalidArgument: a tensor too many or missing, a rank that is not the config's, NaN or infinity.
        FailedPrecondition: a tensor that does not fit this base model or belongs to an unsupported feature.
    """
    expected = {item.name: item for site in sites for item in _expected_of(site, base)}
    notes = [_check_extra(name, tensor, base) for name, tensor in found.items() if name not in expected]
    for item in expected.values():
        if item.name not in found:
            raise _missing(item, found, expected)
        _check_shape(item, found[item.name].shape)
    _check_one_dtype({name: found[name] for name in expected})
    for name in expected:
        if not is_finite(found[name]):
            raise malformed(f"tensor {name!r} holds NaN or infinity", reason=NONFINITE, tensor=name)
    tensors = {item.key: found[item.name] for item in expected.values()}
    if _changes_nothing(tensors, sites):
        notes.append("A or B of every site is zero: the adapter changes nothing yet")
    return CheckedTensors(tensors, tuple(notes))


def _expected_of(site: LoraSite, base: BaseShape) -> tuple[_Expected, _Expected]:
    path, key = _PREFIX + module_path(site.layer, site.module), site_key(site)
    in_features, out_features = base.features(site.module)
    is_embedding = site.module is Module.EMBED_TOKENS
    name_a, name_b = ("lora_embedding_A", "lora_embedding_B") if is_embedding else ("lora_A.weight", "lora_B.weight")
    return (
        _Expected(f"{path}.{name_a}", f"{key}.A", (site.rank, in_features), 0),
        _Expected(f"{path}.{name_b}", f"{key}.B", (out_features, site.rank), 1),
    )


def _check_shape(item: _Expected, shape: tuple[int, ...]) -> None:
    if shape == item.shape:
        return
    text = f"tensor {item.name!r} has shape {list(shape)}, expected {list(item.shape)}"
    rank, features = shape[item.rank_dim], shape[1 - item.rank_dim]
    if features != item.shape[1 - item.rank_dim]:
        message = f"{text}: the base model has other dimensions. Use the adapter's own base model"
        raise unfit(message, reason=BASE_MISMATCH, tensor=item.name)
    wanted = item.shape[item.rank_dim]
    message = f"{text}: its rank is {rank} and the config says {wanted}. Correct r or rank_pattern"
    raise malformed(message, tensor=item.name)


def _check_one_dtype(tensors: Mapping[str, TensorBytes]) -> None:
    first_name, first = next(iter(tensors.items()))
    for name, tensor in tensors.items():
        if tensor.dtype != first.dtype:
            message = f"{first_name!r} is {first.dtype} and {name!r} is {tensor.dtype}; convert all to one dtype"
            raise unfit(message, reason=DTYPE_UNSUPPORTED, tensor=name)


def _missing(item: _Expected, found: Mapping[str, TensorBytes], expected: Mapping[str, _Expected]) -> Exception:
    partner_key = item.key[:-1] + ("B" if item.key.endswith("A") else "A")
    partner = next(other.name for other in expected.values() if other.key == partner_key)
    if partner in found:
        return malformed(f"tensor {item.name!r} is missing, its partner {partner!r} is there", tensor=item.name)
    layer = _LAYER_PATH.match(item.name.removeprefix(_PREFIX))
    if layer is not None and not any(name.startswith(f"{_PREFIX}{layer.group()}") for name in found):
        message = (
            f"tensor {item.name!r} is missing: the adapter has no tensors for layer {layer['layer']}, the base does"
        )
        return unfit(message, reason=BASE_MISMATCH, tensor=item.name)
    message = f"tensor {item.name!r} is missing, and target_modules selects its module. Correct target_modules"
    return malformed(message, tensor=item.name)


def _check_extra(name: str, tensor: TensorBytes, base: BaseShape) -> str:
    """The note for a tensor that belongs to no site; raises unless it is the base's own embedding."""
    for module in GLOBAL_MODULES:
        path = _PREFIX + module_path(None, module)
        if name in (f"{path}.base_layer.weight", f"{path}.weight"):
            return _check_base_copy(name, module, tensor, base)
    raise _unexpected(name, base)


def _check_base_copy(name: str, module: Module, tensor: TensorBytes, base: BaseShape) -> str:
    expected = (base.vocab_size, base.hidden_size)
    if tensor.shape != expected:
        message = f"tensor {name!r} has shape {list(tensor.shape)}, the base model's is {list(expected)}"
        raise unfit(f"{message}: a changed vocabulary is not supported", reason=BASE_MISMATCH, tensor=name)
    is_tied = base.tie_word_embeddings
    if base.folder is None or not equals_base_weight(base.folder, module, tensor, is_tied=is_tied):
        message = f"tensor {name!r} is not the base model's own weight; save with save_embedding_layers=False"
        raise unfit(f"{message} if it was not trained", reason=BASE_MISMATCH, tensor=name)
    return f"{name} equals the base model's own weight and was left out"


def _unexpected(name: str, base: BaseShape) -> Exception:
    for mark, field in _FEATURE_MARKS.items():
        if mark in name:
            return unsupported_feature(field, f"tensor {quote(name)} belongs to {field}, which is not supported")
    match = _LORA_NAME.fullmatch(name)
    if match is None:
        return malformed(f"tensor {quote(name)} is not a name that PEFT writes for LoRA", tensor=quote(name))
    path = match["path"]
    layer = _LAYER_PATH.match(path)
    if layer is not None and int(layer["layer"]) >= base.num_layers:
        message = f"tensor {quote(name)} is for layer {layer['layer']}; the base model has {base.num_layers} layers"
        return unfit(message, reason=BASE_MISMATCH, tensor=quote(name))
    if path in module_paths(base):
        message = f"tensor {quote(name)} is for a module that the config does not select. Correct target_modules"
        return malformed(message, tensor=quote(name))
    return unfit(
        f"tensor {quote(name)} is for a module without LoRA support", reason=MODULE_UNSUPPORTED, tensor=quote(name)
    )


def _changes_nothing(tensors: Mapping[str, TensorBytes], sites: tuple[LoraSite, ...]) -> bool:
    keys = [site_key(site) for site in sites if site.scale != 0.0]
    return all(is_zero(tensors[f"{key}.B"]) or is_zero(tensors[f"{key}.A"]) for key in keys)
