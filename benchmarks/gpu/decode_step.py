"""A whole decode step of a Llama-like model with random weights, from the project's kernels and torch's products.

Every buffer is allocated once, so that a step can be captured in a CUDA graph. One adapter group a projection: at most
six LoRA launches a layer. All layers share one set of adapters' tables but have weights of their own.
"""

import dataclasses

import torch
from torch import Tensor
from torch.nn import functional

from loraplex_kernels.activation.launcher import silu_and_multiply
from loraplex_kernels.chip import chip_of
from loraplex_kernels.lora import configs as lora_configs
from loraplex_kernels.lora.adapter_table import AdapterTable, GroupShape
from loraplex_kernels.lora.launcher import LoraScratch, add_lora
from loraplex_kernels.lora.plan import PlanBuffers, plan_runs
from loraplex_kernels.lora.site_group import Expand, SiteGroup
from loraplex_kernels.norm.launcher import rms_norm
from loraplex_kernels.paged_attention import configs as attention_configs
from loraplex_kernels.paged_attention.launcher import DecodeScratch, decode_attention
from loraplex_kernels.rope_cache.launcher import rope_and_cache

PAGE_TOKENS = 16
EPS = 1e-5


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    num_layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int

    @property
    def groups(self) -> tuple[GroupShape, ...]:
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return (
            GroupShape(in_features=self.hidden, out_sizes=(q, kv, kv)),
            GroupShape(in_features=q, out_sizes=(self.hidden,)),
            GroupShape(in_features=self.hidden, out_sizes=(self.inner, self.inner)),
            GroupShape(in_features=self.inner, out_sizes=(self.hidden,)),
        )

    @property
    def num_weight_bytes(self) -> int:
        """Read by a step, in 16 bits: all linears and the head."""
        linears = sum(group.in_features * sum(group.out_sizes) for group in self.groups)
        return 2 * (self.num_layers * linears + self.hidden * self.vocab)

    @property
    def num_kv_bytes_per_token(self) -> int:
        return 2 * 2 * self.num_layers * self.kv_heads * self.head_dim

    def num_adapter_bytes(self, rank: int) -> int:
        """Of one adapter on all linears, read by a step that has rows of it."""
        per_rank = sum(group.in_features * len(group.out_sizes) + sum(group.out_sizes) for group in self.groups)
        return 2 * self.num_layers * rank * per_rank


LLAMA_3_8B = Shape(num_layers=32, hidden=4096, inner=14336, heads=32, kv_heads=8, head_dim=128, vocab=128256)
SMOLLM2_135M = Shape(num_layers=30, hidden=576, inner=1536, heads=9, kv_heads=3, head_dim=64, vocab=49152)
TINY = Shape(num_layers=2, hidden=64, inner=96, heads=4, kv_heads=2, head_dim=16, vocab=128)


class Adapters:
    """``count`` adapters of one rank in pages of one pool."""

    def __init__(self, shape: Shape, count: int, rank: int, dtype: torch.dtype, device: torch.device) -> None:
        num_slices = count * rank * 2 * sum(len(group.out_sizes) for group in shape.groups)
        page_elements = 1 << 14
        self.table = AdapterTable(
            list(shape.groups),
            num_slots=count,
            num_slices=num_slices,
            page_elements=page_elements,
            max_rank=rank,
            device=device,
        )
        groups = [_random_group(group, rank, dtype, device) for group in shape.groups]
        num_pages = self.table.num_pages(groups)
        self.pool = torch.zeros(count * num_pages * page_elements, dtype=dtype, device=device)
        order = torch.randperm(count * num_pages, generator=torch.Generator().manual_seed(1)).tolist()
        for slot in range(count):
            self.table.place(slot, groups, self.pool, order[slot * num_pages : (slot + 1) * num_pages])


def _random_group(shape: GroupShape, rank: int, dtype: torch.dtype, device: torch.device) -> SiteGroup:
    starts = [sum(shape.out_sizes[:index]) for index in range(len(shape.out_sizes))]
    expands = tuple(
        Expand(
            rank_start=index * rank,
            rank_stop=(index + 1) * rank,
            out_start=start,
            out_stop=start + size,
            b=_random(size, rank, dtype=dtype, device=device),
            scale=0.5,
        )
        for index, (start, size) in enumerate(zip(starts, shape.out_sizes, strict=True))
    )
    a = _random(rank * len(expands), shape.in_features, dtype=dtype, device=device)
    return SiteGroup(a=a, expands=expands)


def _random(*size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.randn(*size, dtype=torch.float32, device=device).mul_(size[-1] ** -0.5).to(dtype)


class DecodeStep:
    """Static buffers of a batch of ``num_rows`` sequences with ``context`` tokens each.

    Args:
        num_adapters: distinct ones, of which row i has number i modulo this; 0 = no LoRA launch at all.
        is_base_only: LoRA is launched, and no row uses it.
    """

    def __init__(
        self,
        shape: Shape,
        *,
        num_rows: int,
        context: int,
        num_adapters: int,
        rank: int = 16,
        is_base_only: bool = False,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device,
        weights: "Weights | None" = None,
    ) -> None:
        self.shape, self.num_rows, self.dtype = shape, num_rows, dtype
        self.weights = weights or Weights(shape, dtype, device)
        heads = (shape.heads + 2 * shape.kv_heads) * shape.head_dim

        def empty(*size: int) -> Tensor:
            return torch.zeros(*size, dtype=dtype, device=device)

        self.hidden, self.normed = (
            _random(num_rows, shape.hidden, dtype=dtype, device=device),
            empty(num_rows, shape.hidden),
        )
        self.delta = empty(num_rows, shape.hidden)
        self.qkv, self.attended = empty(num_rows, heads), empty(num_rows, shape.heads, shape.head_dim)
        self.gate_up, self.inner = empty(num_rows, 2 * shape.inner), empty(num_rows, shape.inner)
        self.logits = empty(num_rows, shape.vocab)
        self._reserve_attention(context, device)
        self._reserve_lora(num_adapters, rank, device, is_base_only=is_base_only)

    def _reserve_attention(self, context: int, device: torch.device) -> None:
        shape, rows = self.shape, self.num_rows
        columns = -(-context // PAGE_TOKENS)
        size = (rows * columns, shape.num_layers, 2, shape.kv_heads, PAGE_TOKENS, shape.head_dim)
        self.kv = torch.zeros(*size, dtype=self.dtype, device=device)
        order = torch.randperm(rows * columns, generator=torch.Generator().manual_seed(2)).to(device)
        self.page_table = order.view(rows, columns).to(torch.int32)
        self.lens = torch.full((rows,), context, dtype=torch.int32, device=device)
        self.positions = torch.full((rows,), context - 1, dtype=torch.int64, device=device)
        self.slots = self.page_table[:, -1].to(torch.int64) * PAGE_TOKENS + (context - 1) % PAGE_TOKENS
        self.angles = torch.ones(context, shape.head_dim // 2, device=device)
        self.splits = attention_configs.num_splits(chip_of(device), rows, shape.kv_heads, context)
        self.scratch = DecodeScratch.reserve(
            num_sequences=rows, num_heads=shape.heads, head_dim=shape.head_dim, splits=self.splits, device=device
        )

    def _reserve_lora(self, num_adapters: int, rank: int, device: torch.device, *, is_base_only: bool) -> None:
        self.adapters = None
        if not num_adapters:
            return
        self.adapters = Adapters(self.shape, num_adapters, rank, self.dtype, device)
        per_adapter = -(-self.num_rows // num_adapters)
        self.config = lora_configs.select(per_adapter, self.dtype)
        rows = sorted(row % num_adapters for row in range(self.num_rows))
        runs = [(1, () if is_base_only else ((slot, 1.0),)) for slot in rows]
        slot_ranks = self.adapters.table.slot_ranks
        plan = plan_runs(runs, slot_ranks, block_m=self.config.block_m, block_r=self.config.block_r)
        self.plan = PlanBuffers.of(plan, device=device)
        self.rank = rank
        self.lora_scratch = LoraScratch.reserve(
            num_pairs=max(self.plan.capacity.num_pairs, 1),
            num_sites=3,
            max_rank=rank,
            splits=self.config.splits,
            device=device,
        )

    def __call__(self) -> None:
        for index in range(self.shape.num_layers):
            self._layer(index)
        rms_norm(self.hidden, self.weights.norm, self.normed, EPS)
        torch.mm(self.normed, self.weights.head.T, out=self.logits)

    def _layer(self, index: int) -> None:
        qkv, o, gate_up, down = self.weights.layers[index]
        shape = self.shape
        rms_norm(self.hidden, self.weights.norm, self.normed, EPS)
        self._project(self.normed, qkv, self.qkv, 0)
        heads = self.qkv.view(self.num_rows, -1, shape.head_dim)
        query = heads[:, : shape.heads]
        keys, values = self.kv[:, index, 0], self.kv[:, index, 1]
        rope_and_cache(heads, self.positions, self.slots, self.angles, self.angles, query, keys, values)
        decode_attention(
            query, keys, values, self.page_table, self.lens, self.attended, self.scratch, splits=self.splits
        )
        self._project(self.attended.view(self.num_rows, -1), o, self.delta, 1)
        rms_norm(self.delta, self.weights.norm, self.normed, EPS, residual=self.hidden)
        self._project(self.normed, gate_up, self.gate_up, 2)
        silu_and_multiply(self.gate_up, self.inner)
        self._project(self.inner, down, self.delta, 3)
        self.hidden.add_(self.delta)

    def _project(self, x: Tensor, weight: Tensor, out: Tensor, group: int) -> None:
        torch.mm(x, weight.T, out=out)
        if self.adapters is not None:
            add_lora(
                x,
                out,
                self.plan,
                self.adapters.table.group(group),
                self.adapters.pool,
                self.lora_scratch,
                self.config,
                max_rank=self.rank,
            )


class Weights:
    """Of a model that nobody trained."""

    def __init__(self, shape: Shape, dtype: torch.dtype, device: torch.device) -> None:
        self.layers = [
            [_random(sum(g.out_sizes), g.in_features, dtype=dtype, device=device) for g in shape.groups]
            for _ in range(shape.num_layers)
        ]
        self.norm = torch.ones(shape.hidden, dtype=dtype, device=device)
        self.head = _random(shape.vocab, shape.hidden, dtype=dtype, device=device)


def reference_logits(step: DecodeStep, hidden: Tensor) -> Tensor:
    """Of a step over an empty cache of context 1 without LoRA, in float64 and with torch alone: [rows, vocab]."""
    shape, eps = step.shape, EPS
    x = hidden.double()

    def norm(values: Tensor) -> Tensor:
        return values * (values.pow(2).mean(-1, keepdim=True) + eps).rsqrt()

    for qkv, o, gate_up, down in step.weights.layers:
        value = (norm(x) @ qkv.double().T).view(len(x), -1, shape.head_dim)[:, -shape.kv_heads :]
        attended = value.repeat_interleave(shape.heads // shape.kv_heads, dim=1).reshape(len(x), -1)
        x = x + attended @ o.double().T
        gate, up = (norm(x) @ gate_up.double().T).chunk(2, dim=-1)
        x = x + (functional.silu(gate) * up) @ down.double().T
    return norm(x) @ step.weights.head.double().T
