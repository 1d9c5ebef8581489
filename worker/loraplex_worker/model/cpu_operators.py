"""The model's operations on CPU."""

from collections.abc import Sequence

import torch
from torch import Tensor

from loraplex_kernels.lora import grouped_cpu
from loraplex_kernels.lora.segments import LoraBatch
from loraplex_kernels.lora.site_group import SiteGroup
from loraplex_worker.model.cpu_attention import CpuAttention, GatherBuffer
from loraplex_worker.model.cpu_linear import PackedLinear, PlainLinear, can_pack
from loraplex_worker.model.kv_cache import KvCache
from loraplex_worker.model.operators import Attention, Linear
from loraplex_worker.model.step_batch import StepBatch


class CpuOperators:
    """Implements ``Operators``. Used by one thread at a time: it owns scratch memory."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._packs = can_pack(dtype)
        self._gather_buffer = GatherBuffer()

    @property
    def lora_dtype(self) -> torch.dtype:
        """float32, on a bf16 base too: see ``grouped_cpu``."""
        return torch.float32

    def linear(self, weight: Tensor, bias: Tensor | None) -> Linear:
        return PackedLinear(weight, bias) if self._packs else PlainLinear(weight, bias)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return torch.rms_norm(x, (x.shape[-1],), weight, eps)

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        tokens, heads, size = x.shape
        swapped = x.view(tokens, heads, 2, size // 2).flip(2).view(tokens, heads, size)
        return torch.addcmul(x * cos, swapped, sin)

    def silu_and_multiply(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, -1)
        return torch.nn.functional.silu(gate).mul_(up)

    def attention(self, batch: StepBatch, kv: KvCache, windows: Sequence[int | None], num_heads: int) -> Attention:
        return CpuAttention(batch, kv, windows, num_heads, self._gather_buffer)

    def add_lora(
        self,
        x: Tensor,
        out: Tensor,
        batch: LoraBatch,
        groups: Sequence[SiteGroup | None],
        base_bias: Tensor | None = None,
    ) -> None:
        grouped_cpu.add_lora(x, out, batch, groups, base_bias)

    def add_lora_embedding(
        self, token_ids: Tensor, out: Tensor, batch: LoraBatch, groups: Sequence[SiteGroup | None]
    ) -> None:
        grouped_cpu.add_lora_embedding(token_ids, out, batch, groups)
