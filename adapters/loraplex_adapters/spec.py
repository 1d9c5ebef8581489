"""What an adapter changes, without its weights: the part that travels and is stored as JSON."""

import dataclasses
import itertools
import json
import math
import re
from typing import Any

from loraplex_adapters.kind import AdapterKind
from loraplex_adapters.module import GLOBAL_MODULES, Module
from loraplex_adapters.tensor import ITEM_BYTES
from loraplex_contract.errors import DataLoss

_DIGEST = re.compile(r"[0-9a-f]{64}")


def is_digest(text: str) -> bool:
    """Whether ``text`` is 64 lower-case hex digits. Nothing else may become part of a path."""
    return _DIGEST.fullmatch(text) is not None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LoraSite:
    """One base linear (or embedding) that the adapter changes."""

    layer: int | None
    """Decoder layer; None for embed_tokens and lm_head."""
    module: Module
    rank: int
    scale: float
    """PEFT's effective scaling of this site: alpha / r, or alpha / sqrt(r) with rsLoRA."""
    kind: AdapterKind = AdapterKind.LORA

    def __post_init__(self) -> None:
        if (self.layer is None) != (self.module in GLOBAL_MODULES) or (self.layer or 0) < 0:
            raise ValueError(f"{self.module} cannot have layer {self.layer}")
        if self.rank <= 0 or not math.isfinite(self.scale):
            raise ValueError(f"rank must be positive and scale finite, got {self.rank} and {self.scale}")


def site_key(site: LoraSite) -> str:
    """Name of a site: ``layers.3.q_proj``, ``embed_tokens`` or ``lm_head``.

    Its tensors are ``<key>.A`` [rank, in_features] and ``<key>.B`` [out_features, rank];
    for embed_tokens A is [rank, vocab_size] and B is [hidden_size, rank]. ``<key>.bias`` and ``<key>.magnitude``
    are [out_features].
    """
    return site.module.value if site.layer is None else f"layers.{site.layer}.{site.module.value}"


def tensor_names(site: LoraSite) -> tuple[str, ...]:
    """Of the site's tensors, in the order in which they are stored."""
    return tuple(f"{site_key(site)}.{part}" for part in site.kind.parts)


def saved_name(module: Module) -> str:
    """Of the tensor of a module that the adapter brings whole."""
    return f"{module.value}.saved"


def site_order(site: LoraSite) -> tuple[int, int]:
    """Sort key: layers in order, modules in the order of ``Module``, then embed_tokens and lm_head."""
    layer = site.layer if site.layer is not None else 1 << 32
    return layer, tuple(Module).index(site.module)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSpec:
    """One immutable adapter version, without its weights."""

    digest: str
    """SHA-256 over the canonical form of sites and tensors, 64 hex digits (see ``digest.py``)."""
    kind: AdapterKind
    """Of every site."""
    sites: tuple[LoraSite, ...]
    """Sorted by ``site_order``; never empty, no site twice."""
    dtype: str
    """Of every tensor: F32, F16 or BF16."""
    num_bytes: int
    """Of all tensors together."""
    max_rank: int
    base_model_name: str
    """What the adapter's author wrote; for people, not part of the digest, never checked."""
    saved: tuple[Module, ...] = ()
    """embed_tokens, lm_head or both, where the adapter brings its own [vocab_size, hidden_size] as ``<module>.saved``.
    The digest knows it by the tensors' names."""

    def __post_init__(self) -> None:
        if not is_digest(self.digest) or not self.sites or self.num_bytes <= 0:
            raise ValueError("digest, sites and num_bytes are required")
        if self.max_rank != max(site.rank for site in self.sites):
            raise ValueError("max_rank is not the largest rank of the sites")
        if any(site.kind is not self.kind for site in self.sites):
            raise ValueError("every site is of the adapter's kind")
        if list(self.saved) != [module for module in GLOBAL_MODULES if module in self.saved]:
            raise ValueError("saved modules are of the global ones, in order")
        if any(site.module in self.saved for site in self.sites):
            raise ValueError("a module is changed or replaced, not both")
        order = [site_order(site) for site in self.sites]
        if any(left >= right for left, right in itertools.pairwise(order)):
            raise ValueError("sites must be sorted and unique")

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """Of all tensors, in the order in which they are stored."""
        sites = tuple(name for site in self.sites for name in tensor_names(site))
        return sites + tuple(saved_name(module) for module in self.saved)

    @property
    def num_parameters(self) -> int:
        """Numbers in all tensors together: what a worker's pages are counted from."""
        return self.num_bytes // ITEM_BYTES[self.dtype]

    def to_json(self) -> str:
        """One line of JSON; scales as hexadecimal floats, so that they come back bit for bit."""
        document = dataclasses.asdict(self)
        if not self.saved:
            del document["saved"]  # as it was written before there were any
        document["sites"] = [[site_key(site), site.rank, site.scale.hex()] for site in self.sites]
        return json.dumps(document, separators=(",", ":"), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "AdapterSpec":
        """Inverse of ``to_json`` with a closed schema.

        Raises:
            DataLoss: not something that ``to_json`` wrote (reason ARTIFACT_CORRUPT).
        """
        try:
            return _spec_from_document(json.loads(text))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
            raise DataLoss("the stored adapter spec is damaged; register the adapter again") from error


def _spec_from_document(document: Any) -> AdapterSpec:
    expected = {field.name for field in dataclasses.fields(AdapterSpec)}
    if not isinstance(document, dict) or set(document) | {"saved"} != expected:
        raise ValueError("unexpected fields")
    for name, kind in (("digest", str), ("base_model_name", str), ("num_bytes", int), ("max_rank", int)):
        if type(document[name]) is not kind:
            raise TypeError(name)
    adapter_kind = AdapterKind(document["kind"])
    if document["dtype"] not in ITEM_BYTES:
        raise ValueError("unknown dtype")
    sites = tuple(_site_from_entry(*entry, kind=adapter_kind) for entry in document["sites"])
    saved = tuple(Module(name) for name in document.get("saved", ()))
    return AdapterSpec(**{**document, "kind": adapter_kind, "sites": sites, "saved": saved})


def _site_from_entry(key: str, rank: int, scale_hex: str, *, kind: AdapterKind) -> LoraSite:
    if type(rank) is not int:
        raise TypeError("rank")
    prefix, _, name = key.rpartition(".")
    layer = int(prefix.removeprefix("layers.")) if prefix else None
    site = LoraSite(layer=layer, module=Module(name), rank=rank, scale=float.fromhex(scale_hex), kind=kind)
    if site_key(site) != key:
        raise ValueError("site key is not canonical")
    return site
