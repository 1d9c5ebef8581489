"""The seam between the model and a device: every operation that is done differently on CPU and on CUDA.

The decoder is written once against these; it does nothing with tensors but reshape, slice and add.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from loraplex_kernels.lora.segments import LoraBatch
from loraplex_kernels.lora.site_group import SiteGroup
from loraplex_worker.model.kv_cache import KvCache
from loraplex_worker.model.step_batch import StepBatch


class Linear(Protocol):
    """A base linear, its weight in whatever layout the device likes best."""

    def __call__(self, x: Tensor, /) -> Tensor:
        """[T, in_features] -> [T, out_features], in memory of its own that the caller may change."""
        ...


class Attention(Protocol):
    """Attention of one step: what does not depend on the layer is worked out once, when it is made."""

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, /) -> Tensor:
        """Store the step's keys and values, attend over each sequence's pages.

        Args:
            layer: which layer.
            query: [T, num_heads, head_dim], rotated.
            key: [T, num_kv_heads, head_dim], rotated.
            value: [T, num_kv_heads, head_dim].

        Returns:
            [T, num_heads * head_dim].
        """
        ...


class Operators(Protocol):
    """What a device must offer."""

    @property
    def lora_dtype(self) -> torch.dtype:
        """Dtype of adapter weights that ``add_lora`` is best at."""
        ...

    def linear(self, weight: Tensor, bias: Tensor | None) -> Linear:
        """Prepare a linear from its [out_features, in_features] weight and [out_features] bias."""
        ...

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Root-mean-square norm over the last dimension, statistics in float32."""
        ...

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """``x * cos + swap_halves(x) * sin`` for [T, heads, head_dim]; sin's first half comes negated."""
        ...

    def silu_and_multiply(self, gate_up: Tensor) -> Tensor:
        """[T, 2 * I] -> [T, I]: silu of the first half times the second half."""
        ...

    def attention(self, batch: StepBatch, kv: KvCache, windows: Sequence[int | None], num_heads: int) -> Attention:
        """Plan the attention of one step; ``windows`` is per layer."""
        ...

    def add_lora(
        self,
        x: Tensor,
        out: Tensor,
        batch: LoraBatch,
        groups: Sequence[SiteGroup | None],
        base_bias: Tensor | None = None,
    ) -> None:
        """Add every adapter's delta of one group of sites to ``out`` [T, out_features], in place.

        ``base_bias`` [out_features] is what ``out`` has beside the base product.
        """
        ...

    def add_lora_embedding(
        self, token_ids: Tensor, out: Tensor, batch: LoraBatch, groups: Sequence[SiteGroup | None]
    ) -> None:
        """Add every adapter's embedding delta to ``out`` [T, hidden], in place."""
        ...
