"""Rotate q and k and store k and v, in one launch."""

import torch
from torch import Tensor

from loraplex_kernels.operands import FLOATS, ceil_div, next_power_of_2, require, require_one_device
from loraplex_kernels.rope_cache import configs
from loraplex_kernels.triton_kernels import triton_kernels


def rope_and_cache(
    qkv: Tensor,
    positions: Tensor,
    slots: Tensor,
    cos: Tensor,
    sin: Tensor,
    query: Tensor,
    keys: Tensor,
    values: Tensor,
) -> None:
    """Write rotated queries to ``query``, rotated keys and plain values to their slots.

    Args:
        qkv: [T, H + 2 * KH, D]: query, key and value heads; rows may be strided.
        positions: [T] int64, below the rows of ``cos``.
        slots: [T] int64: page * page_size + offset, no slot twice; a row below 0 is no token and is left alone.
        cos: [positions, D / 2] float32.
        sin: the same.
        query: [T, H, D], rows may be strided; may be the first heads of ``qkv``.
        keys: [pages, KH, page_size, D], may be strided but for the last dimension.
        values: the same strides.

    Raises:
        ValueError: operands that do not fit; nothing is changed.
    """
    kv, heads = {"keys": keys, "values": values}, {"qkv": qkv, "query": query}
    fits = qkv.dim() == query.dim() == 3 and keys.dim() == 4
    require(fits, "qkv and query must be [T, heads, D], keys [pages, KH, page_size, D]", **heads, **kv)
    require(keys.shape == values.shape and keys.stride() == values.stride(), "keys and values must be alike", **kv)
    rows, num_heads, head_dim = query.shape
    _, num_kv_heads, page_size, _ = keys.shape
    fits = qkv.shape == (rows, num_heads + 2 * num_kv_heads, head_dim) and keys.shape[3] == head_dim
    require(fits and head_dim % 2 == 0, "qkv must hold the heads of q, k and v", **heads, **kv)
    fits = qkv.dtype == query.dtype == keys.dtype == values.dtype and qkv.dtype in FLOATS
    require(fits, f"one dtype of {FLOATS}", **heads, **kv)
    fits = all(tensor.stride()[1:] == (head_dim, 1) for tensor in heads.values()) and keys.stride(3) == 1
    require(fits or rows == 0, "heads and features must be contiguous", **heads, **kv)
    index = {"positions": positions, "slots": slots}
    fits = all(tensor.shape == (rows,) and tensor.dtype == torch.int64 for tensor in index.values())
    require(fits and positions.is_contiguous() and slots.is_contiguous(), "positions, slots: [T] int64", **index)
    angles = {"cos": cos, "sin": sin}
    fits = cos.shape == sin.shape == (cos.shape[0], head_dim // 2) and cos.dtype == sin.dtype == torch.float32
    require(fits and cos.is_contiguous() and sin.is_contiguous(), "cos, sin: [positions, D / 2] float32", **angles)
    require_one_device(**heads, **angles, **index, **kv)
    if rows == 0:
        return
    grid = (rows, ceil_div(num_heads + 2 * num_kv_heads, configs.BLOCK_HEADS))
    triton_kernels("rope_cache").rope_cache_kernel[grid](
        qkv_ptr=qkv,
        positions_ptr=positions,
        slots_ptr=slots,
        cos_ptr=cos,
        sin_ptr=sin,
        q_ptr=query,
        k_ptr=keys,
        v_ptr=values,
        stride_qkv_t=qkv.stride(0),
        stride_q_t=query.stride(0),
        stride_k_p=keys.stride(0),
        stride_k_h=keys.stride(1),
        stride_k_n=keys.stride(2),
        H=num_heads,
        KH=num_kv_heads,
        D=head_dim,
        PAGE=page_size,
        BLOCK_H=configs.BLOCK_HEADS,
        BLOCK_D=next_power_of_2(head_dim // 2),
        num_warps=configs.NUM_WARPS,
    )
