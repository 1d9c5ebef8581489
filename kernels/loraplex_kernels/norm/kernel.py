"""RMS norm, one row a program; statistics in float32, one rounding.

    r[t, :] = x[t, :] + r[t, :]                                  (with residual; rounded to the compute dtype)
    y[t, :] = r[t, :] / sqrt(mean of r[t, :]^2 + eps) * w[:]

Dimension letters: T rows, H hidden features, N heads, D head size
"""

# Triton ships no types, and what it decorates is no Python.
# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201
import triton
import triton.language as tl


@triton.jit
def rms_norm_kernel(
    x_ptr,  # [T, H]         features contiguous
    residual_ptr,  # [T, H]  features contiguous; read and written where HAS_RESIDUAL
    weight_ptr,  # [H]
    out_ptr,  # [T, H]       features contiguous
    stride_x_t, stride_residual_t, stride_out_t, eps,
    H: tl.constexpr, BLOCK_H: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
):  # fmt: skip
    i_t = tl.program_id(0).to(tl.int64)
    o_h = tl.arange(0, BLOCK_H)
    m_h = o_h < H
    b_x = tl.load(x_ptr + i_t * stride_x_t + o_h, mask=m_h, other=0.0)  # [BLOCK_H]
    if HAS_RESIDUAL:
        p_residual = residual_ptr + i_t * stride_residual_t + o_h
        b_residual = tl.load(p_residual, mask=m_h, other=0.0)
        b_x = (b_x.to(tl.float32) + b_residual.to(tl.float32)).to(b_residual.dtype)
        tl.store(p_residual, b_x, mask=m_h)
    b_x = b_x.to(tl.float32)
    scale = tl.math.rsqrt(tl.sum(b_x * b_x, axis=0) / H + eps)
    b_weight = tl.load(weight_ptr + o_h, mask=m_h, other=0.0).to(tl.float32)
    tl.store(out_ptr + i_t * stride_out_t + o_h, b_x * scale * b_weight, mask=m_h)


@triton.jit
def norm_heads_kernel(
    x_ptr,  # [T, N, D]   last dimension contiguous, changed in place
    q_weight_ptr,  # [D]  of the first NUM_Q heads
    k_weight_ptr,  # [D]  of the others
    stride_x_t, stride_x_n, eps,
    N: tl.constexpr, NUM_Q: tl.constexpr, D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    i_t = tl.program_id(0).to(tl.int64)
    o_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    o_d = tl.arange(0, BLOCK_D)
    m_x = (o_n < N)[:, None] & (o_d < D)[None, :]
    p_x = x_ptr + i_t * stride_x_t + o_n[:, None] * stride_x_n + o_d[None, :]
    b_x = tl.load(p_x, mask=m_x, other=0.0).to(tl.float32)  # [BLOCK_N, BLOCK_D]
    b_scale = tl.math.rsqrt(tl.sum(b_x * b_x, axis=1) / D + eps)
    b_q = tl.load(q_weight_ptr + o_d, mask=o_d < D, other=0.0).to(tl.float32)
    b_k = tl.load(k_weight_ptr + o_d, mask=o_d < D, other=0.0).to(tl.float32)
    b_weight = tl.where((o_n < NUM_Q)[:, None], b_q[None, :], b_k[None, :])
    tl.store(p_x, b_x * b_scale[:, None] * b_weight, mask=m_x)
