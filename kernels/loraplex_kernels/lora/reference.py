"""The specification of grouped LoRA: one row at a time, one adapter at a time. Any dtype, float64 included; slow.

Every faster implementation must agree with this one.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from loraplex_kernels.lora.segments import AdapterPairs
from loraplex_kernels.lora.site_group import SiteGroup


def lora_rows(
    x: Tensor,
    base: Tensor,
    rows: Sequence[AdapterPairs],
    groups: Sequence[SiteGroup | None],
    base_bias: Tensor | None = None,
) -> Tensor:
    """``base[t, out of site] + sum over (adapter, weight) of weight * scale * ((x[t] @ A^T) @ B^T + bias)``.

    Args:
        x: [T, in_features].
        base: [T, out_features], the outputs of the base linear; left as it is.
        rows: the (adapter, weight) pairs of each row.
        groups: by adapter index; None where the adapter does not change this linear.
        base_bias: [out_features], what ``base`` has beside the product; DoRA leaves it alone.

    Returns:
        [T, out_features].
    """
    result = base.clone()
    product = base if base_bias is None else base - base_bias
    for row, pairs in enumerate(rows):
        for adapter, weight in pairs:
            group = groups[adapter]
            if group is not None:
                result[row] += weight * _delta(group, group.a @ x[row], product[row])
    return result


def lora_embedding_rows(
    token_ids: Tensor, base: Tensor, rows: Sequence[AdapterPairs], groups: Sequence[SiteGroup | None]
) -> Tensor:
    """``base[t] + sum of weight * scale * A[:, token_ids[t]] @ B^T``; A is [rank, vocab]."""
    result = base.clone()
    for row, pairs in enumerate(rows):
        for adapter, weight in pairs:
            group = groups[adapter]
            if group is not None:
                result[row] += weight * _delta(group, group.a[:, int(token_ids[row])], base[row])
    return result


def _delta(group: SiteGroup, shrunk: Tensor, product: Tensor) -> Tensor:
    delta = torch.zeros_like(product)
    for site in group.expands:
        up = site.b @ shrunk[site.rank_start : site.rank_stop]
        change = site.scale * (up if site.bias is None else up + site.bias)
        if site.gain is not None:
            change = (1 + site.gain) * change + site.gain * product[site.out_start : site.out_stop]
        delta[site.out_start : site.out_stop] += change
    return delta
