"""From logits to tokens: penalties, bias, masks; greedy or temperature, top-k, top-p, min-p and a draw; logprobs.

    z[v]   = (logit[v] - highest logit) / temperature
    keep v   where z[v] >= the highest of: k-th highest z; lowest z of the smallest set of likeliest tokens that holds
             the share p of what top-k left; log(min_p)
    token  = first v, in the order of ids, at which the cumulated exp(z) of kept tokens exceeds u * total
             u = u(seed, position)

Dimension letters: N rows, V vocabulary
A floor is found by halving the interval of its bits: all z are at or below 0, so |z| as an integer orders them.
"""

# Triton ships no types, and what it decorates is no Python.
# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201, ANN202
import triton
import triton.language as tl

_PROMPT_BIT = tl.constexpr(1 << 30)
_MIN_TEMPERATURE = tl.constexpr(1e-6)
_INF_BITS = tl.constexpr(0x7F800000)
_GOLDEN_GAMMA = tl.constexpr(0x9E3779B97F4A7C15)
_TWO_GOLDEN_GAMMAS = tl.constexpr((2 * 0x9E3779B97F4A7C15) % (1 << 64))
_MIX_1 = tl.constexpr(0xBF58476D1CE4E5B9)
_MIX_2 = tl.constexpr(0x94D049BB133111EB)


@triton.jit
def _mix(x):
    """Splitmix64's finaliser."""
    x = (x ^ (x >> 30)) * _MIX_1
    x = (x ^ (x >> 27)) * _MIX_2
    return x ^ (x >> 31)


@triton.jit
def uniform_of(seed, position):
    """The random number of a token, float64 in [0, 1): a function of the request's seed and the token's position."""
    key = _mix(seed.to(tl.uint64, bitcast=True) + _GOLDEN_GAMMA)
    bits = _mix(key ^ _mix(position.to(tl.uint64, bitcast=True) + _TWO_GOLDEN_GAMMAS))
    return (bits >> 11).to(tl.float64) * (2.0**-53)


@triton.jit(do_not_specialize=["n_bias"])
def adjust_kernel(
    logits_ptr,  # [N, V]         float32
    adjusted_ptr,  # [N, V]       float32; rows that change are written
    adjusts_ptr,  # [N]           int32
    penalties_ptr,  # [N, 3]      float32: repetition, presence, frequency
    history_slots_ptr,  # [N]     int32
    counts_ptr,  # [slots, V]     int32
    mask_rows_ptr,  # [N]         int32
    masks_ptr,  # [.., words]     int32
    bias_counts_ptr,  # [N]       int32
    bias_ids_ptr,  # [N, n_bias]  int32
    bias_values_ptr,  # [N, n_bias] float32
    V, n_words, n_bias, stride_logits_n, stride_adjusted_n,
    BLOCK_V: tl.constexpr,
):  # fmt: skip
    i_n = tl.program_id(0).to(tl.int64)
    if tl.load(adjusts_ptr + i_n) != 0:
        o_v = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
        m_v = o_v < V
        b_x = tl.load(logits_ptr + i_n * stride_logits_n + o_v, mask=m_v, other=0.0)  # [BLOCK_V]
        i_slot = tl.load(history_slots_ptr + i_n).to(tl.int64)
        if i_slot >= 0:
            repetition = tl.load(penalties_ptr + i_n * 3)
            b_history = tl.load(counts_ptr + i_slot * V + o_v, mask=m_v, other=0)
            b_count = (b_history & (_PROMPT_BIT - 1)).to(tl.float32)
            b_scaled = tl.where(b_x < 0, b_x * repetition, tl.div_rn(b_x, repetition + tl.zeros_like(b_x)))
            b_scaled -= tl.load(penalties_ptr + i_n * 3 + 2) * b_count
            b_scaled -= tl.where(b_count > 0, tl.load(penalties_ptr + i_n * 3 + 1), 0.0)
            b_x = tl.where(b_history != 0, b_scaled, b_x)
        for i_bias in range(tl.load(bias_counts_ptr + i_n)):
            i_token = tl.load(bias_ids_ptr + i_n * n_bias + i_bias)
            b_x += tl.where(o_v == i_token, tl.load(bias_values_ptr + i_n * n_bias + i_bias), 0.0)
        i_mask = tl.load(mask_rows_ptr + i_n).to(tl.int64)
        if i_mask >= 0:
            b_word = tl.load(masks_ptr + i_mask * n_words + o_v // 32, mask=m_v, other=0)
            b_x = tl.where(((b_word >> (o_v % 32)) & 1) != 0, b_x, float("-inf"))
        tl.store(adjusted_ptr + i_n * stride_adjusted_n + o_v, b_x, mask=m_v)


@triton.jit
def _scaled(p_x, o_v, V, best, temperature):
    """z of a block: 0 for the likeliest token, -inf outside."""
    b_x = tl.load(p_x + o_v, mask=o_v < V, other=float("-inf"))
    return tl.div_rn(b_x - best, temperature + tl.zeros_like(b_x))  # [BLOCK_V]


@triton.jit
def _bits(b_z):
    """|z| as an integer: the likelier, the lower."""
    return tl.abs(b_z).to(tl.int32, bitcast=True)


@triton.jit
def _top_k_bits(p_x, V, best, temperature, top_k, BLOCK_V: tl.constexpr):
    """Bits at or below which ``top_k`` tokens lie, and those tied with the last of them."""
    low = -1  # fewer than top_k at or below
    high = _INF_BITS + 0
    while high - low > 1:
        middle = low + (high - low) // 2
        b_count = tl.zeros([BLOCK_V], dtype=tl.int32)
        for v in range(0, V, BLOCK_V):
            o_v = v + tl.arange(0, BLOCK_V)
            b_kept = (_bits(_scaled(p_x, o_v, V, best, temperature)) <= middle) & (o_v < V)
            b_count += b_kept.to(tl.int32)
        count = tl.sum(b_count, axis=0)
        if count >= top_k:
            high = middle
            if count == top_k:
                low = middle - 1  # no floor in between would change the set
        else:
            low = middle
    return high


@triton.jit
def _top_p_bits(p_x, V, best, temperature, top_p, limit, BLOCK_V: tl.constexpr):
    """Bits at or below which the share ``top_p`` of all weight at or below ``limit`` lies: the lowest such bits."""
    b_weight = tl.zeros([BLOCK_V], dtype=tl.float64)
    b_kept = tl.zeros([BLOCK_V], dtype=tl.int32)
    for v in range(0, V, BLOCK_V):
        o_v = v + tl.arange(0, BLOCK_V)
        b_z = _scaled(p_x, o_v, V, best, temperature)
        m_z = (_bits(b_z) <= limit) & (o_v < V)
        b_weight += tl.where(m_z, tl.exp(b_z), 0.0).to(tl.float64)
        b_kept += m_z.to(tl.int32)
    target = top_p * tl.sum(b_weight, axis=0)
    low = -1
    high = limit
    n_low = 0
    n_high = tl.sum(b_kept, axis=0)
    while (high - low > 1) & (n_high - n_low > 1):
        middle = low + (high - low) // 2
        b_weight = tl.zeros([BLOCK_V], dtype=tl.float64)
        b_kept = tl.zeros([BLOCK_V], dtype=tl.int32)
        for v in range(0, V, BLOCK_V):
            o_v = v + tl.arange(0, BLOCK_V)
            b_z = _scaled(p_x, o_v, V, best, temperature)
            m_z = (_bits(b_z) <= middle) & (o_v < V)
            b_weight += tl.where(m_z, tl.exp(b_z), 0.0).to(tl.float64)
            b_kept += m_z.to(tl.int32)
        count = tl.sum(b_kept, axis=0)
        if tl.sum(b_weight, axis=0) >= target:
            high = middle
            n_high = count
        else:
            low = middle
            n_low = count
    return high


@triton.jit
def _draw(p_x, V, best, temperature, limit, uniform, BLOCK_V: tl.constexpr):
    """The first token at which the cumulated weight exceeds ``uniform`` times the total."""
    total = tl.zeros([], dtype=tl.float64)
    for v in range(0, V, BLOCK_V):
        o_v = v + tl.arange(0, BLOCK_V)
        b_z = _scaled(p_x, o_v, V, best, temperature)
        total += tl.sum(tl.where((_bits(b_z) <= limit) & (o_v < V), tl.exp(b_z), 0.0).to(tl.float64), axis=0)
    target = uniform * total
    before = tl.zeros([], dtype=tl.float64)
    cumulated = tl.zeros([], dtype=tl.float64)
    first = 0
    is_open = 1
    for v in range(0, V, BLOCK_V):
        o_v = v + tl.arange(0, BLOCK_V)
        b_z = _scaled(p_x, o_v, V, best, temperature)
        weight = tl.sum(tl.where((_bits(b_z) <= limit) & (o_v < V), tl.exp(b_z), 0.0).to(tl.float64), axis=0)
        # The last block with weight stays chosen where rounding leaves the target at the total.
        if (is_open == 1) & (weight > 0.0):
            first = v
            before = cumulated
            if cumulated + weight > target:
                is_open = 0
        cumulated += weight
    o_v = first + tl.arange(0, BLOCK_V)
    b_z = _scaled(p_x, o_v, V, best, temperature)
    m_z = (_bits(b_z) <= limit) & (o_v < V)
    b_weight = tl.where(m_z, tl.exp(b_z), 0.0).to(tl.float64)
    b_passed = (tl.cumsum(b_weight, axis=0) <= target - before).to(tl.int32)
    last = tl.max(tl.where(b_weight > 0.0, o_v, 0), axis=0)
    return tl.minimum(first + tl.sum(b_passed, axis=0), last)


@triton.jit
def sample_kernel(
    logits_ptr,  # [N, V]       float32, as the model gave them
    adjusted_ptr,  # [N, V]     float32; read where adjusts is set
    adjusts_ptr,  # [N]         int32
    temperature_ptr,  # [N]     float32
    top_k_ptr,  # [N]           int32
    top_p_ptr,  # [N]           float64
    min_p_floor_ptr,  # [N]     float32
    seeds_ptr,  # [N]           int64
    positions_ptr,  # [N]       int64
    tokens_ptr,  # [N]          int64, written; -1: not all finite, or no token allowed
    V, stride_logits_n, stride_adjusted_n,
    BLOCK_V: tl.constexpr,
):  # fmt: skip
    i_n = tl.program_id(0).to(tl.int64)
    p_raw = logits_ptr + i_n * stride_logits_n
    p_x = p_raw
    if tl.load(adjusts_ptr + i_n) != 0:
        p_x = adjusted_ptr + i_n * stride_adjusted_n
    b_best = tl.full([BLOCK_V], float("-inf"), dtype=tl.float32)
    b_at = tl.zeros([BLOCK_V], dtype=tl.int32)
    b_wrong = tl.zeros([BLOCK_V], dtype=tl.int32)
    for v in range(0, V, BLOCK_V):
        o_v = v + tl.arange(0, BLOCK_V)
        m_v = o_v < V
        b_raw = tl.load(p_raw + o_v, mask=m_v, other=0.0)
        b_x = tl.load(p_x + o_v, mask=m_v, other=float("-inf"))
        b_wrong += (tl.abs(b_raw) < float("inf")).to(tl.int32) ^ 1
        m_new = b_x > b_best
        b_at = tl.where(m_new, o_v, b_at)
        b_best = tl.where(m_new, b_x, b_best)
    best = tl.max(b_best, axis=0)
    token = tl.min(tl.where(b_best == best, b_at, V), axis=0)
    if (tl.sum(b_wrong, axis=0) > 0) | (best == float("-inf")):
        token = -1
    else:
        temperature = tl.load(temperature_ptr + i_n)
        if temperature > 0.0:
            temperature = tl.maximum(temperature, _MIN_TEMPERATURE)
            top_k = tl.load(top_k_ptr + i_n)
            top_p = tl.load(top_p_ptr + i_n)
            limit = _INF_BITS + 0
            if (top_k > 0) & (top_k < V):
                limit = _top_k_bits(p_x, V, best, temperature, top_k, BLOCK_V)
            if top_p < 1.0:
                limit = _top_p_bits(p_x, V, best, temperature, top_p, limit, BLOCK_V)
            limit = tl.minimum(limit, _bits(tl.load(min_p_floor_ptr + i_n)))
            uniform = uniform_of(tl.load(seeds_ptr + i_n), tl.load(positions_ptr + i_n))
            token = _draw(p_x, V, best, temperature, limit, uniform, BLOCK_V)
    tl.store(tokens_ptr + i_n, token.to(tl.int64))


@triton.jit
def count_kernel(
    tokens_ptr,  # [N]          int64; below 0: none
    history_slots_ptr,  # [N]   int32; below 0: none
    counts_ptr,  # [slots, V]   int32
    N, V,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    o_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    i_token = tl.load(tokens_ptr + o_n, mask=o_n < N, other=-1)
    i_slot = tl.load(history_slots_ptr + o_n, mask=o_n < N, other=-1).to(tl.int64)
    m_n = (i_token >= 0) & (i_slot >= 0)
    p_count = counts_ptr + tl.where(m_n, i_slot * V + i_token, 0)
    tl.store(p_count, tl.load(p_count, mask=m_n, other=0) + 1, mask=m_n)


@triton.jit(do_not_specialize=["n_most"])
def logprob_kernel(
    logits_ptr,  # [N, V]               float32, as the model gave them
    tokens_ptr,  # [N]                  int64: whose log-probability; below 0: none, the row is left alone
    num_top_ptr,  # [N]                 int32; below 0: none, the row is left alone
    logprob_ptr,  # [N]                 float32
    rank_ptr,  # [N]                    int32, 1 = the likeliest
    top_ids_ptr,  # [N, n_most]         int32
    top_logprobs_ptr,  # [N, n_most]    float32
    V, n_most, stride_logits_n,
    BLOCK_V: tl.constexpr,
):  # fmt: skip
    i_n = tl.program_id(0).to(tl.int64)
    i_token = tl.load(tokens_ptr + i_n)
    n_top = tl.minimum(tl.load(num_top_ptr + i_n), V)
    if (i_token >= 0) & (n_top >= 0):
        p_x = logits_ptr + i_n * stride_logits_n
        chosen = tl.load(p_x + i_token)
        b_max = tl.full([BLOCK_V], float("-inf"), dtype=tl.float32)
        b_above = tl.zeros([BLOCK_V], dtype=tl.int32)
        for v in range(0, V, BLOCK_V):
            o_v = v + tl.arange(0, BLOCK_V)
            b_x = tl.load(p_x + o_v, mask=o_v < V, other=float("-inf"))
            b_max = tl.maximum(b_max, b_x)
            b_above += (b_x > chosen).to(tl.int32)
        best = tl.max(b_max, axis=0)
        b_sum = tl.zeros([BLOCK_V], dtype=tl.float64)
        for v in range(0, V, BLOCK_V):
            o_v = v + tl.arange(0, BLOCK_V)
            b_x = tl.load(p_x + o_v, mask=o_v < V, other=float("-inf"))
            b_sum += tl.exp(b_x - best).to(tl.float64)
        log_total = tl.log(tl.sum(b_sum, axis=0).to(tl.float32)) + best
        tl.store(logprob_ptr + i_n, chosen - log_total)
        tl.store(rank_ptr + i_n, tl.sum(b_above, axis=0) + 1)
        last = tl.full([], float("inf"), dtype=tl.float32)
        i_last = -1
        for i_top in range(n_top):
            b_best = tl.full([BLOCK_V], float("-inf"), dtype=tl.float32)
            b_at = tl.full([BLOCK_V], 0x7FFFFFFF, dtype=tl.int32)
            for v in range(0, V, BLOCK_V):
                o_v = v + tl.arange(0, BLOCK_V)
                m_v = o_v < V
                b_x = tl.load(p_x + o_v, mask=m_v, other=float("-inf"))
                m_next = m_v & ((b_x < last) | ((b_x == last) & (o_v > i_last)))
                m_new = m_next & ((b_x > b_best) | (b_at == 0x7FFFFFFF))
                b_at = tl.where(m_new, o_v, b_at)
                b_best = tl.where(m_new, b_x, b_best)
            last = tl.max(b_best, axis=0)
            i_last = tl.min(tl.where(b_best == last, b_at, 0x7FFFFFFF), axis=0)
            tl.store(top_ids_ptr + i_n * n_most + i_top, i_last)
            tl.store(top_logprobs_ptr + i_n * n_most + i_top, last - log_total)
