"""The tensors of a PEFT file against the sites that its config selects: they must agree exactly."""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from loraplex_adapters.base_embedding import equals_base_weight
from loraplex_adapters.base_shape import BaseShape
from loraplex_adapters.finite import is_finite, is_zero
from loraplex_adapters.kind import AdapterKind
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
from loraplex_adapters.refusals import Refusals
from loraplex_adapters.spec import LoraSite, saved_name, site_key
from loraplex_adapters.tensor import TensorBytes, widened
from loraplex_contract.errors import LoraplexError

_PREFIX = "base_model.model."
_LORA_NAME = re.compile(r"base_model\.model\.(?P<path>.+)\.(lora_[AB]\.weight|lora_embedding_[AB])")
_LAYER_PATH = re.compile(r"model\.layers\.(?P<layer>\d{1,9})\.")
_FEATURE_MARKS = {
    "lora_embedding_bias": "lora_bias",
    "modules_to_save": "modules_to_save",
    "trainable_tokens": "trainable_token_indices",
    "lora_diag": "kasa_config",
}
"""Part of a tensor name -> the LoraConfig field, not supported, that makes PEFT write it."""
_SWITCHED_BY = {"lora_B.bias": "lora_bias", "lora_magnitude_vector": "use_dora"}
"""End of a tensor name -> the LoraConfig field, supported, that makes PEFT write it."""


class _Expected(NamedTuple):
    name: str
    """In the PEFT file."""
    key: str
    """Ours; see ``tensor_names``."""
    shape: tuple[int, ...]
    rank_dim: int | None
    """Which of two dimensions is the rank; None where it is no matrix."""


class CheckedTensors(NamedTuple):
    """The adapter's own tensors, under our names, and what the report should say about them."""

    tensors: dict[str, TensorBytes]
    notes: tuple[str, ...]


def check_tensors(
    found: Mapping[str, TensorBytes],
    sites: tuple[LoraSite, ...],
    base: BaseShape,
    refusals: Refusals,
    saved: tuple[Module, ...] = (),
) -> CheckedTensors:
    """Match ``found`` one to one with what ``sites`` and the modules that are ``saved`` whole need.

    All LoRA tensors must have one dtype: results are promised for that dtype, and PEFT writes no others. A module that
    is saved whole has the base's dtype, as PEFT leaves it; beside LoRA in F32 it is widened, which changes no number.

    Raises:
        InvalidArgument: a tensor too many or missing, a rank that is not the config's, NaN or infinity.
        FailedPrecondition: a tensor that does not fit this base model or belongs to an unsupported feature.
    """
    expected = {item.name: item for site in sites for item in _expected_of(site, base)}
    expected |= {item.name: item for item in (_saved_of(module, base) for module in saved)}
    extras = {name: tensor for name, tensor in found.items() if name not in expected}
    notes = [note for name, tensor in extras.items() if (note := _check_extra(name, tensor, base, refusals))]
    for item in expected.values():
        if item.name in found:
            _check_shape(item, found[item.name].shape, refusals)
        else:
            _check_missing(item, found, expected, refusals)
    present = {name: found[name] for name in expected if name in found}
    names_saved = {_saved_of(module, base).name for module in saved}
    lora = {name: tensor for name, tensor in present.items() if name not in names_saved}
    _check_one_dtype(lora, refusals)
    dtype = next((tensor.dtype for tensor in lora.values()), "")
    for name in names_saved & present.keys():
        if dtype == "F32":
            present[name] = widened(present[name])
        elif present[name].dtype != dtype:
            problem = f"is {present[name].dtype} beside LoRA in {dtype}; convert all to one dtype"
            _refuse(refusals, unfit, name, problem, reason=DTYPE_UNSUPPORTED)
    for name, tensor in present.items():
        if not is_finite(tensor):
            _refuse(refusals, malformed, name, "holds NaN or infinity", reason=NONFINITE)
    refusals.raise_if_any()
    tensors = {item.key: present[item.name] for item in expected.values()}
    if not saved and _changes_nothing(tensors, sites):
        notes.append("A or B of every site is zero: the adapter changes nothing yet")
    return CheckedTensors(tensors, tuple(notes))


def _expected_of(site: LoraSite, base: BaseShape) -> tuple[_Expected, ...]:
    path, key = _PREFIX + module_path(site.layer, site.module), site_key(site)
    in_features, out_features = base.features(site.module)
    is_embedding = site.module is Module.EMBED_TOKENS
    name_a, name_b = ("lora_embedding_A", "lora_embedding_B") if is_embedding else ("lora_A.weight", "lora_B.weight")
    expected = [
        _Expected(f"{path}.{name_a}", f"{key}.A", (site.rank, in_features), 0),
        _Expected(f"{path}.{name_b}", f"{key}.B", (out_features, site.rank), 1),
    ]
    if site.kind is AdapterKind.LORA_BIAS:
        expected.append(_Expected(f"{path}.lora_B.bias", f"{key}.bias", (out_features,), None))
    if site.kind is AdapterKind.DORA:
        expected.append(_Expected(f"{path}.lora_magnitude_vector", f"{key}.magnitude", (out_features,), None))
    return tuple(expected)


def _saved_of(module: Module, base: BaseShape) -> _Expected:
    name = f"{_PREFIX}{module_path(None, module)}.weight"
    return _Expected(name, saved_name(module), (base.vocab_size, base.hidden_size), None)


def _refuse(refusals: Refusals, make: Callable[..., LoraplexError], name: str, problem: str, **details: str) -> None:
    """``name`` may be anything that a file can hold, so it is shown quoted."""
    shown = quote(name)
    refusals.add(name, problem, make(f"tensor {shown} {problem}", tensor=shown[1:-1], **details))


def _check_shape(item: _Expected, shape: tuple[int, ...], refusals: Refusals) -> None:
    if shape == item.shape:
        return
    text = f"has shape {list(shape)}, expected {list(item.shape)}"
    if len(shape) != len(item.shape):
        _refuse(refusals, malformed, item.name, f"{text}: it has {len(shape)} dimensions")
        return
    if item.rank_dim is None:
        problem = f"{text}: the base model has other dimensions. Use the adapter's own base model"
        _refuse(refusals, unfit, item.name, problem, reason=BASE_MISMATCH)
        return
    rank, features = shape[item.rank_dim], shape[1 - item.rank_dim]
    if features != item.shape[1 - item.rank_dim]:
        problem = f"{text}: the base model has other dimensions. Use the adapter's own base model"
        _refuse(refusals, unfit, item.name, problem, reason=BASE_MISMATCH)
    else:
        wanted = item.shape[item.rank_dim]
        problem = f"{text}: its rank is {rank} and the config says {wanted}. Correct r or rank_pattern"
        _refuse(refusals, malformed, item.name, problem)


def _check_one_dtype(tensors: Mapping[str, TensorBytes], refusals: Refusals) -> None:
    first_name, first = next(iter(tensors.items()), ("", None))
    for name, tensor in tensors.items():
        if first is not None and tensor.dtype != first.dtype:
            problem = f"is {tensor.dtype} and {quote(first_name)} is {first.dtype}; convert all to one dtype"
            _refuse(refusals, unfit, name, problem, reason=DTYPE_UNSUPPORTED)


def _check_missing(
    item: _Expected, found: Mapping[str, TensorBytes], expected: Mapping[str, _Expected], refusals: Refusals
) -> None:
    if item.key.endswith(".saved"):
        _refuse(refusals, malformed, item.name, "is missing, and modules_to_save names its module")
        return
    site = item.key.rpartition(".")[0]
    partners = [other.name for other in expected.values() if other.key.rpartition(".")[0] == site]
    partner = next((name for name in partners if name in found), None)
    if partner is not None:
        _refuse(refusals, malformed, item.name, f"is missing, its partner {partner!r} is there")
        return
    layer = _LAYER_PATH.match(item.name.removeprefix(_PREFIX))
    if layer is not None and not any(name.startswith(f"{_PREFIX}{layer.group()}") for name in found):
        problem = f"is missing: the adapter has no tensors for layer {layer['layer']}, the base does"
        _refuse(refusals, unfit, item.name, problem, reason=BASE_MISMATCH)
        return
    problem = "is missing, and target_modules selects its module. Correct target_modules"
    _refuse(refusals, malformed, item.name, problem)


def _check_extra(name: str, tensor: TensorBytes, base: BaseShape, refusals: Refusals) -> str:
    """The note for a tensor that belongs to no site and is the base's own embedding; empty for what is refused."""
    for module in GLOBAL_MODULES:
        path = _PREFIX + module_path(None, module)
        if name in (f"{path}.base_layer.weight", f"{path}.weight"):
            return _check_base_copy(name, module, tensor, base, refusals)
    _refuse_unexpected(name, base, refusals)
    return ""


def _check_base_copy(name: str, module: Module, tensor: TensorBytes, base: BaseShape, refusals: Refusals) -> str:
    expected = (base.vocab_size, base.hidden_size)
    if tensor.shape != expected:
        text = f"has shape {list(tensor.shape)}, the base model's is {list(expected)}"
        _refuse(refusals, unfit, name, f"{text}: a changed vocabulary is not supported", reason=BASE_MISMATCH)
        return ""
    is_tied = base.tie_word_embeddings
    if base.folder is None or not equals_base_weight(base.folder, module, tensor, is_tied=is_tied):
        text = "is not the base model's own weight; save with save_embedding_layers=False if it was not trained"
        _refuse(refusals, unfit, name, text, reason=BASE_MISMATCH)
        return ""
    return f"{name} equals the base model's own weight and was left out"


def _refuse_unexpected(name: str, base: BaseShape, refusals: Refusals) -> None:
    for mark, field in _FEATURE_MARKS.items():
        if mark in name:
            problem = f"belongs to {field}, which is not supported"
            refusals.add(name, problem, unsupported_feature(field, f"tensor {quote(name)} {problem}"))
            return
    for end, field in _SWITCHED_BY.items():
        if name.endswith(f".{end}"):
            _refuse(refusals, malformed, name, f"belongs to {field}, which the config does not switch on")
            return
    match = _LORA_NAME.fullmatch(name)
    if match is None:
        _refuse(refusals, malformed, name, "is not a name that PEFT writes for LoRA")
        return
    path = match["path"]
    layer = _LAYER_PATH.match(path)
    if layer is not None and int(layer["layer"]) >= base.num_layers:
        problem = f"is for layer {layer['layer']}; the base model has {base.num_layers} layers"
        _refuse(refusals, unfit, name, problem, reason=BASE_MISMATCH)
    elif path in module_paths(base):
        problem = "is for a module that the config does not select. Correct target_modules"
        _refuse(refusals, malformed, name, problem)
    else:
        _refuse(refusals, unfit, name, "is for a module without LoRA support", reason=MODULE_UNSUPPORTED)


def _changes_nothing(tensors: Mapping[str, TensorBytes], sites: tuple[LoraSite, ...]) -> bool:
    keys = [site_key(site) for site in sites if site.scale != 0.0]
    return all(is_zero(tensors[f"{key}.B"]) or is_zero(tensors[f"{key}.A"]) for key in keys)
