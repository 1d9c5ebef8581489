"""Attention over paged KV on CPU.

Decode rows are taken together: their pages are gathered into one padded buffer, and two batched products with a softmax
between them serve all rows. The query heads that share a KV head are the rows of those products, so K and V are never
repeated. Prefill chunks go one sequence at a time through torch's flash attention, with K and V broadcast by stride.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from loraplex_worker.model.kv_cache import KvCache
from loraplex_worker.model.step_batch import Span, StepBatch

_GATHER_BYTES = 4 << 20
"""Rows are gathered in groups of about this size, so that the products read the buffer from cache. Measured on an EPYC
core, bf16, 32 rows of 512 tokens (12.6 MB): one group 5.8 ms, groups of 3 MB 2.7 ms a layer, 2026-11-23."""
_QUERY_BLOCK = 128
"""Rows of a prefill chunk that share one mask: bounds its size, and skips keys that no row of the block can see."""


class GatherBuffer:
    """Scratch memory for gathered pages, grown on need and kept, one for all layers."""

    def __init__(self) -> None:
        self._storage = torch.empty(0)

    def take(self, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        """[rows, columns], contents undefined; valid until the next ``take``."""
        size = rows * columns
        if self._storage.dtype != dtype or self._storage.numel() < size:
            self._storage = torch.empty(size, dtype=dtype)
        return self._storage[:size].view(rows, columns)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _DecodeGroup:
    """Decode rows whose pages are gathered together. B sequences, S gathered tokens each."""

    start: int
    rows: Tensor | None
    """[B] int64, or None where they are start .. start + B - 1."""
    num_rows: int
    blocks: Tensor
    """[2, B, num_kv_heads, P]."""
    mask: Tensor
    """[B * num_kv_heads, 1, S]: 0 where the row may look, -inf elsewhere."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _PrefillBlock:
    """Query rows start:stop of the chunk against gathered keys key_start:key_stop."""

    start: int
    stop: int
    key_start: int
    key_stop: int
    mask: Tensor | None
    """[stop - start, key_stop - key_start], or None: row i sees keys up to i."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _PrefillChunk:
    start_row: int
    blocks: Tensor
    """[2, 1, num_kv_heads, P]."""
    queries: tuple[_PrefillBlock, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    decode: tuple[_DecodeGroup, ...]
    prefill: tuple[_PrefillChunk, ...]


class CpuAttention:
    """Attention of one step, see ``Attention``."""

    def __init__(
        self,
        batch: StepBatch,
        kv: KvCache,
        windows: Sequence[int | None],
        num_heads: int,
        buffer: GatherBuffer,
    ) -> None:
        self._kv = kv
        self._buffer = buffer
        self._group_size = num_heads // kv.num_kv_heads
        self._scale = 1 / math.sqrt(kv.head_dim)
        kv.open_pages(batch.slots)
        self._write_rows = kv.write_rows(batch.slots)
        plans = {window: _plan(batch.spans, kv, window) for window in set(windows)}
        self._plans = [plans[window] for window in windows]

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, /) -> Tensor:
        self._kv.write(layer, self._write_rows, key, value)
        plan = self._plans[layer]
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
        for group in plan.decode:
            self._decode(layer, group, query, out)
        for chunk in plan.prefill:
            self._prefill(layer, chunk, query, out)
        return out.view(query.shape[0], -1)

    def _gather(self, layer: int, blocks: Tensor) -> tuple[Tensor, Tensor]:
        kv = self._kv
        out = self._buffer.take(blocks.numel(), kv.page_size * kv.head_dim, kv.storage.dtype)
        return kv.gather(layer, blocks, out)

    def _decode(self, layer: int, group: _DecodeGroup, query: Tensor, out: Tensor) -> None:
        kv = self._kv
        keys, values = self._gather(layer, group.blocks)
        taken = slice(group.start, group.start + group.num_rows) if group.rows is None else group.rows
        rows = query[taken].reshape(-1, self._group_size, kv.head_dim)
        scores = torch.baddbmm(group.mask, rows, keys.transpose(1, 2), alpha=self._scale)
        out[taken] = torch.bmm(torch.softmax(scores, -1), values).view(group.num_rows, -1, kv.head_dim)

    def _prefill(self, layer: int, chunk: _PrefillChunk, query: Tensor, out: Tensor) -> None:
        keys, values = self._gather(layer, chunk.blocks)
        shape = (self._group_size, -1, -1, -1)
        for block in chunk.queries:
            rows = slice(chunk.start_row + block.start, chunk.start_row + block.stop)
            seen = slice(block.key_start, block.key_stop)
            # Query head = kv head * group_size + g. Taking g as the batch dimension lets K and V broadcast.
            heads = self._by_kv_head(query[rows]).permute(2, 1, 0, 3)
            result = scaled_dot_product_attention(
                heads,
                keys[:, seen].expand(shape),
                values[:, seen].expand(shape),
                attn_mask=block.mask,
                is_causal=block.mask is None,
                scale=self._scale,
            )
            self._by_kv_head(out[rows]).copy_(result.permute(2, 1, 0, 3))

    def _by_kv_head(self, rows: Tensor) -> Tensor:
        """[T, num_heads, head_dim] -> [T, num_kv_heads, group_size, head_dim], a view."""
        return rows.view(rows.shape[0], -1, self._group_size, self._kv.head_dim)


def _plan(spans: Sequence[Span], kv: KvCache, window: int | None) -> _Plan:
    decode = [span for span in spans if span.num_rows == 1]
    groups = tuple(_decode_group(group, kv, window) for group in _grouped(decode, kv, window))
    prefill = tuple(_prefill_chunk(span, kv, window) for span in spans if span.num_rows > 1)
    return _Plan(decode=groups, prefill=prefill)


def _first_key(span: Span, row: int, window: int | None) -> int:
    """First position that row ``row`` of the span may see."""
    position = span.context_len - span.num_rows + row
    return 0 if window is None else max(0, position - window + 1)


def _pages(span: Span, page_size: int, window: int | None) -> tuple[int, ...]:
    """Pages that any row of the span may see."""
    first = _first_key(span, 0, window) // page_size
    last = -(-span.context_len // page_size)
    pages = tuple(span.page_ids[first:last])
    assert len(pages) == last - first, "the span has fewer pages than its context needs"
    return pages


def _grouped(spans: list[Span], kv: KvCache, window: int | None) -> Iterator[list[Span]]:
    """Split decode rows into groups of about one buffer; alike lengths together where it takes more than one."""
    page_bytes = 2 * kv.num_kv_heads * kv.page_size * kv.head_dim * kv.storage.element_size()
    lengths = {span.start_row: len(_pages(span, kv.page_size, window)) for span in spans}
    if not spans or len(spans) * max(lengths.values()) * page_bytes <= _GATHER_BYTES:
        yield from [spans] if spans else []
        return
    group: list[Span] = []
    for span in sorted(spans, key=lambda span: -lengths[span.start_row]):
        if group and (len(group) + 1) * lengths[group[0].start_row] * page_bytes > _GATHER_BYTES:
            yield group
            group = []
        group.append(span)
    yield group


def _decode_group(spans: list[Span], kv: KvCache, window: int | None) -> _DecodeGroup:
    device = kv.storage.device
    tables = [_pages(span, kv.page_size, window) for span in spans]
    longest = max(len(table) for table in tables)
    # Padded with a page of the same sequence: whatever lies behind the mask is finite and of the same owner.
    padded = torch.tensor([table + table[-1:] * (longest - len(table)) for table in tables], device=device)
    firsts = [_first_key(span, 0, window) for span in spans]
    bases = [first // kv.page_size * kv.page_size for first in firsts]
    low = torch.tensor([first - base for first, base in zip(firsts, bases, strict=True)], device=device)
    high = torch.tensor([span.context_len - base for span, base in zip(spans, bases, strict=True)], device=device)
    at = torch.arange(longest * kv.page_size, device=device)
    seen = (at >= low.unsqueeze(1)) & (at < high.unsqueeze(1))
    rows = [span.start_row for span in spans]
    neighbours = rows == list(range(rows[0], rows[0] + len(rows)))
    return _DecodeGroup(
        start=rows[0],
        rows=None if neighbours else torch.tensor(rows, device=device),
        num_rows=len(rows),
        blocks=kv.gather_blocks(padded),
        mask=_additive(seen, kv.storage.dtype).repeat_interleave(kv.num_kv_heads, 0).unsqueeze(1),
    )


def _additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -math.inf)


def _prefill_chunk(span: Span, kv: KvCache, window: int | None) -> _PrefillChunk:
    pages = torch.tensor([_pages(span, kv.page_size, window)], device=kv.storage.device)
    base = _first_key(span, 0, window) // kv.page_size * kv.page_size
    whole = span.context_len == span.num_rows and (window is None or window >= span.context_len)
    if whole:
        queries = [_PrefillBlock(start=0, stop=span.num_rows, key_start=0, key_stop=span.num_rows, mask=None)]
    else:
        starts = range(0, span.num_rows, _QUERY_BLOCK)
        queries = [_prefill_block(span, start, base, window, kv) for start in starts]
    return _PrefillChunk(start_row=span.start_row, blocks=kv.gather_blocks(pages), queries=tuple(queries))


def _prefill_block(span: Span, start: int, base: int, window: int | None, kv: KvCache) -> _PrefillBlock:
    device = kv.storage.device
    stop = min(start + _QUERY_BLOCK, span.num_rows)
    before = span.context_len - span.num_rows
    first, end = _first_key(span, start, window), before + stop
    queries = torch.arange(before + start, end, device=device).unsqueeze(1)
    keys = torch.arange(first, end, device=device)
    seen = keys <= queries
    if window is not None:
        seen &= keys > queries - window
    mask = _additive(seen, kv.storage.dtype)
    return _PrefillBlock(start=start, stop=stop, key_start=first - base, key_stop=end - base, mask=mask)
