"""LoRA of the embedding: the shrink is a look-up.

    out[t, :] += sum over pairs p of row t of  weight[p] * scale_slot(p) * B_slot(p) A_slot(p)[:, token[t]]

Dimension letters: T rows, O hidden features, P pairs, R rank, S adapter slots
Tables and plan are those of ``lora``; only the expand's tiles are read.
"""

# Triton ships no types, and what it decorates is no Python.
# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201
import triton
import triton.language as tl


@triton.jit
def embedding_lora_kernel(
    tokens_ptr,  # [T]        int64
    out_ptr,  # [T, O]        compute dtype, features contiguous
    pool_ptr,  # [E]          compute dtype, the shared page pool
    slices_ptr,  # [N]        int32, in units of 16 elements of the pool
    sites_ptr,  # [S, 3, 3]   int32: rank, first A slice (of the vocabulary's size), first B slice; site 0 is used
    scales_ptr,  # [S, 3]     float32
    counts_ptr,  # [2]        int32: the second is the number of tiles
    tiles_ptr,  # [.., 6]     int32, see lora/plan.py
    rows_ptr,  # [..]         int32
    adapters_ptr,  # [..]     int32
    weights_ptr,  # [P]       float32
    HIDDEN, stride_out_t,
    BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    n_blocks = tl.cdiv(HIDDEN, BLOCK_N)
    for i_item in range(tl.program_id(0), tl.load(counts_ptr + 1) * n_blocks, tl.num_programs(0)):
        p_tile = tiles_ptr + (i_item // n_blocks) * 6
        row_first = tl.load(p_tile)
        n_rows = tl.load(p_tile + 1)
        adapter_first = tl.load(p_tile + 2)
        n_adapters = tl.load(p_tile + 3)
        pair_first = tl.load(p_tile + 4)
        n_between = tl.load(p_tile + 5)
        o_n = (i_item % n_blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
        m_n = o_n < HIDDEN
        o_m = tl.arange(0, BLOCK_M)
        m_m = o_m < n_rows
        i_t = tl.load(rows_ptr + row_first + o_m, mask=m_m, other=0).to(tl.int64)  # [BLOCK_M]
        token = tl.load(tokens_ptr + i_t, mask=m_m, other=0)
        b_out = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
        rank_sum = 0
        for i_adapter in range(adapter_first, adapter_first + n_adapters):
            i_slot = tl.load(adapters_ptr + i_adapter).to(tl.int64)
            rank = tl.load(sites_ptr + i_slot * 9)
            rank_sum += rank
            p_a = slices_ptr + tl.load(sites_ptr + i_slot * 9 + 1)
            p_b = slices_ptr + tl.load(sites_ptr + i_slot * 9 + 2)
            scale = tl.load(scales_ptr + i_slot * 3)
            b_weight = tl.load(weights_ptr + pair_first + o_m, mask=m_m, other=0.0) * scale  # [BLOCK_M]
            for r in range(0, rank, BLOCK_R):
                o_r = r + tl.arange(0, BLOCK_R)
                m_r = o_r < rank
                o_a = tl.load(p_a + o_r, mask=m_r, other=0).to(tl.int64) * 16
                o_b = tl.load(p_b + o_r, mask=m_r, other=0).to(tl.int64) * 16
                b_low = tl.load(
                    pool_ptr + o_a[None, :] + token[:, None], mask=m_m[:, None] & m_r[None, :], other=0.0
                )  # [BLOCK_M, BLOCK_R]
                b_low = b_low.to(tl.float32) * b_weight[:, None]
                b_b = tl.load(
                    pool_ptr + o_b[:, None] + o_n[None, :], mask=m_r[:, None] & m_n[None, :], other=0.0
                )  # [BLOCK_R, BLOCK_N]
                b_out = tl.dot(b_low.to(b_b.dtype), b_b, b_out, input_precision="ieee")
            pair_first += n_between
        if rank_sum > 0:
            p_out = out_ptr + i_t[:, None] * stride_out_t + o_n[None, :]
            m_out = m_m[:, None] & m_n[None, :]
            tl.store(p_out, tl.load(p_out, mask=m_out, other=0.0).to(tl.float32) + b_out, mask=m_out)
