"""Launches that cover every config of every operator, at the shapes of Llama-3-8B and its like.

Tensors are in host memory and small where a launcher lets them be: what counts is which variant a launch selects.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator

import torch

from loraplex_kernels.activation.launcher import silu_and_multiply
from loraplex_kernels.chip import chip_of
from loraplex_kernels.embedding_lora.launcher import add_lora_embedding
from loraplex_kernels.lora import configs as lora_configs
from loraplex_kernels.lora.adapter_table import AdapterTable, GroupShape
from loraplex_kernels.lora.launcher import LoraScratch, add_lora
from loraplex_kernels.lora.plan import PlanBuffers, PlanCapacity
from loraplex_kernels.norm.launcher import norm_heads, rms_norm
from loraplex_kernels.paged_attention import configs as attention_configs
from loraplex_kernels.paged_attention.launcher import DecodeScratch, PrefillTiles, decode_attention, prefill_attention
from loraplex_kernels.rope_cache.launcher import rope_and_cache
from loraplex_kernels.sampling.launcher import Logprobs, count_tokens, sample, token_logprobs
from loraplex_kernels.sampling.rows import History, RowSampling, SamplingRows, mask_bits

DTYPES = (torch.float16, torch.bfloat16)
HIDDEN, INNER, HEADS, KV_HEADS, HEAD_DIM, VOCAB = 4096, 14336, 32, 8, 128, 128256
GROUPS = {
    "qkv": GroupShape(in_features=HIDDEN, out_sizes=(HIDDEN, 1024, 1024)),
    "o": GroupShape(in_features=HIDDEN, out_sizes=(HIDDEN,)),
    "gate_up": GroupShape(in_features=HIDDEN, out_sizes=(INNER, INNER)),
    "down": GroupShape(in_features=INNER, out_sizes=(HIDDEN,)),
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One or more launches of one operator."""

    name: str
    dtype: torch.dtype
    launch: Callable[[], None]


def every() -> Iterator[Case]:
    """All of them."""
    for dtype in DTYPES:
        yield from _lora(dtype)
        yield from _attention(dtype)
        for name, launch in _ROWS.items():
            yield Case(name=name, dtype=dtype, launch=functools.partial(launch, dtype))
    for vocab_size in (49152, 8192):
        yield Case(name=f"sampling {vocab_size}", dtype=torch.float32, launch=functools.partial(_sampling, vocab_size))


def _lora(dtype: torch.dtype) -> Iterator[Case]:
    for config in dict.fromkeys(lora_configs.select(rows, dtype) for rows in (1, 4, 16, 64)):
        for sites, group in ((3, "qkv"), (1, "down")):
            launch = functools.partial(_add_lora, group, config, dtype)
            yield Case(name=f"lora rows {config.block_m} sites {sites}", dtype=dtype, launch=launch)


def _add_lora(group: str, config: lora_configs.LoraConfig, dtype: torch.dtype, *, fused: bool = True) -> None:
    shape = GROUPS[group]
    table = AdapterTable([shape], num_slots=2, num_slices=16, page_elements=1 << 14)
    capacity = PlanCapacity(num_rows=64, num_pairs=64, num_adapters=8, num_shrink_tiles=8, num_expand_tiles=8)
    plan = PlanBuffers(capacity, block_m=config.block_m, block_r=config.block_r)
    sites = len(shape.out_sizes)
    scratch = LoraScratch.reserve(num_pairs=64, num_sites=sites, max_rank=16, splits=config.splits)
    x, out = torch.empty(64, shape.in_features, dtype=dtype), torch.empty(64, sum(shape.out_sizes), dtype=dtype)
    pool = torch.empty(1 << 15, dtype=dtype)
    add_lora(x, out, plan, table.group(0), pool, scratch, config, max_rank=16, fused=fused)


def _attention(dtype: torch.dtype) -> Iterator[Case]:
    for head_dim, group in ((128, 4), (64, 3), (256, 8)):
        for window in (None, 4096):
            shape = f"D {head_dim} G {group}" + (" window" if window else "")
            for splits in (1, 4):
                launch = functools.partial(_decode, dtype, head_dim, group, splits, window)
                yield Case(name=f"attention decode {shape} splits {splits}", dtype=dtype, launch=launch)
            for rows in (1, 2048):
                launch = functools.partial(_prefill, dtype, head_dim, group, rows, window)
                yield Case(name=f"attention prefill {shape} rows {rows}", dtype=dtype, launch=launch)


def _paged(dtype: torch.dtype, head_dim: int, kv_heads: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(keys, values, page table) of two layers, so that strides are those of a real cache."""
    storage = torch.empty(2, 2, 2, kv_heads, 16, head_dim, dtype=dtype)
    return storage[:, 1, 0], storage[:, 1, 1], torch.zeros(2, 16, dtype=torch.int32)


def _decode(dtype: torch.dtype, head_dim: int, group: int, splits: int, window: int | None) -> None:
    keys, values, table = _paged(dtype, head_dim, KV_HEADS)
    heads = KV_HEADS * group
    query = torch.empty(2, heads, head_dim, dtype=dtype)
    scratch = DecodeScratch.reserve(num_sequences=2, num_heads=heads, head_dim=head_dim, splits=splits)
    lens, out = torch.zeros(2, dtype=torch.int32), torch.empty_like(query)
    decode_attention(query, keys, values, table, lens, out, scratch, splits=splits, window=window)


def _prefill(dtype: torch.dtype, head_dim: int, group: int, rows: int, window: int | None) -> None:
    keys, values, table = _paged(dtype, head_dim, KV_HEADS)
    query = torch.empty(2, KV_HEADS * group, head_dim, dtype=dtype)
    config = attention_configs.prefill(chip_of(query.device), head_dim, rows, group, dtype)
    tiles = PrefillTiles.of([1, 1], block_m=config.block_m, group=group)
    lens, out = torch.zeros(2, dtype=torch.int32), torch.empty_like(query)
    prefill_attention(query, keys, values, table, lens, out, tiles, config, window=window)


def _embedding(dtype: torch.dtype) -> None:
    table = AdapterTable(
        [GroupShape(in_features=VOCAB, out_sizes=(HIDDEN,))], num_slots=2, num_slices=16, page_elements=1 << 18
    )
    for config in dict.fromkeys(lora_configs.select(rows, dtype) for rows in (1, 64)):
        capacity = PlanCapacity(num_rows=64, num_pairs=64, num_adapters=8, num_shrink_tiles=8, num_expand_tiles=8)
        plan = PlanBuffers(capacity, block_m=config.block_m, block_r=config.block_r)
        ids, out = torch.zeros(64, dtype=torch.int64), torch.empty(64, HIDDEN, dtype=dtype)
        add_lora_embedding(ids, out, plan, table.group(0), torch.empty(1 << 10, dtype=dtype))


def _norm(dtype: torch.dtype) -> None:
    for hidden in (576, HIDDEN, 16384):
        x, weight = torch.empty(2, hidden, dtype=dtype), torch.empty(hidden, dtype=dtype)
        rms_norm(x, weight, torch.empty_like(x), 1e-5)
        rms_norm(x, weight, torch.empty_like(x), 1e-5, residual=torch.empty_like(x))


def _norm_heads(dtype: torch.dtype) -> None:
    qkv, weight = torch.empty(2, HEADS + 2 * KV_HEADS, HEAD_DIM, dtype=dtype), torch.empty(HEAD_DIM, dtype=dtype)
    norm_heads(qkv[:, : HEADS + KV_HEADS], weight, weight, HEADS, 1e-6)


def _rope(dtype: torch.dtype) -> None:
    keys, values, _ = _paged(dtype, HEAD_DIM, KV_HEADS)
    qkv, index = torch.empty(2, HEADS + 2 * KV_HEADS, HEAD_DIM, dtype=dtype), torch.zeros(2, dtype=torch.int64)
    angles = torch.empty(16, HEAD_DIM // 2)
    rope_and_cache(qkv, index, index, angles, angles, qkv[:, :HEADS], keys, values)


def _activation(dtype: torch.dtype) -> None:
    silu_and_multiply(torch.empty(2, 2 * INNER, dtype=dtype), torch.empty(2, INNER, dtype=dtype))


def _layer(dtype: torch.dtype, rows_per_adapter: int = 1) -> None:
    """Every launch of one decoder layer in a decode step, base linears (torch's own) left out."""
    config = lora_configs.select(rows_per_adapter, dtype)
    hidden, weight = torch.empty(2, HIDDEN, dtype=dtype), torch.empty(HIDDEN, dtype=dtype)
    rms_norm(hidden, weight, torch.empty_like(hidden), 1e-5, residual=hidden)
    _add_lora("qkv", config, dtype)
    _rope(dtype)
    _decode(dtype, HEAD_DIM, HEADS // KV_HEADS, 4, None)
    _add_lora("o", config, dtype)
    rms_norm(hidden, weight, torch.empty_like(hidden), 1e-5, residual=hidden)
    _add_lora("gate_up", config, dtype)
    _activation(dtype)
    _add_lora("down", config, dtype)


def _sampling(vocab_size: int) -> None:
    rows = SamplingRows.of([RowSampling(repetition_penalty=1.5, history_slot=0, mask_row=0, bias=((1, 1.0),))])
    history = History(num_slots=1, vocab_size=vocab_size)
    logits, tokens = torch.empty(1, vocab_size), torch.zeros(1, dtype=torch.int64)
    masks = mask_bits(vocab_size).view(1, -1)
    sample(logits, rows, tokens, adjusted=torch.empty_like(logits), history=history, masks=masks)
    count_tokens(tokens, rows, history)
    token_logprobs(logits, tokens, torch.zeros(1, dtype=torch.int32), Logprobs.reserve(1, 20))


_ROWS: dict[str, Callable[[torch.dtype], None]] = {
    "embedding lora": _embedding,
    "norm": _norm,
    "norm heads": _norm_heads,
    "rope and cache": _rope,
    "activation": _activation,
    "one layer": _layer,
}
