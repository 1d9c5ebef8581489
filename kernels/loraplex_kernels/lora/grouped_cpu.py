"""Grouped LoRA on CPU: one small GEMM pair per adapter and group of sites, on that adapter's rows only.

    out[rows of a] += weight * scale * (x[rows of a] @ A_a^T) @ B_a^T

Sites that read the same input share the shrink. Weights are read once per step, never per token, and rows without an
adapter are not touched.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from loraplex_kernels.lora.segments import LoraBatch, Segment
from loraplex_kernels.lora.site_group import Expand, SiteGroup

_DTYPES = (torch.float32, torch.bfloat16, torch.float64)


def add_lora(x: Tensor, out: Tensor, batch: LoraBatch, groups: Sequence[SiteGroup | None]) -> None:
    """Add the deltas of one group of sites to ``out``, in place.

    Args:
        x: [T, in_features].
        out: [T, out_features], same dtype; holds the base result.
        batch: whose rows are whose.
        groups: by adapter index; None where the adapter does not change these sites.

    Raises:
        ValueError: shapes or dtypes that do not fit; ``out`` is then unchanged.
    """
    _check(x, out, batch, groups)
    for segment in batch.segments:
        group = groups[segment.adapter]
        if group is not None:
            _check_group(x.shape[1], out, group)
    for segment in batch.segments:
        group = groups[segment.adapter]
        if group is not None:
            _expand_all(out, segment, group, torch.mm(segment.take(x), group.a.t()))


def add_lora_embedding(token_ids: Tensor, out: Tensor, batch: LoraBatch, groups: Sequence[SiteGroup | None]) -> None:
    """Add the deltas of the embedding to ``out`` [T, hidden], in place; ``token_ids`` is [T] int64.

    Raises:
        ValueError: shapes or dtypes that do not fit; ``out`` is then unchanged.
    """
    if token_ids.dim() != 1 or token_ids.dtype != torch.int64:
        raise ValueError(f"token_ids must be [T] int64, got {token_ids.dtype} {list(token_ids.shape)}")
    _check(token_ids.unsqueeze(1), out, batch, groups, same_dtype=False)
    for segment in batch.segments:
        group = groups[segment.adapter]
        if group is not None:
            _check_group(group.a.shape[1], out, group)
            shrunk = group.a.index_select(1, segment.take(token_ids)).t()
            _expand_all(out, segment, group, shrunk)


def _expand_all(out: Tensor, segment: Segment, group: SiteGroup, shrunk: Tensor) -> None:
    if segment.row_weights is not None:
        # In float32, then rounded once: the weights of a composition need not be bf16 numbers.
        shrunk = (shrunk * segment.row_weights).to(out.dtype)
    for site in group.expands:
        _expand(out, segment, site, shrunk[:, site.rank_start : site.rank_stop])


def _expand(out: Tensor, segment: Segment, site: Expand, shrunk: Tensor) -> None:
    scale = site.scale if segment.row_weights is not None else site.scale * segment.weight
    columns = out[:, site.out_start : site.out_stop]
    if segment.index is None:
        columns[segment.start : segment.stop].addmm_(shrunk, site.b.t(), alpha=scale)
    else:
        columns.index_add_(0, segment.index, torch.mm(shrunk, site.b.t()), alpha=scale)


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


def _check_group(in_features: int, out: Tensor, group: SiteGroup) -> None:
    rank, features = group.a.shape
    last = group.expands[-1]
    if features != in_features or group.a.dtype != out.dtype or last.rank_stop != rank or last.out_stop > out.shape[1]:
        raise ValueError(
            f"A {group.a.dtype} {[rank, features]} with ranks to {last.rank_stop} and outputs to {last.out_stop} "
            f"does not fit {in_features} inputs and out {out.dtype} {list(out.shape)}"
        )
