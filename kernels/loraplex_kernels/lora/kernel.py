"""LoRA over segments of rows: shrink every (row, adapter) pair to its true rank, expand in place.

    low[p, :]  = A_slot(p) x[row(p), :]
    out[t, :] += sum over pairs p of row t of  weight[p] * scale_slot(p) * B_slot(p) low[p, :]

Dimension letters: T rows, K input features, O output features, P pairs, R rank, S adapter slots, G sites (1..3)
Prefixes: i_ index, o_ offsets, m_ mask, b_ block in registers, n_ count

One launch does both phases for all sites of a group. The grid is fixed and no larger than what the chip holds at once;
program i takes items i, i + programs, ... of a list whose length it reads from device memory. Between the phases all
programs meet at a barrier (PHASES = 3), or the phases are two launches (1, then 2).
"""

# Triton ships no types, and what it decorates is no Python.
# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201, ANN202
import triton
import triton.language as tl


@triton.jit
def _gemv_row(x_ptr, rows_ptr, stride_x_t, row_first, i_row, n_rows, o_k, m_k):
    """One row of x, as float32; the tile's last row again where the tile is shorter."""
    i_t = tl.load(rows_ptr + row_first + tl.minimum(i_row, n_rows - 1)).to(tl.int64)
    return tl.load(x_ptr + i_t * stride_x_t + o_k, mask=m_k, other=0.0).to(tl.float32)  # [BLOCK_K]


@triton.jit
def _shrink(
    x_ptr, pool_ptr, slices_ptr, sites_ptr, low_ptr, rows_ptr, tiles_ptr, n_tiles,
    K, P, R_SITE, stride_x_t,
    G: tl.constexpr, SPLITS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    n_k = tl.cdiv(tl.cdiv(K, BLOCK_K), SPLITS) * BLOCK_K  # features of one split
    stride_low = G * R_SITE
    for i_item in range(tl.program_id(0), n_tiles * (G * SPLITS), tl.num_programs(0)):
        p_tile = tiles_ptr + (i_item // (G * SPLITS)) * 5
        i_site = (i_item // SPLITS) % G
        i_split = i_item % SPLITS
        i_slot = tl.load(p_tile).to(tl.int64)
        rank_first = tl.load(p_tile + 1)
        p_site = sites_ptr + (i_slot * 3 + i_site) * 3
        rank = tl.load(p_site)
        if rank_first < rank:
            row_first = tl.load(p_tile + 2)
            i_pair = tl.load(p_tile + 3).to(tl.int64)
            n_rows = tl.load(p_tile + 4)
            o_r = rank_first + tl.arange(0, BLOCK_R)
            m_r = o_r < rank
            # Units of 16 elements: the compiler then knows that rows of A begin at 32-byte boundaries.
            o_slice = tl.load(slices_ptr + tl.load(p_site + 1) + o_r, mask=m_r, other=0).to(tl.int64) * 16  # [BLOCK_R]
            k_first = i_split * n_k
            k_stop = tl.minimum(k_first + n_k, K)
            p_low = low_ptr + (i_split * P + i_pair) * stride_low + i_site * R_SITE
            if BLOCK_M <= 4:
                b_sum0 = tl.zeros([BLOCK_R, BLOCK_K], dtype=tl.float32)
                if BLOCK_M == 4:
                    b_sum1 = tl.zeros([BLOCK_R, BLOCK_K], dtype=tl.float32)
                    b_sum2 = tl.zeros([BLOCK_R, BLOCK_K], dtype=tl.float32)
                    b_sum3 = tl.zeros([BLOCK_R, BLOCK_K], dtype=tl.float32)
                for k in tl.range(k_first, k_stop, BLOCK_K, num_stages=STAGES):
                    o_k = k + tl.arange(0, BLOCK_K)
                    m_k = o_k < K
                    b_a = tl.load(
                        pool_ptr + o_slice[:, None] + o_k[None, :], mask=m_r[:, None] & m_k[None, :], other=0.0
                    ).to(tl.float32)  # [BLOCK_R, BLOCK_K]
                    b_sum0 += b_a * _gemv_row(x_ptr, rows_ptr, stride_x_t, row_first, 0, n_rows, o_k, m_k)[None, :]
                    if BLOCK_M == 4:
                        b_sum1 += b_a * _gemv_row(x_ptr, rows_ptr, stride_x_t, row_first, 1, n_rows, o_k, m_k)[None, :]
                        b_sum2 += b_a * _gemv_row(x_ptr, rows_ptr, stride_x_t, row_first, 2, n_rows, o_k, m_k)[None, :]
                        b_sum3 += b_a * _gemv_row(x_ptr, rows_ptr, stride_x_t, row_first, 3, n_rows, o_k, m_k)[None, :]
                tl.store(p_low + o_r, tl.sum(b_sum0, axis=1), mask=m_r)
                if BLOCK_M == 4:
                    tl.store(p_low + stride_low + o_r, tl.sum(b_sum1, axis=1), mask=m_r & (n_rows > 1))
                    tl.store(p_low + 2 * stride_low + o_r, tl.sum(b_sum2, axis=1), mask=m_r & (n_rows > 2))
                    tl.store(p_low + 3 * stride_low + o_r, tl.sum(b_sum3, axis=1), mask=m_r & (n_rows > 3))
            else:
                o_m = tl.arange(0, BLOCK_M)
                m_m = o_m < n_rows
                i_t = tl.load(rows_ptr + row_first + o_m, mask=m_m, other=0).to(tl.int64)  # [BLOCK_M]
                b_low = tl.zeros([BLOCK_M, BLOCK_R], dtype=tl.float32)
                for k in tl.range(k_first, k_stop, BLOCK_K, num_stages=STAGES):
                    o_k = k + tl.arange(0, BLOCK_K)
                    m_k = o_k < K
                    b_x = tl.load(
                        x_ptr + i_t[:, None] * stride_x_t + o_k[None, :], mask=m_m[:, None] & m_k[None, :], other=0.0
                    )  # [BLOCK_M, BLOCK_K]
                    b_a = tl.load(
                        pool_ptr + o_slice[None, :] + o_k[:, None], mask=m_r[None, :] & m_k[:, None], other=0.0
                    )  # [BLOCK_K, BLOCK_R]
                    b_low = tl.dot(b_x, b_a, b_low, input_precision="ieee")
                tl.store(
                    p_low + o_m.to(tl.int64)[:, None] * stride_low + o_r[None, :],
                    b_low,
                    mask=m_m[:, None] & m_r[None, :],
                )


@triton.jit
def _gemv_low(low_ptr, weights_ptr, scale, i_pair, i_row, n_rows, o_r, m_r, P, stride_low, SPLITS: tl.constexpr):
    """The shrunk vector of one pair, times weight and scale: [BLOCK_R] float32."""
    i_pair += tl.minimum(i_row, n_rows - 1)
    b_low = tl.zeros(o_r.shape, dtype=tl.float32)
    for i_split in tl.static_range(SPLITS):
        # .cg: written in this launch by another program, so not to be taken from this multiprocessor's L1.
        b_low += tl.load(low_ptr + (i_split * P + i_pair) * stride_low + o_r, mask=m_r, other=0.0, cache_modifier=".cg")
    return b_low * (tl.load(weights_ptr + i_pair) * scale)


@triton.jit
def _add_row(out_ptr, rows_ptr, stride_out_t, row_first, i_row, n_rows, o_n, m_n, b_sum):
    i_t = tl.load(rows_ptr + row_first + tl.minimum(i_row, n_rows - 1)).to(tl.int64)
    p_out = out_ptr + i_t * stride_out_t + o_n
    m_out = m_n & (i_row < n_rows)
    tl.store(p_out, tl.load(p_out, mask=m_out, other=0.0).to(tl.float32) + b_sum, mask=m_out)


@triton.jit
def _expand(
    out_ptr, pool_ptr, slices_ptr, sites_ptr, scales_ptr, low_ptr, rows_ptr, adapters_ptr, weights_ptr,
    tiles_ptr, n_tiles,
    P, R_SITE, OUT_0, OUT_1, OUT_2, stride_out_t,
    G: tl.constexpr, SPLITS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    stride_low = G * R_SITE
    n_blocks0 = tl.cdiv(OUT_0, BLOCK_N)
    n_blocks1 = tl.cdiv(OUT_1, BLOCK_N)
    n_blocks = n_blocks0 + n_blocks1 + tl.cdiv(OUT_2, BLOCK_N)
    for i_item in range(tl.program_id(0), n_tiles * n_blocks, tl.num_programs(0)):
        p_tile = tiles_ptr + (i_item // n_blocks) * 6
        i_block = i_item % n_blocks
        i_site = 0
        site_size = OUT_0
        site_first = 0
        if i_block >= n_blocks0:
            i_block -= n_blocks0
            i_site += 1
            site_size = OUT_1
            site_first += OUT_0
            if i_block >= n_blocks1:
                i_block -= n_blocks1
                i_site += 1
                site_size = OUT_2
                site_first += OUT_1
        row_first = tl.load(p_tile)
        n_rows = tl.load(p_tile + 1)
        adapter_first = tl.load(p_tile + 2)
        n_adapters = tl.load(p_tile + 3)
        i_pair = tl.load(p_tile + 4).to(tl.int64)
        n_between = tl.load(p_tile + 5)
        o_c = i_block * BLOCK_N + tl.arange(0, BLOCK_N)  # column within the site
        m_c = o_c < site_size
        rank_sum = 0
        if BLOCK_M <= 4:
            b_sum0 = tl.zeros([BLOCK_N], dtype=tl.float32)
            if BLOCK_M == 4:
                b_sum1 = tl.zeros([BLOCK_N], dtype=tl.float32)
                b_sum2 = tl.zeros([BLOCK_N], dtype=tl.float32)
                b_sum3 = tl.zeros([BLOCK_N], dtype=tl.float32)
        else:
            o_m = tl.arange(0, BLOCK_M)
            m_m = o_m < n_rows
            b_out = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
        for i_adapter in range(adapter_first, adapter_first + n_adapters):
            i_slot = tl.load(adapters_ptr + i_adapter).to(tl.int64)
            p_site = sites_ptr + (i_slot * 3 + i_site) * 3
            rank = tl.load(p_site)
            rank_sum += rank
            p_slices = slices_ptr + tl.load(p_site + 2)
            scale = tl.load(scales_ptr + i_slot * 3 + i_site)
            p_low = low_ptr + i_site * R_SITE
            for r in tl.range(0, rank, BLOCK_R, num_stages=STAGES):
                o_r = r + tl.arange(0, BLOCK_R)
                m_r = o_r < rank
                o_slice = tl.load(p_slices + o_r, mask=m_r, other=0).to(tl.int64) * 16  # [BLOCK_R]
                b_b = tl.load(
                    pool_ptr + o_slice[:, None] + o_c[None, :], mask=m_r[:, None] & m_c[None, :], other=0.0
                )  # [BLOCK_R, BLOCK_N]
                if BLOCK_M <= 4:
                    b_b = b_b.to(tl.float32)
                    b_low = _gemv_low(p_low, weights_ptr, scale, i_pair, 0, n_rows, o_r, m_r, P, stride_low, SPLITS)
                    b_sum0 += tl.sum(b_b * b_low[:, None], axis=0)
                    if BLOCK_M == 4:
                        b_low = _gemv_low(p_low, weights_ptr, scale, i_pair, 1, n_rows, o_r, m_r, P, stride_low, SPLITS)
                        b_sum1 += tl.sum(b_b * b_low[:, None], axis=0)
                        b_low = _gemv_low(p_low, weights_ptr, scale, i_pair, 2, n_rows, o_r, m_r, P, stride_low, SPLITS)
                        b_sum2 += tl.sum(b_b * b_low[:, None], axis=0)
                        b_low = _gemv_low(p_low, weights_ptr, scale, i_pair, 3, n_rows, o_r, m_r, P, stride_low, SPLITS)
                        b_sum3 += tl.sum(b_b * b_low[:, None], axis=0)
                else:
                    m_low = m_m[:, None] & m_r[None, :]
                    b_lows = tl.zeros([BLOCK_M, BLOCK_R], dtype=tl.float32)
                    for i_split in tl.static_range(SPLITS):
                        o_low = (i_split * P + i_pair + o_m)[:, None] * stride_low + o_r[None, :]
                        b_lows += tl.load(p_low + o_low, mask=m_low, other=0.0, cache_modifier=".cg")
                    b_weight = tl.load(weights_ptr + i_pair + o_m, mask=m_m, other=0.0)  # [BLOCK_M]
                    b_lows *= b_weight[:, None] * scale
                    b_out = tl.dot(b_lows.to(b_b.dtype), b_b, b_out, input_precision="ieee")
            i_pair += n_between
        if rank_sum > 0:
            o_n = site_first + o_c
            if BLOCK_M <= 4:
                _add_row(out_ptr, rows_ptr, stride_out_t, row_first, 0, n_rows, o_n, m_c, b_sum0)
                if BLOCK_M == 4:
                    _add_row(out_ptr, rows_ptr, stride_out_t, row_first, 1, n_rows, o_n, m_c, b_sum1)
                    _add_row(out_ptr, rows_ptr, stride_out_t, row_first, 2, n_rows, o_n, m_c, b_sum2)
                    _add_row(out_ptr, rows_ptr, stride_out_t, row_first, 3, n_rows, o_n, m_c, b_sum3)
            else:
                i_t = tl.load(rows_ptr + row_first + o_m, mask=m_m, other=0).to(tl.int64)
                p_out = out_ptr + i_t[:, None] * stride_out_t + o_n[None, :]
                m_out = m_m[:, None] & m_c[None, :]
                tl.store(p_out, tl.load(p_out, mask=m_out, other=0.0).to(tl.float32) + b_out, mask=m_out)


@triton.jit
def _meet(barrier_ptr):
    """Wait until every program of this launch has come here. The counter only grows, so replays need no reset."""
    tl.debug_barrier()  # all threads of this program have stored
    n_programs = tl.num_programs(0).to(tl.int64)
    i_arrival = tl.atomic_add(barrier_ptr, 1, sem="acq_rel", scope="gpu")
    n_wanted = (i_arrival // n_programs + 1) * n_programs
    n_arrived = i_arrival + 1
    while n_arrived < n_wanted:
        n_arrived = tl.atomic_add(barrier_ptr, 0, sem="acquire", scope="gpu")
    tl.debug_barrier()


@triton.jit(do_not_specialize=["P"])
def lora_kernel(
    x_ptr,  # [T, K]             compute dtype, features contiguous
    out_ptr,  # [T, O]           compute dtype, features contiguous; the sites' outputs side by side
    pool_ptr,  # [E]             compute dtype, the shared page pool
    slices_ptr,  # [N]           int32, in units of 16 elements of the pool
    sites_ptr,  # [S, 3, 3]      int32: rank, first A slice, first B slice
    scales_ptr,  # [S, 3]        float32
    low_ptr,  # [SPLITS, P, G * R_SITE]  float32 scratch
    counts_ptr,  # [2]           int32: tiles of the shrink, of the expand
    shrink_tiles_ptr,  # [.., 5] int32, see plan.py
    expand_tiles_ptr,  # [.., 6] int32
    rows_ptr,  # [..]            int32
    adapters_ptr,  # [..]        int32
    weights_ptr,  # [P]          float32
    barrier_ptr,  # [1]          int64
    K, P, R_SITE, OUT_0, OUT_1, OUT_2,  # OUT_i: outputs of site i, 0 where there is none
    stride_x_t, stride_out_t,
    PHASES: tl.constexpr, G: tl.constexpr, SPLITS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, EXPAND_R: tl.constexpr, STAGES: tl.constexpr,
    EXPAND_STAGES: tl.constexpr,
):  # fmt: skip
    if PHASES & 1:
        _shrink(
            x_ptr, pool_ptr, slices_ptr, sites_ptr, low_ptr, rows_ptr, shrink_tiles_ptr, tl.load(counts_ptr),
            K, P, R_SITE, stride_x_t, G, SPLITS, BLOCK_M, BLOCK_R, BLOCK_K, STAGES,
        )  # fmt: skip
    if PHASES == 3:
        _meet(barrier_ptr)
    if PHASES & 2:
        _expand(
            out_ptr, pool_ptr, slices_ptr, sites_ptr, scales_ptr, low_ptr, rows_ptr, adapters_ptr, weights_ptr,
            expand_tiles_ptr, tl.load(counts_ptr + 1), P, R_SITE, OUT_0, OUT_1, OUT_2, stride_out_t,
            G, SPLITS, BLOCK_M, EXPAND_R, BLOCK_N, EXPAND_STAGES,
        )  # fmt: skip
