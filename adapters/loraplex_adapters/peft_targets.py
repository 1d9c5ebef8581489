"""Which modules of the base model a PEFT config selects, with their ranks and scales: PEFT's own matching rules.

Source: PEFT 0.21, ``check_target_module_exists``, ``get_pattern_key`` and ``LoraModel._create_and_replace``.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import TypeVar

from loraplex_adapters.base_shape import BaseShape
from loraplex_adapters.kind import AdapterKind
from loraplex_adapters.limits import Limits
from loraplex_adapters.module import ATTENTION_MODULES, GLOBAL_MODULES, LAYER_MODULES, Module
from loraplex_adapters.name_suffix import NameSuffix, RegexSuffix, compile_suffixes
from loraplex_adapters.peft_config import PeftConfig
from loraplex_adapters.refusal import (
    BASE_MISMATCH,
    MODULE_UNSUPPORTED,
    NO_MODULES,
    NONFINITE,
    RANK_TOO_LARGE,
    malformed,
    quote,
    unfit,
    unsupported_feature,
)
from loraplex_adapters.refusals import Refusals
from loraplex_adapters.spec import LoraSite
from loraplex_adapters.target_pattern import TargetPattern

_Suffix = NameSuffix | RegexSuffix
_Number = TypeVar("_Number", int, float)
_ALL_LINEAR = "all-linear"
_ANY_LAYER = re.compile(r".*?\.[^.]*\.(?P<idx>\d+)\.")
_OTHER_GLOBAL_PATHS = ("model", "model.layers", "model.norm", "model.rotary_emb")
_OTHER_LAYER_PATHS = (
    "",
    ".self_attn",
    ".self_attn.q_norm",
    ".self_attn.k_norm",
    ".mlp",
    ".mlp.act_fn",
    ".input_layernorm",
    ".post_attention_layernorm",
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """What a config selects in one base model."""

    sites: tuple[LoraSite, ...]
    """In the order of ``site_order``; never empty."""
    notes: tuple[str, ...]
    """What looks unintended in the selection, for the report."""


def module_path(layer: int | None, module: Module) -> str:
    """Full name of a module in a Hugging Face causal LM, e.g. ``model.layers.3.mlp.up_proj``."""
    if layer is not None:
        block = "self_attn" if module in ATTENTION_MODULES else "mlp"
        return f"model.layers.{layer}.{block}.{module.value}"
    return "lm_head" if module is Module.LM_HEAD else f"model.{module.value}"


def module_paths(base: BaseShape) -> dict[str, tuple[int | None, Module]]:
    """Every module that LoRA can change, by full name, in site order."""
    layered = [(layer, module) for layer in range(base.num_layers) for module in LAYER_MODULES]
    places: list[tuple[int | None, Module]] = [*layered, *((None, module) for module in GLOBAL_MODULES)]
    return {module_path(layer, module): (layer, module) for layer, module in places}


def resolve_targets(config: PeftConfig, base: BaseShape, limits: Limits, refusals: Refusals | None = None) -> Targets:
    """The sites that PEFT would make for this config on this base model.

    Args:
        refusals: takes what is wrong with single modules, so that the rest can be checked too. None: raise it.

    Raises:
        FailedPrecondition: nothing selected (ADAPTER_NO_MODULES), a selected module that LoRA cannot change
            (ADAPTER_MODULE_UNSUPPORTED), a layer beyond the base's (ADAPTER_BASE_MISMATCH), a rank above the limit
            (ADAPTER_RANK_TOO_LARGE).
        InvalidArgument: a scale that overflows (ADAPTER_NONFINITE).
    """
    _check_layers_exist(config, base)
    selector = _Selector(config, limits)
    found = refusals if refusals is not None else Refusals()
    for other in filter(selector.selects, _other_paths(base)):
        problem = "which is no linear or embedding module; name projections only"
        message = f"target_modules selects {other!r}, {problem}"
        found.add(other, f"is selected, {problem}", unfit(message, reason=MODULE_UNSUPPORTED, module=other))
    selected = {path: place for path, place in module_paths(base).items() if selector.selects(path)}
    if not selected:
        found.raise_if_any()
        message = f"target_modules {quote(config.target_modules)} selects no module of the base model"
        raise unfit(message, reason=NO_MODULES)
    sizes = _Sizes(config, limits)
    sites = tuple(_site(path, layer, module, sizes, limits, found) for path, (layer, module) in selected.items())
    if refusals is None:
        found.raise_if_any()
    notes = [f"target_modules names {quote(name)}: no such module here" for name in _unmatched_names(config, base)]
    return Targets(sites=sites, notes=(*notes, *sizes.notes()))


class _Selector:
    """``check_target_module_exists`` for one config."""

    def __init__(self, config: PeftConfig, limits: Limits) -> None:
        self._config = config
        self._targets = _NameRule("target_modules", config.target_modules, limits)
        self._excludes = _NameRule("exclude_modules", config.exclude_modules, limits)
        self._layer_patterns = _compile_layer_patterns(config, limits)

    def selects(self, path: str) -> bool:
        if self._excludes.selects(path):
            return False
        if isinstance(self._config.target_modules, str) or path in self._config.target_modules:
            return self._targets.selects(path)  # a full name is not subject to layers_to_transform
        return self._targets.selects(path) and self._is_in_layers(path)

    def _is_in_layers(self, path: str) -> bool:
        if self._config.layers_to_transform is None:
            return True
        index = self._layer_index(path)
        return index is not None and int(index) in self._config.layers_to_transform

    def _layer_index(self, path: str) -> str | None:
        if not self._layer_patterns:
            match = _ANY_LAYER.match(path)
            return match.group("idx") if match else None
        for pattern in self._layer_patterns:
            index = pattern.group_at_start_of(path, "idx")
            if index is not None:
                return index or None  # PEFT stops at the first pattern that matches, even one without an index
        return None


def _compile_layer_patterns(config: PeftConfig, limits: Limits) -> list[TargetPattern]:
    template = r"(?:^|.*?\.){}\.(?P<idx>\d+)\."
    compiled: list[TargetPattern] = []
    program_left = limits.max_regex_program
    for text in config.layers_pattern:
        pattern = TargetPattern(
            text, field="layers_pattern", max_program=program_left, template=template, has_groups=True
        )
        program_left -= pattern.program_size
        compiled.append(pattern)
    return compiled


class _NameRule:
    """A list of names (full, or dotted suffixes), a regular expression over the full name, or "all-linear"."""

    def __init__(self, field: str, names: tuple[str, ...] | str, limits: Limits) -> None:
        self._is_all_linear = field == "target_modules" and isinstance(names, str) and names.lower() == _ALL_LINEAR
        self._pattern: TargetPattern | None = None
        self._names: frozenset[str] = frozenset()
        self._suffixes: tuple[str, ...] = ()
        if isinstance(names, str):
            if not self._is_all_linear:
                self._pattern = TargetPattern(names, field=field, max_program=limits.max_regex_program)
        else:
            self._names, self._suffixes = frozenset(names), tuple(f".{name}" for name in names)

    def selects(self, path: str) -> bool:
        if self._is_all_linear:
            return path.rpartition(".")[2] in LAYER_MODULES
        if self._pattern is not None:
            return self._pattern.matches_all_of(path)
        return path in self._names or path.endswith(self._suffixes)


class _Sizes:
    """Rank and alpha of modules: the first pattern that matches the name, or the config's default."""

    def __init__(self, config: PeftConfig, limits: Limits) -> None:
        self._config = config
        self._ranks = _compile("rank_pattern", config.rank_pattern, limits)
        self._alphas = _compile("alpha_pattern", config.alpha_pattern, limits)
        self._used: set[tuple[str, str]] = set()
        self._ambiguity: str | None = None

    @property
    def saved(self) -> tuple[Module, ...]:
        return self._config.saved

    @property
    def kind(self) -> AdapterKind:
        return self._config.kind

    def of(self, path: str) -> tuple[int, float]:
        """(rank, scale)."""
        ranks = self._matches("rank_pattern", self._ranks, path)
        alphas = self._matches("alpha_pattern", self._alphas, path)
        if len(set(alphas)) > 1 and self._ambiguity is None:
            # PEFT sorts the patterns when it saves, so training may have used another order than the file's.
            first, other = list(dict.fromkeys(alphas))[:2]
            self._ambiguity = (
                f"alpha_pattern gives {path} both {first} and {other}; as in PEFT the first in the file counts"
            )
        rank = ranks[0] if ranks else self._config.r
        return rank, self._config.scale(alphas[0] if alphas else self._config.lora_alpha, rank)

    def notes(self) -> list[str]:
        """About patterns that did nothing or contradict each other, for the modules asked about so far."""
        notes = [] if self._ambiguity is None else [self._ambiguity]
        for field, patterns in (("rank_pattern", self._ranks), ("alpha_pattern", self._alphas)):
            unused = [pattern.text for pattern, _ in patterns if (field, pattern.text) not in self._used]
            if unused:
                notes.append(f"{field}: {len(unused)} patterns without a selected module, first {quote(unused[0])}")
        return notes

    def _matches(self, field: str, patterns: list[tuple[_Suffix, _Number]], path: str) -> list[_Number]:
        hits = [(pattern.text, value) for pattern, value in patterns if pattern.matches(path)]
        self._used.update((field, text) for text, _ in hits)
        return [value for _, value in hits]


def _compile(field: str, patterns: Mapping[str, _Number], limits: Limits) -> list[tuple[_Suffix, _Number]]:
    return list(zip(compile_suffixes(patterns, field=field, limits=limits), patterns.values(), strict=True))


def _site(path: str, layer: int | None, module: Module, sizes: _Sizes, limits: Limits, found: Refusals) -> LoraSite:
    rank, scale = sizes.of(path)
    if rank > limits.max_rank:
        problem = f"has rank {rank}; this server serves ranks up to {limits.max_rank}"
        figures = {"rank": str(rank), "max_rank": str(limits.max_rank)}
        found.add(path, problem, unfit(f"{path} {problem}", reason=RANK_TOO_LARGE, module=path, **figures))
    if abs(scale) > limits.max_abs_scale:
        problem = f"has scale {scale:g}; at most {limits.max_abs_scale:g} can be computed. Check lora_alpha"
        found.add(path, problem, malformed(f"{path} {problem}", reason=NONFINITE, module=path))
    if sizes.kind is AdapterKind.LORA_BIAS and module is Module.EMBED_TOKENS:
        problem = "is not supported for embed_tokens, and target_modules selects it"  # not by PEFT either
        found.add("lora_bias", problem, unsupported_feature("lora_bias", f"lora_bias {problem}"))
    if module in sizes.saved:
        problem = f"names {module}, and target_modules selects it; only one of the two is supported"
        found.add("modules_to_save", problem, unsupported_feature("modules_to_save", f"modules_to_save {problem}"))
    return LoraSite(layer=layer, module=module, rank=rank, scale=scale, kind=sizes.kind)


def _check_layers_exist(config: PeftConfig, base: BaseShape) -> None:
    beyond = [layer for layer in config.layers_to_transform or () if layer >= base.num_layers]
    if beyond:
        message = f"layers_to_transform names layer {beyond[0]}; the base model has layers 0 to {base.num_layers - 1}"
        raise unfit(message, reason=BASE_MISMATCH, field="layers_to_transform")


def _other_paths(base: BaseShape) -> Iterator[str]:
    """Modules that a pattern could select by mistake; PEFT fails on them, so no such adapter was ever trained."""
    yield from _OTHER_GLOBAL_PATHS
    for layer in range(base.num_layers):
        yield from (f"model.layers.{layer}{suffix}" for suffix in _OTHER_LAYER_PATHS)


def _unmatched_names(config: PeftConfig, base: BaseShape) -> tuple[str, ...]:
    if isinstance(config.target_modules, str):
        return ()
    paths = list(module_paths(base))
    return tuple(name for name in config.target_modules if not any(p == name or p.endswith(f".{name}") for p in paths))
