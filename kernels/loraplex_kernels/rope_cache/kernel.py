"""Rotate q and k by their position; write q to its tensor, k and v to their page.

    y[i]         = x[i] cos[p, i] - x[i + D/2] sin[p, i]
    y[i + D/2]   = x[i + D/2] cos[p, i] + x[i] sin[p, i]        i < D / 2, p the row's position

Dimension letters: T rows, H query heads, KH key/value heads, D head size
"""

# Triton ships no types, and what it decorates is no Python.
# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201
import triton
import triton.language as tl


@triton.jit
def rope_cache_kernel(
    qkv_ptr,  # [T, H + 2 KH, D]      heads and features contiguous
    positions_ptr,  # [T]             int64
    slots_ptr,  # [T]                 int64: page * PAGE + offset; below 0: no token, nothing is read or written
    cos_ptr,  # [positions, D / 2]    float32, contiguous
    sin_ptr,  # same
    q_ptr,  # [T, H, D]               heads and features contiguous; may be qkv's own
    k_ptr,  # [pages, KH, PAGE, D]    features contiguous
    v_ptr,  # same strides as k
    stride_qkv_t, stride_q_t, stride_k_p, stride_k_h, stride_k_n,
    H: tl.constexpr, KH: tl.constexpr, D: tl.constexpr, PAGE: tl.constexpr, BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    i_t = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + i_t)
    if slot >= 0:
        o_h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
        o_d = tl.arange(0, BLOCK_D)  # one of a pair
        half: tl.constexpr = D // 2
        m_d = o_d < half
        m_x = (o_h < H + 2 * KH)[:, None] & m_d[None, :]
        p_x = qkv_ptr + i_t * stride_qkv_t + o_h[:, None] * D + o_d[None, :]
        b_low = tl.load(p_x, mask=m_x, other=0.0).to(tl.float32)  # [BLOCK_H, BLOCK_D]
        b_high = tl.load(p_x + half, mask=m_x, other=0.0).to(tl.float32)
        p_angle = tl.load(positions_ptr + i_t) * half + o_d
        b_cos = tl.load(cos_ptr + p_angle, mask=m_d, other=1.0)[None, :]
        b_sin = tl.load(sin_ptr + p_angle, mask=m_d, other=0.0)[None, :]
        is_value = (o_h >= H + KH)[:, None]
        b_first = tl.where(is_value, b_low, b_low * b_cos - b_high * b_sin)
        b_second = tl.where(is_value, b_high, b_high * b_cos + b_low * b_sin)
        m_q = (o_h < H)[:, None] & m_d[None, :]
        p_q = q_ptr + i_t * stride_q_t + o_h[:, None] * D + o_d[None, :]
        tl.store(p_q, b_first, mask=m_q)
        tl.store(p_q + half, b_second, mask=m_q)
        o_slot = (slot // PAGE) * stride_k_p + (slot % PAGE) * stride_k_n
        m_k = ((o_h >= H) & (o_h < H + KH))[:, None] & m_d[None, :]
        p_k = k_ptr + o_slot + (o_h - H)[:, None] * stride_k_h + o_d[None, :]
        tl.store(p_k, b_first, mask=m_k)
        tl.store(p_k + half, b_second, mask=m_k)
        m_v = m_x & is_value
        p_v = v_ptr + o_slot + (o_h - H - KH)[:, None] * stride_k_h + o_d[None, :]
        tl.store(p_v, b_first, mask=m_v)
        tl.store(p_v + half, b_second, mask=m_v)
