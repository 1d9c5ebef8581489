"""The specification of paged attention: one sequence, one row, one head at a time. Any float dtype; slow."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    page_table: Tensor,
    num_rows: Sequence[int],
    context_lens: Sequence[int],
    *,
    window: int | None = None,
) -> Tensor:
    """Causal attention of the last rows of every sequence over its whole context.

    Args:
        query: [T, H, D]; the rows of the sequences, one after the other.
        keys: [pages, KH, page_size, D].
        values: the same.
        page_table: [B, pages of the longest] page ids, in token order.
        num_rows: by sequence: its rows in ``query``, the last ones of its context.
        context_lens: by sequence: its tokens, these rows included.
        window: how many of the last positions a row sees, itself included; None = all.

    Returns:
        [T, H, D].
    """
    out = torch.zeros_like(query)
    _, num_kv_heads, page_size, head_dim = keys.shape
    group = query.shape[1] // num_kv_heads
    row = 0
    for sequence, (rows, context) in enumerate(zip(num_rows, context_lens, strict=True)):
        for position in range(context - rows, context):
            first = 0 if window is None else max(0, position - window + 1)
            at = range(first, position + 1)
            pages = [int(page_table[sequence, token // page_size]) for token in at]
            slots = [token % page_size for token in at]
            for head in range(query.shape[1]):
                key, value = keys[pages, head // group, slots], values[pages, head // group, slots]
                scores = key @ query[row, head] / math.sqrt(head_dim)
                out[row, head] = torch.softmax(scores, 0) @ value
            row += 1
    return out
