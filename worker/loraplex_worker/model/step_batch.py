"""What one step of the model computes: rows (tokens) of many sequences, side by side."""

import dataclasses
from typing import TYPE_CHECKING

from torch import Tensor

from loraplex_kernels.lora.segments import LoraBatch

if TYPE_CHECKING:
    from loraplex_worker.model.lora_weights import LoraWeights


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """The rows of one sequence in this step: the last ``num_rows`` tokens of its context."""

    start_row: int
    num_rows: int
    context_len: int
    """Tokens in the KV cache AFTER this step; row ``start_row + i`` has position ``context_len - num_rows + i``."""
    page_ids: tuple[int, ...]
    """Pages of the sequence in token order; at least ceil(context_len / page_size), further ones are not read."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StepBatch:
    """One forward pass. T rows, N of them with logits.

    The rows of the spans cover 0 .. T-1 without gap, in order. A token that is the first of its page must be written in
    the step where that page is first read: the cache clears a page when its offset 0 is written (see ``KvCache``).
    LoRA is fastest where the sequences of one adapter are neighbours, so that its rows form one slice.
    """

    token_ids: Tensor
    """[T] int64."""
    positions: Tensor
    """[T] int64, 0-based."""
    slots: Tensor
    """[T] int64, page_id * page_size + offset: where each row's K and V are written. No slot twice."""
    spans: tuple[Span, ...]
    """Decode spans (num_rows == 1) first, then prefill chunks."""
    logit_rows: Tensor
    """[N] int64 rows whose logits are wanted, in the order of the result. May be empty."""
    lora: LoraBatch | None
    """``LoraBatch.from_runs((span.num_rows, pairs) for each span)``. None = base fast path."""
    adapters: "tuple[LoraWeights, ...]" = ()
    """Weights by the adapter index that ``lora`` uses; empty where ``lora`` is None."""
