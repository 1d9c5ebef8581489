"""One adapter in the form that the decoder reads."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from loraplex_kernels.lora.site_group import SiteGroup

if TYPE_CHECKING:
    from loraplex_adapters.spec import AdapterSpec

    from loraplex_worker.model.model_config import ModelConfig


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LayerLora:
    """The sites of one layer, grouped by the input that they share. None: the adapter does not change that group."""

    qkv: SiteGroup | None
    o: SiteGroup | None
    gate_up: SiteGroup | None
    down: SiteGroup | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LoraWeights:
    """One adapter, cast to the compute dtype. Each site keeps its own scale in float."""

    layers: tuple[LayerLora, ...]
    embed_tokens: SiteGroup | None
    lm_head: SiteGroup | None
    num_bytes: int
    """Bytes of all tensors in the compute dtype."""

    @classmethod
    def from_tensors(
        cls,
        spec: "AdapterSpec",
        tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]],
        *,
        dtype: torch.dtype,
        config: "ModelConfig",
    ) -> "LoraWeights":
        """Build from what ``AdapterStore.read_tensors`` gives.

        Args:
            spec: the sites of the adapter.
            tensors: name ("layers.3.q_proj.A") -> (safetensors dtype, shape, little-endian bytes).
            dtype: compute dtype of the base model.
            config: the base model.

        Raises:
            FailedPrecondition: a tensor is missing, unknown, of another dtype or shape than spec and base model say.
        """
        raise NotImplementedError
