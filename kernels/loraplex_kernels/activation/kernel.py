"""SiLU of the gate times up, in float32, rounded once.

    y[t, i] = g / (1 + exp(-g)) * u,   g = x[t, i], u = x[t, N + i]

Dimension letters: T rows, N inner features
"""

# Triton ships no types, and what it decorates is no Python.
# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201
import triton
import triton.language as tl


@triton.jit
def silu_and_multiply_kernel(
    x_ptr,  # [T, 2 N]  features contiguous
    out_ptr,  # [T, N]  features contiguous
    N, stride_x_t, stride_out_t,
    BLOCK_I: tl.constexpr,
):  # fmt: skip
    i_t = tl.program_id(0).to(tl.int64)
    o_i = tl.program_id(1) * BLOCK_I + tl.arange(0, BLOCK_I)
    m_i = o_i < N
    p_gate = x_ptr + i_t * stride_x_t + o_i
    b_gate = tl.load(p_gate, mask=m_i, other=0.0).to(tl.float32)  # [BLOCK_I]
    b_up = tl.load(p_gate + N, mask=m_i, other=0.0).to(tl.float32)
    tl.store(out_ptr + i_t * stride_out_t + o_i, b_gate / (1.0 + tl.exp(-b_gate)) * b_up, mask=m_i)
