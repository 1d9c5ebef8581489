"""Log-probabilities of tokens under the raw model: before penalties, bias, masks and temperature."""

from collections.abc import Sequence

import torch
from torch import Tensor

from loraplex_worker.engine.report import TokenLogprobs


def token_logprobs(logits: Tensor, token_ids: Sequence[int], num_top: Sequence[int]) -> list[TokenLogprobs]:
    """Describe one token of each row.

    Args:
        logits: [N, V] float32, finite.
        token_ids: N, the token to describe.
        num_top: N, how many of the likeliest tokens to list.
    """
    at = torch.tensor(token_ids, dtype=torch.int64, device=logits.device).unsqueeze(1)
    log_total = logits.logsumexp(dim=1, keepdim=True)
    chosen = logits.gather(1, at)
    ranks: list[int] = ((logits > chosen).sum(1) + 1).tolist()
    logprobs: list[float] = (chosen - log_total).squeeze(1).tolist()
    tops = _tops(logits, log_total, num_top)
    return [
        TokenLogprobs(logprob=logprob, rank=rank, top=top)
        for logprob, rank, top in zip(logprobs, ranks, tops, strict=True)
    ]


def _tops(logits: Tensor, log_total: Tensor, num_top: Sequence[int]) -> list[tuple[tuple[int, float], ...]]:
    size = min(max(num_top), logits.shape[1])
    if size == 0:
        return [()] * len(num_top)
    values, ids = _ordered_topk(logits, size)
    ids_rows: list[list[int]] = ids.tolist()
    logprob_rows: list[list[float]] = (values - log_total).tolist()
    return [
        tuple(zip(ids_row[:count], logprob_row[:count], strict=True))
        for ids_row, logprob_row, count in zip(ids_rows, logprob_rows, num_top, strict=True)
    ]


def _ordered_topk(logits: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The ``size`` highest, best first, ties by id. ``topk`` alone leaves ties in any order."""
    values = logits.topk(size, dim=1).values
    ids = torch.empty_like(values, dtype=torch.int64)
    for row in range(len(logits)):
        candidates = (logits[row] >= values[row, -1]).nonzero().squeeze(1)
        order = logits[row, candidates].argsort(descending=True, stable=True)
        ids[row] = candidates[order[:size]]
    return values, ids
