"""Grouped LoRA on CPU: one small GEMM pair per adapter and group of sites, on that adapter's rows only.

    out[rows of a] += weight * scale * (x[rows of a] @ A_a^T) @ B_a^T

Sites that read the same input share the shrink. Weights are read once per step, never per token, and rows without an
adapter are not touched.

``out`` may be bfloat16 while A and B are float32. That is what PEFT does by default (``autocast_adapter_dtype``): the
input is widened, the delta is computed and scaled in float32, and the sum with the base result is rounded once. On CPU
it is also the fast way: products this small are all overhead, and float32 has the least of it. One row, in 576, rank
48, one EPYC core, 2026-11-23: bfloat16 20 us a product (oneDNN), float32 4 us (MKL).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from loraplex_kernels.lora.segments import LoraBatch, Segment
from loraplex_kernels.lora.site_group import Expand, SiteGroup

_DTYPES = (torch.float32, torch.bfloat16, torch.float64)


def add_lora(
    x: Tensor,
    out: Tensor,
    batch: LoraBatch,
    groups: Sequence[SiteGroup | None],
    base_bias: Tensor | None = None,
) -> None:
    """Add the deltas of one group of sites to ``out``, in place.

    Args:
        x: [T, in_features].
        out: [T, out_features], same dtype; holds the base result.
        batch: whose rows are whose.
        groups: by adapter index; None where the adapter does not change these sites. A and B have the dtype of ``out``,
            or are float32 where ``out`` is bfloat16.
        base_bias: [out_features], what ``out`` has beside the base product; DoRA leaves it alone.

    Raises:
        ValueError: shapes or dtypes that do not fit; ``out`` is then unchanged.
    """
    _check(x, out, batch, groups)
    work = _work(batch, groups, x.shape[1], out)
    if not work:
        return
    if work[0][1].a.dtype != x.dtype:
        x = x.to(work[0][1].a.dtype)
    shrunk = [torch.mm(segment.take(x), group.a.t()) for segment, group in work]
    _accumulate(out, work, shrunk, _product(out, base_bias, work))


def add_lora_embedding(token_ids: Tensor, out: Tensor, batch: LoraBatch, groups: Sequence[SiteGroup | None]) -> None:
    """Add the deltas of the embedding to ``out`` [T, hidden], in place; ``token_ids`` is [T] int64.

    Raises:
        ValueError: shapes or dtypes that do not fit; ``out`` is then unchanged.
    """
    if token_ids.dim() != 1 or token_ids.dtype != torch.int64:
        raise ValueError(f"token_ids must be [T] int64, got {token_ids.dtype} {list(token_ids.shape)}")
    _check(token_ids.unsqueeze(1), out, batch, groups, same_dtype=False)
    work = _work(batch, groups, None, out)
    shrunk = [group.a.index_select(1, segment.take(token_ids)).t() for segment, group in work]
    _accumulate(out, work, shrunk, _product(out, None, work))


_Work = list[tuple[Segment, SiteGroup]]


def _work(batch: LoraBatch, groups: Sequence[SiteGroup | None], in_features: int | None, out: Tensor) -> _Work:
    """Segments whose adapter changes these sites, all checked before anything is written."""
    work: _Work = []
    for segment in batch.segments:
        group = groups[segment.adapter]
        if group is not None:
            _check_group(in_features, out, group)
            work.append((segment, group))
    if len({group.a.dtype for _, group in work}) > 1:
        raise ValueError("the adapters of one batch must have one dtype")
    return work


def _product(out: Tensor, base_bias: Tensor | None, work: _Work) -> Tensor | None:
    """[T, out_features] in the adapters' dtype: the base product before any change, where DoRA needs it."""
    if not any(group.is_dora for _, group in work):
        return None
    product = out.to(work[0][1].a.dtype, copy=True)
    return product if base_bias is None else product.sub_(base_bias)


def _accumulate(out: Tensor, work: _Work, shrunk: list[Tensor], product: Tensor | None) -> None:
    """Expand every segment; through a buffer where the deltas are wider than ``out``, so that each sum rounds once."""
    if not work or work[0][1].a.dtype == out.dtype:
        for (segment, group), low in zip(work, shrunk, strict=True):
            _expand_all(out, segment, group, low, 0, product)
        return
    first, last = min(segment.start for segment, _ in work), max(segment.stop for segment, _ in work)
    delta = torch.zeros(last - first, out.shape[1], dtype=work[0][1].a.dtype, device=out.device)
    for (segment, group), low in zip(work, shrunk, strict=True):
        _expand_all(delta, segment, group, low, first, product)
    out[first:last].add_(delta)


def _expand_all(
    out: Tensor, segment: Segment, group: SiteGroup, shrunk: Tensor, first_row: int, product: Tensor | None
) -> None:
    """Add one adapter's deltas to ``out``, whose row 0 is row ``first_row`` of the batch."""
    if group.is_dora:
        assert product is not None
        _add_dora(out, segment, group, shrunk, first_row, product)
        return
    weight = segment.weight
    if segment.row_weights is not None:
        # In float32, then rounded once: the weights of a composition need not be bf16 numbers.
        shrunk, weight = (shrunk * segment.row_weights).to(out.dtype), 1.0
    if segment.index is None:
        rows = out[segment.start - first_row : segment.stop - first_row]
        for site in group.expands:
            columns, low = _columns(rows, site), shrunk[:, site.rank_start : site.rank_stop]
            columns.addmm_(low, site.b.t(), alpha=site.scale * weight)
            if site.bias is not None:
                columns.add_(_biases(site.bias, segment), alpha=site.scale * weight)
        return
    index = segment.index - first_row if first_row else segment.index
    for site in group.expands:
        delta = torch.mm(shrunk[:, site.rank_start : site.rank_stop], site.b.t())
        if site.bias is not None:
            delta += _biases(site.bias, segment)
        _columns(out, site).index_add_(0, index, delta, alpha=site.scale * weight)


def _add_dora(out: Tensor, segment: Segment, group: SiteGroup, shrunk: Tensor, first_row: int, product: Tensor) -> None:
    weights = segment.weight if segment.row_weights is None else segment.row_weights
    rows = segment.take(product)
    for site in group.expands:
        assert site.gain is not None
        change = torch.mm(shrunk[:, site.rank_start : site.rank_stop], site.b.t()).mul_(site.scale)
        change = torch.addcmul(change, change + _columns(rows, site), site.gain)
        change = (change * weights).to(out.dtype)
        if segment.index is None:
            _columns(out[segment.start - first_row : segment.stop - first_row], site).add_(change)
        else:
            _columns(out, site).index_add_(0, segment.index - first_row, change)


def _biases(bias: Tensor, segment: Segment) -> Tensor:
    """What is added to each row's ``B A x``: [out] or [rows, out]. Weights that differ by row are in it."""
    return bias if segment.row_weights is None else (segment.row_weights * bias).to(bias.dtype)


def _columns(rows: Tensor, site: Expand) -> Tensor:
    return rows[:, site.out_start : site.out_stop]


def _check(
    x: Tensor, out: Tensor, batch: LoraBatch, groups: Sequence[SiteGroup | None], *, same_dtype: bool = True
) -> None:
    shapes = f"x {x.dtype} {list(x.shape)}, out {out.dtype} {list(out.shape)}, batch of {batch.num_rows} rows"
    if x.dim() != 2 or out.dim() != 2 or not x.shape[0] == out.shape[0] == batch.num_rows:
        raise ValueError(f"x and out must be 2-D with the batch's number of rows: {shapes}")
    if out.dtype not in _DTYPES or (same_dtype and x.dtype != out.dtype):
        raise ValueError(f"x and out must have one dtype of {_DTYPES}: {shapes}")
    if batch.max_adapter >= len(groups):
        raise ValueError(f"the batch names adapter {batch.max_adapter}, but there are {len(groups)} groups")


def _check_group(in_features: int | None, out: Tensor, group: SiteGroup) -> None:
    if group.is_packed:
        raise ValueError("the group is packed for the native kernels; this is the torch path")
    rank, features = group.a.shape
    last, dtype = group.expands[-1], group.a.dtype
    fits = in_features in (None, features) and last.rank_stop == rank and last.out_stop <= out.shape[1]
    if not fits or (dtype != out.dtype and (dtype, out.dtype) != (torch.float32, torch.bfloat16)):
        raise ValueError(
            f"A {dtype} {[rank, features]} with ranks to {last.rank_stop} and outputs to {last.out_stop} "
            f"does not fit {in_features} inputs and out {out.dtype} {list(out.shape)}"
        )
