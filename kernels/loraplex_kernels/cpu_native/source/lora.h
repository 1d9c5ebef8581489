// Grouped LoRA: shrink x A^T for all segments, then expand with B on top of a base block while it is in cache.
#pragma once
#include "matmul.h"
#include "team.h"

namespace {

constexpr int kItemRows = 32;

// Kinds that few adapters have: inlined they made the products of all others 2 % slower.
#define LPX_APART __attribute__((cold, noinline))

// Rows of one segment that one thread shrinks at once.
struct ShrinkItem {
  int32_t segment, start, count;  // start: into LpxLora::rows
};

inline int64_t segment_items(const LpxLora* lora, ShrinkItem* items) {
  int64_t count = 0;
  for (int32_t segment = 0; segment < lora->num_segments; ++segment)
    for (int32_t at = lora->starts[segment]; at < lora->starts[segment + 1]; at += kItemRows, ++count)
      if (items) items[count] = {segment, at, static_cast<int32_t>(smaller(kItemRows, lora->starts[segment + 1] - at))};
  return count;
}

// R x Q dot products over k, R * Q = W of them: that of x[r] and a[q] is element r * Q + q. Both are read along k.
template <class X, class A, int R, int Q>
vf dots(const X* const* x, const A* const* a, int64_t k) {
  static_assert(R * Q == W, "one vector of results");
  vf sums[W];
  for (int i = 0; i < W; ++i) sums[i] = zero();
  int64_t at = 0;
#if LPX_LEVEL >= 3
  if constexpr (sizeof(X) == 2 && sizeof(A) == 2) {
    for (; at < k; at += 32) {
      const __mmask32 some = k - at >= 32 ? ~0u : (1u << (k - at)) - 1;
      __m512i left[R];
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) left[r] = _mm512_maskz_loadu_epi16(some, x[r] + at);
#pragma GCC unroll 16
      for (int q = 0; q < Q; ++q) {
        const __m512i right = _mm512_maskz_loadu_epi16(some, a[q] + at);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) sums[r * Q + q] = Pairs::multiply_add(sums[r * Q + q], left[r], right);
      }
    }
  }
#endif
  for (; at < k; at += W) {
    vf left[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) left[r] = load_up_to(x[r] + at, k - at);
#pragma GCC unroll 16
    for (int q = 0; q < Q; ++q) {
      const vf right = load_up_to(a[q] + at, k - at);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) sums[r * Q + q] = fma(left[r], right, sums[r * Q + q]);
    }
  }
  return sums_of(sums);
}

// out[r][0 .. rank) = factors[r] * A x[r], and a zero behind it where rank is odd.
template <class X, class A, class S, int R>
void shrink_rows(const X* const* x, const A* a, int64_t rank, int64_t k, const float* factors, S* const* out) {
  constexpr int Q = W / R;
  float spread[W];
  for (int i = 0; i < W; ++i) spread[i] = factors[i / Q];
  for (int64_t start = 0; start < rank; start += Q) {
    const A* from[Q];
    for (int64_t q = 0; q < Q; ++q) from[q] = a + smaller(start + q, rank - 1) * k;
    S result[W];
    store(result, mul(dots<X, A, R, Q>(x, from, k), load(spread)));
    const int64_t count = smaller(Q, rank - start);
    for (int r = 0; r < R; ++r) memcpy(out[r] + start, result + r * Q, sizeof(S) * static_cast<size_t>(count));
  }
  if (rank % 2)
    for (int r = 0; r < R; ++r) memset(out[r] + rank, 0, sizeof(S));
}

// The shrunk rows of one site for all segments: the row at position i of LpxLora::rows is at data + i * stride floats.
struct Shrunk {
  float* data;
  int64_t stride;
};

template <class X, class A, class S>
void shrink_item(const ShrinkItem& item, const LpxLora* lora, const LpxSite* site, const X* x, int64_t k,
                 Shrunk shrunk) {
  const A* a = static_cast<const A*>(site->a);
  for (int32_t at = item.start; at < item.start + item.count;) {
    const int count = item.start + item.count - at >= 4 ? 4 : 1;
    const X* from[4];
    S* to[4];
    float factors[4];
    for (int r = 0; r < count; ++r) {
      from[r] = x + lora->rows[at + r] * x_stride(k);
      to[r] = reinterpret_cast<S*>(shrunk.data + (at + r) * shrunk.stride);
      factors[r] = site->scale * lora->row_weights[at + r];
    }
    if (count == 4) shrink_rows<X, A, S, 4>(from, a, site->rank, k, factors, to);
    else shrink_rows<X, A, S, 1>(from, a, site->rank, k, factors, to);
    at += count;
  }
}

inline const LpxSite* site_of(const LpxLora* lora, int64_t segment, int64_t group, int64_t site) {
  return reinterpret_cast<const LpxGroup*>(lora->tables[segment])[group].sites + site;
}

inline int64_t largest_rank(const LpxLora* lora, int64_t num_groups) {
  int64_t rank = 0;
  for (int64_t segment = 0; segment < lora->num_segments; ++segment)
    for (int64_t group = 0; group < num_groups; ++group)
      for (int64_t site = 0; site < LPX_MAX_SITES; ++site)
        rank = larger(rank, site_of(lora, segment, group, site)->rank);
  return rank;
}

// Everything that one step knows of its adapters. H: how this model's bf16 or float32 weights are multiplied.
template <class H>
struct Adapters {
  using X = typename H::x_t;
  const LpxLora* lora;
  const ShrinkItem* items;
  int64_t num_items;
  Shrunk shrunk[LPX_MAX_SITES];

  void shrink(Walk& walk, int64_t group, const LpxLinear* linear, const X* x) const {
    const int64_t k = linear->in_features;
    walk.run(num_items * LPX_MAX_SITES, [&](int64_t chunk, int64_t) {
      const ShrinkItem& item = items[chunk / LPX_MAX_SITES];
      const int64_t index = chunk % LPX_MAX_SITES;
      const LpxSite* site = site_of(lora, item.segment, group, index);
      if (site->rank == 0) return;
      if (site->dtype == LPX_F32) shrink_item<X, float, float>(item, lora, site, x, k, shrunk[index]);
      else shrink_item<X, bf16, typename Half::x_t>(item, lora, site, x, k, shrunk[index]);
    });
  }

  // The parts of B that expand() will read.
  void announce(int64_t group, int64_t index, int64_t block, int64_t columns, Ahead* ahead, Ahead::Part* parts) const {
    ahead->soon = ahead->soon_end = parts;
    for (int64_t segment = 0; segment < lora->num_segments; ++segment) {
      const LpxSite* site = site_of(lora, segment, group, index);
      if (site->rank == 0) continue;
      const bool is_float = site->dtype == LPX_F32;
      const int64_t item = is_float ? 4 : 2, steps = is_float ? site->rank : num_steps<Half>(site->rank) * Half::step;
      const char* start = static_cast<const char*>(site->b) + block * kBlock * steps * item;
      *ahead->soon_end++ = {start, start + round_up(columns, W) * steps * item, group};
    }
  }

  // A of one group, this thread's share of the segments; gives the end of the parts.
  Ahead::Part* announce_shrink(int64_t group, int64_t k, int64_t thread, int64_t num_threads, Ahead::Part* end) const {
    for (int64_t segment = thread; segment < lora->num_segments; segment += num_threads)
      for (int64_t index = 0; index < LPX_MAX_SITES; ++index) {
        const LpxSite* site = site_of(lora, segment, group, index);
        const char* start = static_cast<const char*>(site->a);
        if (site->rank) *end++ = {start, start + site->rank * k * (site->dtype == LPX_F32 ? 4 : 2), group};
      }
    return end;
  }

  // One block of the base linear, which DoRA multiplies with once more.
  struct Base {
    const X* x;
    int64_t k;
    const typename H::w_t* weights;
  };

  // out is the block's first column of row 0.
  void expand(int64_t group, int64_t index, int64_t block, int64_t columns, Rows<float> out, const Base& base) const {
    for (int64_t segment = 0; segment < lora->num_segments; ++segment) {
      const LpxSite* site = site_of(lora, segment, group, index);
      if (site->rank == 0) continue;
      if (site->kind == LPX_DORA) {
        if (site->dtype == LPX_F32) add_dora<Float>(segment, site, index, block, columns, out, base);
        else add_dora<Half>(segment, site, index, block, columns, out, base);
        continue;
      }
      if (site->dtype == LPX_F32) expand_segment<Float>(segment, site, index, block, columns, out);
      else expand_segment<Half>(segment, site, index, block, columns, out);
      if (site->kind != LPX_BIAS) continue;
      if (site->dtype == LPX_F32) add_bias<float>(segment, site, block, columns, out);
      else add_bias<bf16>(segment, site, block, columns, out);
    }
  }

 private:
  // out += weight * (gain * W x + (1 + gain) * scale * B A x); the shrunk rows have weight and scale in them.
  template <class P>
  LPX_APART void add_dora(int64_t segment, const LpxSite* site, int64_t index, int64_t block, int64_t columns,
                          Rows<float> out, const Base& base) const {
    using S = typename P::x_t;
    const auto* gain = static_cast<const typename P::w_t*>(site->vector) + block * kBlock;
    const auto* b = static_cast<const typename P::w_t*>(site->b) + block_start<P>(block, site->rank);
    const int64_t stride = shrunk[index].stride * static_cast<int64_t>(sizeof(float) / sizeof(S));
    float product[kTileRows * kBlock], delta[kTileRows * kBlock];
    out.index = lora->rows;
    for (int64_t at = lora->starts[segment]; at < lora->starts[segment + 1]; at += kTileRows) {
      const int64_t count = smaller(kTileRows, lora->starts[segment + 1] - at);
      const S* from = reinterpret_cast<const S*>(shrunk[index].data + at * shrunk[index].stride);
      multiply_block<H>(count, {base.x, x_stride(base.k), lora->rows + at}, base.weights, base.k, nullptr,
                        {product, kBlock}, columns, false);
      multiply_block<P>(count, {from, stride}, b, site->rank, nullptr, {delta, kBlock}, columns, false);
      for (int64_t row = 0; row < count; ++row) {
        const vf weight = set1(lora->row_weights[at + row]);
        for (int64_t i = 0; i < columns; i += W) {
          const int64_t left = columns - i;
          float* to = out[at + row] + i;
          const vf low = load_up_to(delta + row * kBlock + i, left);
          const vf whole = fma(weight, load_up_to(product + row * kBlock + i, left), low);
          store_up_to(to, add(load_up_to(to, left), fma(load_up_to(gain + i, left), whole, low)), left);
        }
      }
    }
  }

  template <class T>
  LPX_APART void add_bias(int64_t segment, const LpxSite* site, int64_t block, int64_t columns, Rows<float> out) const {
    const T* bias = static_cast<const T*>(site->vector) + block * kBlock;
    out.index = lora->rows;
    for (int32_t at = lora->starts[segment]; at < lora->starts[segment + 1]; ++at) {
      const vf factor = set1(site->scale * lora->row_weights[at]);
      for (int64_t i = 0; i < columns; i += W) {
        float* to = out[at] + i;
        store_up_to(to, fma(factor, load_up_to(bias + i, columns - i), load_up_to(to, columns - i)), columns - i);
      }
    }
  }

  template <class P>
  void expand_segment(int64_t segment, const LpxSite* site, int64_t index, int64_t block, int64_t columns,
                      Rows<float> out) const {
    using S = typename P::x_t;
    const int32_t start = lora->starts[segment], count = lora->starts[segment + 1] - start;
    const S* from = reinterpret_cast<const S*>(shrunk[index].data + start * shrunk[index].stride);
    const int64_t stride = shrunk[index].stride * static_cast<int64_t>(sizeof(float) / sizeof(S));
    const auto* b = static_cast<const typename P::w_t*>(site->b) + block_start<P>(block, site->rank);
    out.index = lora->rows + start;
    multiply_block<P>(count, {from, stride}, b, site->rank, nullptr, out, columns, true);
  }
};

}  // namespace
