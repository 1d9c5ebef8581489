"""Embedding and head that an adapter brings whole (PEFT's modules_to_save), for its own rows.

A row's change is ``weight * (own - base)``, a sum as of any other kind, so that it goes with compositions.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from loraplex_kernels.lora.segments import LoraBatch, Segment


def add_saved_embedding(
    token_ids: Tensor, out: Tensor, batch: LoraBatch, saved: Sequence[Tensor | None], base: Tensor
) -> None:
    """Change the embeddings ``out`` [T, hidden] in place.

    Args:
        token_ids: [T] int64.
        out: may already have other adapters' changes.
        batch: whose rows are whose.
        saved: by adapter index [vocab, hidden], or None.
        base: [vocab, hidden], the model's own.
    """
    for segment in batch.segments:
        own = saved[segment.adapter]
        if own is not None:
            ids = segment.take(token_ids)
            _add(out, segment, own.index_select(0, ids), base.index_select(0, ids))


def add_saved_head(
    x: Tensor,
    out: Tensor,
    batch: LoraBatch,
    saved: Sequence[Tensor | None],
    base_of: Callable[[Tensor], Tensor],
) -> None:
    """Change the logits ``out`` [N, vocab] in place.

    Args:
        x: [N, hidden], normed: what the head reads.
        out: may already have other adapters' changes.
        batch: whose rows are whose, of these N.
        saved: by adapter index [vocab, hidden], or None.
        base_of: [rows] int64 -> the base model's logits of those rows.
    """
    for segment in batch.segments:
        own = saved[segment.adapter]
        if own is not None:
            logits = torch.nn.functional.linear(segment.take(x).to(own.dtype), own)
            _add(out, segment, logits, base_of(_rows(segment)))


def _rows(segment: Segment) -> Tensor:
    return torch.arange(segment.start, segment.stop) if segment.index is None else segment.index


def _add(out: Tensor, segment: Segment, own: Tensor, base: Tensor) -> None:
    weights = segment.weight if segment.row_weights is None else segment.row_weights
    rows = _rows(segment)
    change = (own.to(torch.float32) - base.to(torch.float32)) * weights
    out.index_copy_(0, rows, (out.index_select(0, rows).to(torch.float32) + change).to(out.dtype))
