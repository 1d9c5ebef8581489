"""Attention over pages: softmax of (q . K / sqrt(D)) times V, never stored in full.

    o[t, h] = sum over n of  p[n] v[n, h / G],   p = softmax over seen n of  q[t, h] . k[n, h / G] / sqrt(D)
    seen n of a row at position p:  max(0, p - window + 1) <= n <= p

Dimension letters: T rows, B sequences, H query heads, KH key/value heads, G = H / KH, D head size, N keys
Prefixes: i_ index, o_ offsets, m_ mask, b_ block in registers, n_ count

The query heads that share a key head are rows of one product, so K and V are read once for all of them. Scores are kept
in base 2: exp2 is what the hardware has.
"""

# Triton ships no types, and what it decorates is no Python.
# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201, ANN202
import triton
import triton.language as tl

_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _block(
    b_q, b_out, b_max, b_sum, k_ptr, v_ptr, table_ptr, n_first, key_start, key_stop, o_position,
    stride_k_p, stride_k_n, window, score_scale,
    PAGE: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
    MASKED: tl.constexpr, HAS_WINDOW: tl.constexpr,
):  # fmt: skip
    """One block of keys. b_q [M, BLOCK_D], b_out [M, BLOCK_D], b_max and b_sum [M]; o_position [M]."""
    o_n = n_first + tl.arange(0, BLOCK_N)
    o_d = tl.arange(0, BLOCK_D)
    # Keys outside belong to nobody, or to another sequence: NaN times a weight of 0 would still be NaN.
    m_n = (o_n >= key_start) & (o_n < key_stop)
    if MASKED:
        i_page = tl.load(table_ptr + o_n // PAGE, mask=m_n, other=0).to(tl.int64)  # [BLOCK_N]
    else:
        i_page = tl.load(table_ptr + o_n // PAGE).to(tl.int64)
    o_row = i_page * stride_k_p + (o_n % PAGE) * stride_k_n
    if MASKED or D != BLOCK_D:
        m_kv = (o_d < D)[None, :]
        if MASKED:
            m_kv = m_kv & m_n[:, None]
        b_k = tl.load(k_ptr + o_row[:, None] + o_d[None, :], mask=m_kv, other=0.0)  # [BLOCK_N, BLOCK_D]
        b_v = tl.load(v_ptr + o_row[:, None] + o_d[None, :], mask=m_kv, other=0.0)
    else:
        b_k = tl.load(k_ptr + o_row[:, None] + o_d[None, :])
        b_v = tl.load(v_ptr + o_row[:, None] + o_d[None, :])
    b_s = tl.dot(b_q, tl.trans(b_k), input_precision="ieee") * score_scale  # [M, BLOCK_N]
    if MASKED:
        m_s = m_n[None, :] & (o_n[None, :] <= o_position[:, None])
        if HAS_WINDOW:
            m_s = m_s & (o_n[None, :] > o_position[:, None] - window)
        b_s = tl.where(m_s, b_s, float("-inf"))
    b_new = tl.maximum(b_max, tl.max(b_s, axis=1))
    # A row that has seen nothing yet: 0 in place of -inf - -inf.
    b_base = tl.where(b_new == float("-inf"), 0.0, b_new)
    b_p = tl.math.exp2(b_s - b_base[:, None])
    b_shrink = tl.math.exp2(b_max - b_base)
    b_sum = b_sum * b_shrink + tl.sum(b_p, axis=1)
    b_out = b_out * b_shrink[:, None]
    b_out = tl.dot(b_p.to(b_v.dtype), b_v, b_out, input_precision="ieee")
    return b_out, b_new, b_sum


@triton.jit
def decode_kernel(
    q_ptr,  # [B, H, D]              last dimension contiguous
    k_ptr,  # [pages, KH, PAGE, D]   last dimension contiguous
    v_ptr,  # same strides as k
    table_ptr,  # [B, ..]            int32 page ids in token order
    context_ptr,  # [B]              int32 tokens of each sequence, this row included; 0 = no row
    out_ptr,  # [B, H, D]            written where SPLITS = 1
    part_ptr,  # [B, H, SPLITS, D]   float32, where SPLITS > 1
    lse_ptr,  # [B, H, SPLITS]       float32: log2 of the sum of exp2 of the scores
    stride_q_t, stride_q_h, stride_k_p, stride_k_h, stride_k_n, stride_table_b, stride_out_t, stride_out_h,
    window, score_scale,
    KH: tl.constexpr, G: tl.constexpr, D: tl.constexpr, PAGE: tl.constexpr, SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, HAS_WINDOW: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    i_b = tl.program_id(0).to(tl.int64)
    i_kh = tl.program_id(1).to(tl.int64)
    i_split = tl.program_id(2)
    context = tl.load(context_ptr + i_b)
    key_start = 0
    if HAS_WINDOW:
        key_start = tl.maximum(context - window, 0)
    n_blocks = tl.cdiv(context, BLOCK_N) - key_start // BLOCK_N
    n_each = tl.cdiv(n_blocks, SPLITS)
    block_first = key_start // BLOCK_N + i_split * n_each
    block_stop = tl.minimum(block_first + n_each, tl.cdiv(context, BLOCK_N))
    o_m = tl.arange(0, BLOCK_M)
    o_d = tl.arange(0, BLOCK_D)
    i_h = i_kh * G + o_m
    m_q = (o_m < G)[:, None] & (o_d < D)[None, :]
    p_q = q_ptr + i_b * stride_q_t + i_h[:, None] * stride_q_h + o_d[None, :]
    b_q = tl.load(p_q, mask=m_q & (context > 0), other=0.0)  # [BLOCK_M, BLOCK_D]
    b_out = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)
    b_max = tl.full([BLOCK_M], float("-inf"), dtype=tl.float32)
    b_sum = tl.zeros([BLOCK_M], dtype=tl.float32)
    o_position = tl.zeros([BLOCK_M], dtype=tl.int32) + (context - 1)
    p_k = k_ptr + i_kh * stride_k_h
    p_v = v_ptr + i_kh * stride_k_h
    p_table = table_ptr + i_b * stride_table_b
    for i_block in tl.range(block_first, block_stop, num_stages=STAGES):
        b_out, b_max, b_sum = _block(
            b_q, b_out, b_max, b_sum, p_k, p_v, p_table, i_block * BLOCK_N, key_start, context, o_position,
            stride_k_p, stride_k_n, window, score_scale, PAGE, D, BLOCK_D, BLOCK_N, True, HAS_WINDOW,
        )  # fmt: skip
    m_h = o_m < G
    # A part without keys has a sum of 0 and counts for nothing.
    b_out = b_out / tl.where(b_sum > 0, b_sum, 1.0)[:, None]
    if SPLITS == 1:
        p_out = out_ptr + i_b * stride_out_t + i_h[:, None] * stride_out_h + o_d[None, :]
        tl.store(p_out, b_out, mask=m_q)
    else:
        i_part = (i_b * (KH * G) + i_h) * SPLITS + i_split  # [BLOCK_M]
        tl.store(part_ptr + i_part[:, None] * D + o_d[None, :], b_out, mask=m_q)
        b_lse = tl.where(b_sum > 0, b_max + tl.log2(tl.where(b_sum > 0, b_sum, 1.0)), float("-inf"))
        tl.store(lse_ptr + i_part, b_lse, mask=m_h)


@triton.jit
def combine_kernel(
    part_ptr,  # [B, H, SPLITS, D]  float32
    lse_ptr,  # [B, H, SPLITS]      float32
    out_ptr,  # [B, H, D]
    stride_out_t, stride_out_h,
    H: tl.constexpr, D: tl.constexpr, SPLITS: tl.constexpr, BLOCK_SPLITS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Add up the parts of one head, each by its share of the softmax's total."""
    i_b = tl.program_id(0).to(tl.int64)
    i_h = tl.program_id(1).to(tl.int64)
    o_s = tl.arange(0, BLOCK_SPLITS)
    o_d = tl.arange(0, BLOCK_D)
    m_s = o_s < SPLITS
    p_first = (i_b * H + i_h) * SPLITS
    b_lse = tl.load(lse_ptr + p_first + o_s, mask=m_s, other=float("-inf"))
    b_best = tl.max(b_lse, axis=0)
    b_share = tl.math.exp2(b_lse - tl.where(b_best == float("-inf"), 0.0, b_best))
    b_total = tl.sum(b_share, axis=0)
    m_part = m_s[:, None] & (o_d < D)[None, :]
    b_part = tl.load(part_ptr + (p_first + o_s)[:, None] * D + o_d[None, :], mask=m_part, other=0.0)
    b_out = tl.sum(b_part * b_share[:, None], axis=0) / tl.where(b_total > 0, b_total, 1.0)
    tl.store(out_ptr + i_b * stride_out_t + i_h * stride_out_h + o_d, b_out, mask=o_d < D)


@triton.jit
def prefill_kernel(
    q_ptr,  # [T, H, D]              last dimension contiguous
    k_ptr,  # [pages, KH, PAGE, D]   last dimension contiguous; holds the chunk's own keys already
    v_ptr,  # same strides as k
    table_ptr,  # [B, ..]            int32 page ids in token order
    context_ptr,  # [B]              int32 tokens of each sequence, this chunk included
    starts_ptr,  # [B + 1]           int32 first row of each sequence
    tiles_ptr,  # [.., 2]            int32 sequence, first row of the tile within the chunk
    n_tiles_ptr,  # [1]              int32
    out_ptr,  # [T, H, D]
    stride_q_t, stride_q_h, stride_k_p, stride_k_h, stride_k_n, stride_table_b, stride_out_t, stride_out_h,
    window, score_scale,
    G: tl.constexpr, D: tl.constexpr, PAGE: tl.constexpr, TILE_T: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, HAS_WINDOW: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    i_tile = tl.program_id(0)
    i_kh = tl.program_id(1).to(tl.int64)
    if i_tile < tl.load(n_tiles_ptr):
        # Last tiles first: under the causal mask they are the longest.
        p_tile = tiles_ptr + (tl.load(n_tiles_ptr) - 1 - i_tile) * 2
        i_b = tl.load(p_tile).to(tl.int64)
        tile_first = tl.load(p_tile + 1)
        row_first = tl.load(starts_ptr + i_b)
        n_rows = tl.load(starts_ptr + i_b + 1) - row_first
        context = tl.load(context_ptr + i_b)
        o_m = tl.arange(0, BLOCK_M)  # row of the product: token * G + head within the group
        o_d = tl.arange(0, BLOCK_D)
        o_t = tile_first + o_m // G
        m_m = (o_m < TILE_T * G) & (o_t < n_rows)
        i_h = i_kh * G + o_m % G
        i_t = (row_first + o_t).to(tl.int64)
        m_q = m_m[:, None] & (o_d < D)[None, :]
        b_q = tl.load(q_ptr + i_t[:, None] * stride_q_t + i_h[:, None] * stride_q_h + o_d[None, :], mask=m_q, other=0.0)
        position_first = context - n_rows + tile_first
        o_position = context - n_rows + o_t  # [BLOCK_M]
        key_stop = tl.minimum(position_first + TILE_T, context)
        key_start = 0
        full_first = 0
        if HAS_WINDOW:
            key_start = tl.maximum(position_first - window + 1, 0)
            # From here on, every row of the tile sees every key.
            full_first = tl.cdiv(tl.maximum(key_stop - window, 0), BLOCK_N) * BLOCK_N
        block_first = key_start // BLOCK_N * BLOCK_N
        full_stop = (position_first + 1) // BLOCK_N * BLOCK_N
        b_out = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)
        b_max = tl.full([BLOCK_M], float("-inf"), dtype=tl.float32)
        b_sum = tl.zeros([BLOCK_M], dtype=tl.float32)
        p_k = k_ptr + i_kh * stride_k_h
        p_v = v_ptr + i_kh * stride_k_h
        p_table = table_ptr + i_b * stride_table_b
        if HAS_WINDOW:
            full_stop = tl.maximum(full_stop, block_first)
            full_first = tl.minimum(full_first, full_stop)
            for n in tl.range(block_first, full_first, BLOCK_N, num_stages=STAGES):
                b_out, b_max, b_sum = _block(
                    b_q, b_out, b_max, b_sum, p_k, p_v, p_table, n, key_start, key_stop, o_position,
                    stride_k_p, stride_k_n, window, score_scale, PAGE, D, BLOCK_D, BLOCK_N, True, True,
                )  # fmt: skip
            full_first = tl.maximum(full_first, block_first)
        for n in tl.range(full_first, full_stop, BLOCK_N, num_stages=STAGES):
            b_out, b_max, b_sum = _block(
                b_q, b_out, b_max, b_sum, p_k, p_v, p_table, n, key_start, key_stop, o_position,
                stride_k_p, stride_k_n, window, score_scale, PAGE, D, BLOCK_D, BLOCK_N, False, HAS_WINDOW,
            )  # fmt: skip
        for n in tl.range(full_stop, key_stop, BLOCK_N, num_stages=STAGES):
            b_out, b_max, b_sum = _block(
                b_q, b_out, b_max, b_sum, p_k, p_v, p_table, n, key_start, key_stop, o_position,
                stride_k_p, stride_k_n, window, score_scale, PAGE, D, BLOCK_D, BLOCK_N, True, HAS_WINDOW,
            )  # fmt: skip
        b_out = b_out / tl.where(b_sum > 0, b_sum, 1.0)[:, None]
        tl.store(out_ptr + i_t[:, None] * stride_out_t + i_h[:, None] * stride_out_h + o_d[None, :], b_out, mask=m_q)
