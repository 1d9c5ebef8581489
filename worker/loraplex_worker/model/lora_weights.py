"""One adapter in the form that the decoder reads."""

import contextlib
import dataclasses
import itertools
import math
import sys
from collections.abc import Mapping

import torch
from torch import Tensor

from loraplex_adapters.kind import AdapterKind
from loraplex_adapters.module import Module
from loraplex_adapters.spec import AdapterSpec, LoraSite, saved_name, site_key
from loraplex_contract.errors import FailedPrecondition
from loraplex_kernels.cpu_native.adapter_groups import AdapterGroups, pack_group
from loraplex_kernels.cpu_native.library import Library, Mode, library
from loraplex_kernels.cpu_native.packed import DTYPES
from loraplex_kernels.lora.site_group import Expand, SiteGroup
from loraplex_worker.model.dora import BaseWeights
from loraplex_worker.model.model_config import ModelConfig

StoredTensor = tuple[str, tuple[int, ...], bytes]
"""(safetensors dtype, shape, row-major little-endian bytes)."""

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LayerLora:
    """The sites of one layer, grouped by the input that they share. None: the adapter does not change that group."""

    qkv: SiteGroup | None
    o: SiteGroup | None
    gate_up: SiteGroup | None
    down: SiteGroup | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NativeLora:
    """The tables that the native CPU kernels read."""

    layers: AdapterGroups
    """Four groups a layer: qkv, o, gate and up, down."""
    head: AdapterGroups


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LoraWeights:
    """One adapter, cast to one dtype. Each site keeps its own scale as a Python float."""

    layers: tuple[LayerLora, ...]
    embed_tokens: SiteGroup | None
    lm_head: SiteGroup | None
    num_bytes: int
    """Bytes of all tensors as they are held."""
    config: ModelConfig | None = None
    """The base model, where the groups (all but embed_tokens) are packed for the native CPU kernels."""
    saved_embed: Tensor | None = None
    """[vocab, hidden], in the place of the model's own for this adapter's rows."""
    saved_head: Tensor | None = None
    """[vocab, hidden]."""
    native: NativeLora | None = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        native = None if self.config is None else _native(self.config, self.layers, self.lm_head)
        object.__setattr__(self, "native", native)

    @classmethod
    def from_tensors(
        cls,
        spec: AdapterSpec,
        tensors: Mapping[str, StoredTensor],
        *,
        dtype: torch.dtype,
        config: ModelConfig,
        device: torch.device | str = "cpu",
        cpu_kernels: Mode = "auto",
    ) -> "LoraWeights":
        """Build from what ``AdapterStore.read_tensors`` gives.

        Args:
            spec: the sites of the adapter.
            tensors: by name ("layers.3.q_proj.A").
            dtype: ``Decoder.lora_dtype``, or the base model's compute dtype for half the memory at less speed on CPU.
            config: the base model.
            device: where the weights go.
            cpu_kernels: what the decoder was made with.

        Raises:
            NativeUnavailable: as ``Decoder``.
            FailedPrecondition: a tensor is missing, unknown, of another dtype or shape than spec and base model say.
        """
        special = "modules_to_save" if spec.saved else "" if spec.kind is AdapterKind.LORA else spec.kind.value
        if special and torch.device(device).type != "cpu":
            message = f"adapters with {special} are served on CPU only; export it without"
            raise FailedPrecondition(message, reason="ADAPTER_FEATURE_UNSUPPORTED", metadata={"field": special})
        kernels = native_library(cpu_kernels, dtype, torch.device(device))
        with contextlib.ExitStack() as stack:
            base = None
            if spec.kind is AdapterKind.DORA:
                base = stack.enter_context(BaseWeights.open(config.folder, is_tied=config.tie_word_embeddings))
            builder = _Builder(spec, tensors, dtype, config, device, kernels, base)
            return cls._built(builder, config, is_native=kernels is not None)

    @classmethod
    def _built(cls, builder: "_Builder", config: ModelConfig, *, is_native: bool) -> "LoraWeights":
        layers = tuple(
            LayerLora(
                qkv=builder.group(index, Module.Q_PROJ, Module.K_PROJ, Module.V_PROJ),
                o=builder.group(index, Module.O_PROJ),
                gate_up=builder.group(index, Module.GATE_PROJ, Module.UP_PROJ),
                down=builder.group(index, Module.DOWN_PROJ),
            )
            for index in range(config.num_layers)
        )
        embed, head = builder.group(None, Module.EMBED_TOKENS), builder.group(None, Module.LM_HEAD)
        saved_embed, saved_head = builder.saved(Module.EMBED_TOKENS), builder.saved(Module.LM_HEAD)
        builder.refuse_left_over()
        per_layer = itertools.chain.from_iterable((lora.qkv, lora.o, lora.gate_up, lora.down) for lora in layers)
        num_bytes = sum(group.num_bytes for group in (*per_layer, embed, head) if group is not None)
        num_bytes += sum(weight.nbytes for weight in (saved_embed, saved_head) if weight is not None)
        return cls(
            layers=layers,
            embed_tokens=embed,
            lm_head=head,
            num_bytes=num_bytes,
            config=config if is_native else None,
            saved_embed=saved_embed,
            saved_head=saved_head,
        )


def native_library(mode: Mode, dtype: torch.dtype, device: torch.device) -> Library | None:
    """The kernels for weights of ``dtype`` on ``device``, or None where the torch path serves them."""
    return library(mode) if dtype in DTYPES and device.type == "cpu" else None


def _native(config: ModelConfig, layers: tuple[LayerLora, ...], head: SiteGroup | None) -> NativeLora:
    q, kv = config.q_size, config.kv_size
    starts = ((0, q, q + kv), (0,), (0, config.intermediate_size), (0,))
    groups = [group for lora in layers for group in (lora.qkv, lora.o, lora.gate_up, lora.down)]
    return NativeLora(layers=AdapterGroups(groups, starts * len(layers)), head=AdapterGroups([head], [(0,)]))


class _Builder:
    def __init__(
        self,
        spec: AdapterSpec,
        tensors: Mapping[str, StoredTensor],
        dtype: torch.dtype,
        config: ModelConfig,
        device: torch.device | str,
        kernels: Library | None,
        base: BaseWeights | None,
    ) -> None:
        self._kernels = kernels
        self._base = base
        self._saved = spec.saved
        self._sites = {(site.layer, site.module): site for site in spec.sites}
        self._tensors = tensors
        self._unread = set(tensors)
        self._dtype = dtype
        self._config = config
        self._device = device

    def group(self, layer: int | None, *modules: Module) -> SiteGroup | None:
        """Fuse the sites of modules that read one input; takes them off the list of sites still to place."""
        downs: list[Tensor] = []
        expands: list[Expand] = []
        rank_start = out_start = 0
        for module in modules:
            in_features, out_features = _features(self._config, module)
            site = self._sites.pop((layer, module), None)
            if site is not None:
                key = site_key(site)
                downs.append(self._tensor(key + ".A", (site.rank, in_features)))
                up = self._tensor(key + ".B", (out_features, site.rank))
                expands.append(
                    Expand(
                        rank_start=rank_start,
                        rank_stop=rank_start + site.rank,
                        out_start=out_start,
                        out_stop=out_start + out_features,
                        b=up,
                        scale=site.scale,
                        bias=self._bias(site, out_features),
                        gain=self._gain(site, in_features, out_features),
                    )
                )
                rank_start += site.rank
            out_start += out_features
        if not downs:
            return None
        group = SiteGroup(a=torch.cat(downs) if len(downs) > 1 else downs[0], expands=tuple(expands))
        # An embedding's A is read by column, which torch does as well.
        if self._kernels is None or Module.EMBED_TOKENS in modules:
            return group
        return pack_group(self._kernels, group)

    def saved(self, module: Module) -> Tensor | None:
        """The whole weight that the adapter brings for a module."""
        if module not in self._saved:
            return None
        return self._tensor(saved_name(module), (self._config.vocab_size, self._config.hidden_size))

    def refuse_left_over(self) -> None:
        odd = sorted([site_key(site) for site in self._sites.values()] + list(self._unread))
        if odd:
            raise _refused(f"{len(odd)} sites or tensors do not belong to this base model, e.g. {odd[:8]}")

    def _bias(self, site: LoraSite, out_features: int) -> Tensor | None:
        if site.kind is not AdapterKind.LORA_BIAS:
            return None
        return self._tensor(f"{site_key(site)}.bias", (out_features,))

    def _gain(self, site: LoraSite, in_features: int, out_features: int) -> Tensor | None:
        if self._base is None:
            return None
        key, full = site_key(site), torch.float32
        a = self._values(key + ".A", (site.rank, in_features)).to(full)
        b = self._values(key + ".B", (out_features, site.rank)).to(full)
        magnitude = self._values(key + ".magnitude", (out_features,)).to(full)
        return self._base.gain(site, a, b, magnitude).to(device=self._device, dtype=self._dtype)

    def _tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        return self._values(name, shape).to(device=self._device, dtype=self._dtype)

    def _values(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """As stored."""
        if name not in self._tensors:
            raise _refused(f"tensor {name} is missing")
        stored, given, data = self._tensors[name]
        if stored not in _DTYPES or tuple(given) != shape:
            raise _refused(f"tensor {name} is {stored} {list(given)}; the base model needs a float of {list(shape)}")
        source = _DTYPES[stored]
        expected_bytes = math.prod(shape) * source.itemsize
        if len(data) != expected_bytes:
            raise _refused(f"tensor {name} has {len(data)} bytes; {stored} {list(shape)} takes {expected_bytes}")
        assert sys.byteorder == "little", "tensors are stored little-endian"
        self._unread.discard(name)
        # A bytearray of its own: torch would warn about the read-only buffer of bytes, and must not share it.
        return torch.frombuffer(bytearray(data), dtype=source).view(shape)


def _features(config: ModelConfig, module: Module) -> tuple[int, int]:
    """(in_features, out_features); for embed_tokens the input is the vocabulary."""
    hidden, inner = config.hidden_size, config.intermediate_size
    return {
        Module.Q_PROJ: (hidden, config.q_size),
        Module.K_PROJ: (hidden, config.kv_size),
        Module.V_PROJ: (hidden, config.kv_size),
        Module.O_PROJ: (config.q_size, hidden),
        Module.GATE_PROJ: (hidden, inner),
        Module.UP_PROJ: (hidden, inner),
        Module.DOWN_PROJ: (inner, hidden),
        Module.EMBED_TOKENS: (config.vocab_size, hidden),
        Module.LM_HEAD: (hidden, config.vocab_size),
    }[module]


def _refused(message: str) -> FailedPrecondition:
    return FailedPrecondition(message, reason="ADAPTER_MISMATCH")
