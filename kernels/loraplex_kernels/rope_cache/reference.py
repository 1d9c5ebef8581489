"""The specification of rotation and cache write, row by row, in the dtype of its arguments (float64 for checks)."""

import torch
from torch import Tensor


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """[H, D] by the angles of one position, cos and sin [D / 2]: features i and i + D / 2 are one pair."""
    low, high = x.chunk(2, -1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), -1)


def rope_and_cache(
    qkv: Tensor,
    positions: Tensor,
    slots: Tensor,
    cos: Tensor,
    sin: Tensor,
    keys: Tensor,
    values: Tensor,
    num_heads: int,
) -> Tensor:
    """Rotated queries; ``keys`` and ``values`` are changed in place.

    Args:
        qkv: [T, H + 2 KH, D].
        positions: [T].
        slots: [T]: page * page_size + offset, or -1 for a row that is no token.
        cos: [positions, D / 2].
        sin: the same.
        keys: [pages, KH, page_size, D].
        values: the same.
        num_heads: H.

    Returns:
        [T, H, D].
    """
    num_kv_heads, page_size = keys.shape[1:3]
    query = torch.zeros_like(qkv[:, :num_heads])
    for row, (position, slot) in enumerate(zip(positions.tolist(), slots.tolist(), strict=True)):
        if slot < 0:
            continue
        query[row] = rotate(qkv[row, :num_heads], cos[position], sin[position])
        key, value = qkv[row, num_heads : num_heads + num_kv_heads], qkv[row, num_heads + num_kv_heads :]
        keys[slot // page_size, :, slot % page_size] = rotate(key, cos[position], sin[position])
        values[slot // page_size, :, slot % page_size] = value
    return query
